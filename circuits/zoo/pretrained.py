"""Small trained models that ship with the package, so that a question need not wait for training."""

from pathlib import Path
from typing import Any

from circuits.bridges import BridgeSet, load_bridges
from circuits.training.loop import Training
from circuits.training.saved import load_trained
from tasks.near import unknown

FOLDER = Path(__file__).parent
PRETRAINED = {
    "mini-python": "TrainConfig.toy(), seed 0: one layer, 128 wide, density 1 %; closes quotes and counts brackets",
}
"""What `load_pretrained` finds, and how each was made."""
PRETRAINED_BRIDGES = {
    "mini-python": "python -m docs.experiments.bridges bridges --steps 2500, seed 0: windows of 40 tokens",
    "mini-python-long": "python -m docs.experiments.bridges dilution --steps 1500, seed 0: windows of 96 tokens",
}
"""What `load_pretrained_bridges` finds, and how each was made."""


def load_pretrained(name: str = "mini-python") -> Training:
    """A trained model with its configuration, text and history. Raises ValueError for an unknown name."""
    _check(name, PRETRAINED)
    return Training.load(FOLDER / f"{name}.safetensors")


def load_pretrained_bridges(name: str = "mini-python") -> BridgeSet:
    """A dense model (`.dense`), a sparse one (`.sparse`) and bridges. Raises ValueError for an unknown name."""
    _check(name, PRETRAINED_BRIDGES)
    folder = FOLDER / "bridges" / name
    (dense, _), (sparse, _) = (load_trained(folder / f"{side}.safetensors") for side in ("dense", "sparse"))
    return load_bridges(folder / "bridges.safetensors", dense=dense, sparse=sparse)


def catalogue() -> list[dict[str, Any]]:
    """What ships: name, kilobytes on disk, the function that loads it, and how it was made."""
    models = [
        (name, FOLDER / f"{name}.safetensors", "load_pretrained", made) for name, made in PRETRAINED.items()
    ]
    bridges = [
        (name, FOLDER / "bridges" / name, "load_pretrained_bridges", made)
        for name, made in PRETRAINED_BRIDGES.items()
    ]
    return [
        {"name": name, "kilobytes": _size(path) // 1000, "loads": f"circuits.{loads}({name!r})", "made": made}
        for name, path, loads, made in (*models, *bridges)
    ]


def _size(path: Path) -> int:
    """Bytes of a file, or of a folder's files."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))


def _check(name: str, known: dict[str, str]) -> None:
    if name not in known:
        raise ValueError(unknown("name", name, known))
