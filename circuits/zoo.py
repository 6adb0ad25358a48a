"""Small trained models that ship with the package, so that a question need not wait for training."""

from pathlib import Path

from circuits.train import Training

FOLDER = Path(__file__).parent / "models"
PRETRAINED = {
    "mini-python": "TrainConfig.toy(), seed 0: one layer, 128 wide, density 1 %; closes quotes and counts brackets",
}
"""What `load_pretrained` finds, and how each was made."""


def load_pretrained(name: str = "mini-python") -> Training:
    """A trained model with its configuration, text and history. Raises ValueError for an unknown name."""
    if name not in PRETRAINED:
        raise ValueError(f"name: got {name!r}; expected one of {sorted(PRETRAINED)}.")
    return Training.load(FOLDER / f"{name}.safetensors")
