"""Train weight-sparse transformers, extract their circuits, and check that the circuits are real.

Names load when they are first used: `import circuits` costs nothing, and neither does `circuits --help`.
"""

from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuits.bridges import BridgeConfig, BridgeSet, fit_bridges, load_bridges
    from circuits.bridges.steering import steer
    from circuits.circuit.ablation import mean_values
    from circuits.circuit.circuit import Circuit
    from circuits.circuit.masked import run_circuit, run_masked
    from circuits.circuit.nodes import Edge, Node
    from circuits.circuit.score import task_score
    from circuits.model.checkpoint import load_checkpoint, save_checkpoint
    from circuits.model.config import ModelConfig
    from circuits.model.sites import Site
    from circuits.model.transformer import SparseTransformer
    from circuits.pruning.config import PruneConfig
    from circuits.pruning.procedure import prune
    from circuits.training import TrainConfig, Training, TrainingInterrupted, train
    from circuits.zoo import load

_HOMES = {
    "bridges": ("BridgeConfig", "BridgeSet", "fit_bridges", "load_bridges"),
    "bridges.steering": ("steer",),
    "circuit.circuit": ("Circuit",),
    "circuit.ablation": ("mean_values",),
    "circuit.masked": ("run_circuit", "run_masked"),
    "circuit.nodes": ("Edge", "Node"),
    "circuit.score": ("task_score",),
    "model.checkpoint": ("load_checkpoint", "save_checkpoint"),
    "model.config": ("ModelConfig",),
    "model.sites": ("Site",),
    "model.transformer": ("SparseTransformer",),
    "pruning.config": ("PruneConfig",),
    "pruning.procedure": ("prune",),
    "training": ("TrainConfig", "Training", "TrainingInterrupted", "train"),
    "zoo": ("load",),
}
"""The module, inside the package, that each public name comes from."""
_ROOMS = (
    *("bench", "bridges", "circuit", "composition", "decompile", "handmade", "heads", "kernels", "model"),
    *("explorer", "interop", "plots", "pruning", "ranking", "sweep", "training", "trust", "zoo"),
)

__all__ = [
    "BridgeConfig",
    "BridgeSet",
    "Circuit",
    "Edge",
    "ModelConfig",
    "Node",
    "PruneConfig",
    "Site",
    "SparseTransformer",
    "TrainConfig",
    "Training",
    "TrainingInterrupted",
    "fit_bridges",
    "load",
    "load_bridges",
    "load_checkpoint",
    "mean_values",
    "prune",
    "run_circuit",
    "run_masked",
    "save_checkpoint",
    "steer",
    "task_score",
    "train",
]


def _check_tasks() -> None:
    """Raise ImportError where `import tasks` would find another file than the package that comes with this one."""
    own = Path(__file__).resolve().parent.parent / "tasks" / "__init__.py"
    spec = find_spec("tasks")
    found = spec and (spec.origin or next(iter(spec.submodule_search_locations or ()), None))
    if own.exists() and found and Path(found).resolve() != own:
        raise ImportError(
            f"tasks: found {found}; expected {own}, the package of tasks that comes with circuits. A file or folder of "
            "that name comes first on sys.path: rename it, or start Python elsewhere."
        )


_check_tasks()


def __getattr__(name: str) -> Any:
    """Load a public name, or a room of the package, when it is first asked for (PEP 562)."""
    for home, names in _HOMES.items():
        if name in names:
            globals()[name] = found = getattr(import_module(f"circuits.{home}"), name)
            return found
    if name in _ROOMS:
        return import_module(f"circuits.{name}")
    near = get_close_matches(name, [*__all__, *_ROOMS], n=1)
    raise AttributeError(
        f"module 'circuits' has no attribute {name!r}; it offers {', '.join([*__all__, *_ROOMS])}."
        + "".join(f" Did you mean {found!r}?" for found in near)
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
