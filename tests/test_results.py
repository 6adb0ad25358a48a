"""Results files: each parses, names a command that exists, and has its headline keys."""

import importlib.util
import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from docs.experiments import structure

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
    "quotes_order": CIRCUIT | {"margin_ratio", "margin_correlation", "seeds_passing_trust"},
    "quotes_margins": CIRCUIT | {"margin_ratio", "margin_correlation", "seeds_passing_trust"},
    "brackets": CIRCUIT,
    "python_loss": {"minutes", "val_loss", "trigram_loss"},
    "python_tasks": {"solved", "compared", "n_layers", "density", "tasks"},
    "python_circuit": {"task", "n_prompts", "heads", "values"},
    "turns": {"rows", "slower", "older"},
    "speed": {"demo_seconds", "first_over_second", "busy_neighbour_ratio"},
    "structure": set(structure.HEADLINES),
    "explorer": {
        *("code_bytes", "data_bytes", "seconds_300", "seconds_2000", "worst_frame_ms"),
        "max_logit_difference",
    },
    "power": {"caught", "false_alarms"},
    "adversarial": {"loss_before", "loss_after", "sizes"},
    "size_faithfulness": {"targets", "medians", "smallest_passing"},
    "stability": {"core", "contingent", "noise", "rival_found"},
    "first_hour": {"jobs", "tracebacks"},
    "interop": {"openai_max_abs", "memory_ratio", "seconds"},
    "rankings": {"auroc", "models"},
    "factors": {"ratios", "sizes", "models"},
    "bench": {"rows"},
    "gpu": {"gpu", "rows"},
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
    "turbo": {
        *("max_rel_exp_error", "output_error_std1", "output_error_std2", "kv_ratio", "accuracy_ratio"),
        "head_priority_correlation",
    },
    "encdec": {"parity_max_abs", "copy_accuracy", "reverse_accuracy"},
    "experts": {"parity_max_abs", "routing_circuit_overlap"},
    "recovery": {
        *("kills", "identical", "fuzz_cases", "fuzz_bad", "sweep_runs", "sweep_results"),
        "processes",
    },
    "head_report": {"report_seconds", "peak_gb"},
    "induction_heads": {"accuracy", "heads_agree", "paths_agree", "strongest_agree", "models"},
}
FILES = sorted(FOLDER.glob("*.json"))


def refusal(command: str) -> str:
    """Why the command line would not take a recorded command; empty when it would. Nothing is run."""
    first, *words = shlex.split(command)
    if first == "python" and words[:1] == ["-m"]:
        words = words[1:]
        if importlib.util.find_spec(words[0]) is None:
            return f"no module {words[0]}"
        app = importlib.import_module(words.pop(0)).app
    elif first == "circuits":
        from circuits.__main__ import app
    else:
        return f"neither circuits nor python -m: {command}"
    # Names and options are read before --help answers, so that nothing is run.
    shown = CliRunner().invoke(app, [*words, "--help"], env={"TERM": "dumb", "COLUMNS": "200"})
    return shown.output if shown.exit_code else ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_each_file_has_its_keys_and_a_command_that_exists(path):
    data = json.loads(path.read_text())
    assert COMMON | HEADLINES[path.stem] <= set(data)
    assert refusal(data["command"]) == ""


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("python -m docs.experiments.nothing", "no module"),
        ("python -m docs.experiments.toy quote --seeds 5", "No such command 'quote'"),
        ("python -m docs.experiments.toy quotes --seed 5", "No such option"),
        ("circuits evaluate", "No such command"),
        ("make results", "neither"),
    ],
)
def test_a_command_that_does_not_exist_is_found(command, why):
    assert why in refusal(command)
