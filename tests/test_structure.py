"""The house keeps its plan: which module may import which, where heavy libraries live, what is public."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [
    {"circuit", "kernels", "nodes", "topk"},
    {"affine", "attention", "config", "model", "compute", "gates", "score", "checkpoint", "ablation"},
    {"train", "prune", "pruning", "faithfulness", "bridge", "steer", "heads", "composition", "decompile"}
    | {"handmade", "compare", "dilution"},
    {"plots", "interop", "sweep", "zoo", "bench", "demo", "experiments"},
    {"__main__", "commands"},
]  # fmt: skip


def imports(path: Path, *, top_level_only: bool) -> set[str]:
    """Dotted names that a file imports; only at module level, or anywhere in it."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree)
    if top_level_only:
        inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
        nodes = (node for node in ast.walk(tree) if id(node) not in inside)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules() -> list[Path]:
    return sorted(
        p for p in (ROOT / "circuits").rglob("*.py") if p.name != "__init__.py" or p.parent.name != "circuits"
    )


def room(path: Path) -> str:
    return path.relative_to(ROOT / "circuits").parts[0].removesuffix(".py")


def floor(name: str) -> int:
    for level, names in enumerate(FLOORS):
        if name in names:
            return level
    raise AssertionError(f"circuits/{name} has no floor: add it to FLOORS, beside what it may import")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_nobody_imports_from_a_higher_floor(path):
    for name in imports(path, top_level_only=True):
        if name.startswith("circuits."):
            other = name.split(".")[1]
            if (ROOT / "circuits" / f"{other}.py").exists() or (ROOT / "circuits" / other).is_dir():
                assert floor(other) <= floor(room(path)), f"{path.name} imports {name}"


def test_tasks_import_nothing_from_circuits():
    for path in (ROOT / "tasks").rglob("*.py"):
        assert not any(n.split(".")[0] == "circuits" for n in imports(path, top_level_only=False)), path


@pytest.mark.parametrize(
    ("library", "rooms"), [("plotly", {"plots"}), ("networkx", {"circuit"}), ("triton", {"kernels"})]
)
def test_each_heavy_library_has_one_room(library, rooms):
    users = {
        room(p)
        for p in modules()
        if any(n.split(".")[0] == library for n in imports(p, top_level_only=False))
    }
    assert users <= rooms


def test_import_changes_no_global_state_and_needs_no_triton():
    """A fresh interpreter: default dtype, threads, generator and warning filters are as torch leaves them."""
    code = """
import sys, warnings, torch, transformer_lens, plotly.graph_objects, plotly.offline, plotly.subplots, plotly.io
sys.modules['triton'] = None
def state():
    torch_state = torch.get_default_dtype(), torch.get_num_threads(), torch.random.get_rng_state().sum()
    return torch_state, list(warnings.filters)
before = state()
import circuits, circuits.training, circuits.pruning.procedure, circuits.plots, tasks
after = state()
assert before == after, (before, after)
assert plotly.io.templates.default == 'plotly'
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_public_names_are_few_and_exist():
    import circuits

    assert len(circuits.__all__) <= 25
    assert all(hasattr(circuits, name) for name in circuits.__all__)
