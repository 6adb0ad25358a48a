"""The table of docs/explanation/encdec.md: written from the results file, between marks."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuits.files import write_text
from circuits.plots.markdown import around_marks, made_by, markdown_table


def write_table(docs: Path = Path("docs")) -> Path:
    """Rewrite the table; returns the page. Raises ValueError when the page lacks the marks."""
    page = docs / "explanation" / "encdec.md"
    report = json.loads((docs / "results" / "encdec.json").read_text())
    before, after = around_marks(page, *(f"<!-- table of encdec: {place} -->" for place in ("begin", "end")))
    text = "\n\n".join(
        [
            accuracy_table(report),
            circuit_table(report),
            f"Made by {made_by(report)}. {report.get('note', '')}".rstrip(),
        ]
    )
    return write_text(page, f"{before}\n\n{text}\n\n{after}")


def accuracy_table(report: Mapping[str, Any]) -> str:
    """What is learned: shares of test texts that come out exactly, a line a seed."""
    head = [
        "seed",
        "copy",
        "reverse",
        "translation",
        "unseen pairs of adjective and noun",
        "nonzeros (density)",
    ]
    rows = [
        [
            run["seed"],
            *(f"{run[name]['accuracy']:.1%}" for name in ("copy", "reverse")),
            *(f"{run['translate'][which]:.1%}" for which in ("seen", "held_out")),
            f"{run['translate']['n_nonzero']:,} ({run['translate']['density']:.1%})",
        ]
        for run in report["runs"]
    ]
    apart = report["parity"]
    said = "; ".join(
        f"{name}-norm, logits {value['logits']:.1e}, gradients {value['gradients']:.1e}"
        for name, value in apart.items()
    )
    return f"Greatest difference from `torch.nn.Transformer`: {said}.\n\n{markdown_table(head, rows)}"


def circuit_table(report: Mapping[str, Any]) -> str:
    """Circuits of the sparse translators, a line a seed and objective."""
    head = [
        "seed",
        "pruned by",
        "nodes",
        "in the encoder",
        "edges",
        "error of margins",
        "task loss",
        "accuracy",
        "1-minimal",
        "failed checks",
    ]
    rows = [
        [
            run["seed"],
            name,
            circuit["n_nodes"],
            circuit["stacks"]["encoder"],
            circuit["n_edges"],
            f"{circuit['margin_error']:.3f}",
            f"{circuit['task_loss']:.3f}",
            f"{circuit['task_accuracy']:.1%}",
            "yes" if circuit["one_minimal"] else "no",
            "; ".join(circuit["failed"]) or "none",
        ]
        for run in report["runs"]
        for name, circuit in run["circuits"].items()
    ]
    return markdown_table(head, rows)
