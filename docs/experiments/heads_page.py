"""The tables of docs/explanation/heads.md: written from the results files, between marks."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from circuits.plots.markdown import markdown_table, write_between

NAMES = {
    "plain": "plain",
    "plain_equal": "plain, equal parameters",
    "static": "static",
    "gate": "gate",
    "qw": "query side",
    "kw": "key side",
    "full": "full",
}


def write_tables(docs: Path = Path("docs")) -> list[str]:
    """Rewrite every table whose results file is there; returns their names.

    Raises ValueError when the page lacks a table's marks.
    """
    page = docs / "explanation" / "heads.md"
    written = []
    for name, render in TABLES.items():
        results = docs / "results" / f"{name}.json"
        if results.exists():
            report = json.loads(results.read_text())
            begin, end = (f"<!-- table of {name}: {place} -->" for place in ("begin", "end"))
            write_between(page, begin, end, f"{render(report)}\n\n{_made(report)}")
            written.append(name)
    return written


def composition_table(report: Mapping[str, Any]) -> str:
    """The hand-made induction model among decoys, a line a null model."""
    head = ["null model", "largest p of the true edge", "other pairs significant", "decoy seeds"]
    rows = [
        ["redraw", _p(report["true_edge_p"]), str(report["false_positives"]), str(report["decoy_seeds"])],
        [
            "permute",
            _p(report["true_edge_p_permute"]),
            str(report["false_positives_permute"]),
            str(report["decoy_seeds"]),
        ],
    ]
    return markdown_table(head, rows)


def induction_table(report: Mapping[str, Any]) -> str:
    """Trained models, a line a seed."""
    head = ["seed", "accuracy", "strongest head: weights", "patterns", "strongest path: weights", "patching"]
    rows = []
    for run in report["runs"]:
        strongest = [run["strongest_by_weights"], run["strongest_by_patterns"]]
        paths = [run["pair_by_weights"], run["pair_by_patching"]]
        rows.append([str(run["seed"]), f"{run['accuracy']:.3f}", *strongest, *paths])
    same = (
        f"Of {report['models']} models: the same set of induction heads from weights and patterns in "
        f"{report['heads_agree']}; a strongest path from the previous-token head through K into an induction head, "
        f"from weights and by patching alike, in {report['paths_agree']}; the very same strongest head in "
        f"{report['strongest_agree']}, the very same path in {report['pairs_agree']}. Rank correlation of weights and "
        f"patching over K-paths: {report['rank_correlation']:.2f} (mean)."
    )
    return f"{markdown_table(head, rows)}\n\n{same}"


def dynamic_table(report: Mapping[str, Any]) -> str:
    """Accuracy by variant, then the contrasts, with 95 % intervals over seeds."""
    head = [
        "heads",
        "seen cells",
        "held-out cells",
        "steps to 90 % seen",
        "at 95 % in the end",
        "map entries needed",
    ]
    rows = []
    for name, v in report["variants"].items():
        accuracies = [_with_interval(v[which], v[f"{which}_ci"]) for which in ("seen", "held_out")]
        nearly = "not all" if v.get("steps_to_90") is None else f"{v['steps_to_90']:,.0f}"
        learned = f"{v.get('n_learned', 0)} of {v['n_seeds']}"
        rows.append([NAMES[name], *accuracies, nearly, learned, f"{v['n_compositions']:g}"])
    contrasts = [
        [name, _with_interval(c["mean"], c["ci"]), report.get("verdict", {}).get(name, "")]
        for name, c in report["contrasts"].items()
    ]
    gaps = markdown_table(["difference", "mean (95 % interval)", "verdict"], contrasts)
    return f"{markdown_table(head, rows)}\n\n{gaps}"


def report_table(report: Mapping[str, Any]) -> str:
    """Time and memory of one head report."""
    head = ["layers", "heads", "d_model", "vocabulary", "seconds", "peak memory, GB", "threads"]
    values = [str(report[key]) for key in ("n_layers", "n_heads", "d_model", "d_vocab")]
    cost = [f"{report['report_seconds']:.0f}", f"{report['peak_gb']:.1f}", report["threads"]]
    return markdown_table(head, [[*values, *cost]])


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "induction_heads": induction_table,
    "composition": composition_table,
    "dynamic_heads": dynamic_table,
    "head_report": report_table,
}


def _made(report: Mapping[str, Any]) -> str:
    return (
        f"Made by `{report['command']}` on {report['machine']} in {report['minutes']:.1f} minutes "
        f"({report['date']})."
    )


def _with_interval(value: float, ends: list[float]) -> str:
    return f"{value:.3f} ({ends[0]:.3f} to {ends[1]:.3f})"


def _p(value: float) -> str:
    return f"{value:.1e}"
