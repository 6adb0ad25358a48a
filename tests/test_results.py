"""Results files: each parses, names a command that exists, and has its headline keys."""

import importlib
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "docs" / "results"
COMMON = {"command", "seeds", "machine", "minutes", "date"}
CIRCUIT = {
    "n_nodes",
    "n_edges",
    "task_loss",
    "task_accuracy",
    "one_minimal",
    "seeds_meeting_target",
    "seeds_total",
}
HEADLINES = {
    "quotes": CIRCUIT,
    "brackets": CIRCUIT,
    "python_loss": {"minutes", "val_loss", "trigram_loss"},
    "bench": {"rows"},
    "support_gradients": {"loss_ratio"},
    "ground_truth": {"recovered", "total", "per_model"},
    "controls": {"true_loss", "swapped_loss", "unrelated_loss"},
    "sparse_vs_dense": {"geomean_edge_ratio", "tasks"},
    "objectives": {"model", "tasks"},
    "frontier": {"widths", "val_loss", "n_edges"},
    "bridges": {"min_recovered_dense_to_sparse", "min_recovered_sparse_to_dense"},
    "steering": {"p_foil_before", "p_foil_after", "control_change", "strength"},
    "dilution": {"spearman", "adversarial_ratio"},
    "composition": {"true_edge_p", "false_positives", "decoy_seeds"},
    "dynamic_heads": {"variants"},
    "head_report": {"report_seconds", "peak_gb"},
    "induction_heads": {"accuracy", "heads_agree", "paths_agree", "strongest_agree", "models"},
}
FILES = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_each_file_has_its_keys_and_a_command_that_exists(path):
    data = json.loads(path.read_text())
    assert COMMON | HEADLINES[path.stem] <= set(data)
    words = data["command"].split()
    if words[0] == "circuits":
        from circuits.__main__ import app

        names = {c.name or c.callback.__name__ for c in app.registered_commands}
        assert words[1] in names
    else:
        assert words[:2] == ["python", "-m"]
        module = importlib.import_module(words[2])
        names = {c.name or c.callback.__name__ for c in module.app.registered_commands}
        # A module with a single command runs it without a name.
        assert words[3] in names if len(words) > 3 and not words[3].startswith("-") else len(names) == 1


def test_the_readme_names_every_module():
    root = FOLDER.parent.parent
    tree = (root / "README.md").read_text()
    modules = [
        p for top in ("circuits", "tasks") for p in (root / top).rglob("*.py") if p.name != "__init__.py"
    ]
    assert modules
    missing = [str(p.relative_to(root)) for p in modules if p.name not in tree]
    assert not missing
