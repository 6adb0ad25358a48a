"""The page about trust: its tables and pictures, from the results files that there are.

python -m docs.experiments.trust_page
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from circuits.files import write_text
from circuits.plots import (
    controls_figure,
    figure_to_png,
    frontier_figure,
    ground_truth_figure,
    sparse_vs_dense_figure,
)
from circuits.plots.markdown import around_marks, made_by, markdown_table
from circuits.plots.style import UNMEASURED

DOCS = Path("docs")
app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def run() -> None:
    """Rewrite what stands between the marks of the page, and the pictures beside it."""
    page = DOCS / "explanation" / "trust.md"
    for name, table in TABLES.items():
        source = DOCS / "results" / f"{name}.json"
        if source.exists():
            report = json.loads(source.read_text())
            before, after = around_marks(page, *marks(name))
            parts = [table(report), made_by(report)]
            if name in FIGURES:
                picture = page.with_name(f"trust-{name}.png")
                figure_to_png(FIGURES[name](report), picture)
                parts.insert(1, f"![]({picture.name})")
            write_text(page, "\n".join([before, "\n\n".join(parts), after]))
        Console().print(f"{name}: {'written' if source.exists() else 'no results yet'}")


def marks(name: str) -> tuple[str, str]:
    """The marks between which a table stands."""
    return f"<!-- {name} -->", f"<!-- end of {name} -->"


def ground_truth_table(report: Mapping[str, Any]) -> str:
    """Recovered circuits a model, and how well every method finds the true nodes."""
    models = [
        [name, one["n_nodes_model"], one["n_nodes"], one["n_edges"], f"{one['recovered']} of {one['total']}"]
        for name, one in report["per_model"].items()
    ]
    methods = [
        [name, *(f"{one[key]:.2f}" if key in one else UNMEASURED for key in ("precision", "recall", "auroc"))]
        for name, one in report["methods"].items()
    ]
    first = markdown_table(["model", "nodes of the model", "nodes", "edges", "recovered exactly"], models)
    return f"{first}\n\n{markdown_table(['method', 'precision', 'recall', 'AUROC'], methods)}"


def controls_table(report: Mapping[str, Any]) -> str:
    """Losses of the true task and of each control, by model and budget, and how many items of the report fail."""
    keys = ("true_loss", "swapped_loss", "unrelated_loss", "random_model_loss")
    body = [
        [name, *(f"{one[key]:.3f}" for key in keys), ", ".join(one["failed"]) or "none"]
        for name, one in report["cases"].items()
    ]
    return markdown_table(
        ["model, budget", "true task", "swapped", "unrelated", "random model", "items that fail"], body
    )


def sparse_vs_dense_table(report: Mapping[str, Any]) -> str:
    """Edges on both sides, and their ratio, task by task."""
    body = [
        [
            task,
            one["n_seeds"],
            f"{one['sparse_n_edges']:g}",
            f"{one['dense_n_edges']:g}",
            f"{report['tasks'][task]:.1f}",
        ]
        for task, one in report["sizes"].items()
    ]
    table = markdown_table(["task", "seeds", "edges, sparse", "edges, dense", "ratio"], body)
    return f"{table}\n\nGeometric mean of the ratios: **{report['geomean_edge_ratio']:.1f}**."


def frontier_table(report: Mapping[str, Any]) -> str:
    """Validation loss and circuit size for each width."""
    body = [
        [width, f"{nonzero:,.0f}", f"{loss:.3f}", UNMEASURED if edges is None else f"{edges:.1f}"]
        for width, nonzero, loss, edges in zip(
            report["widths"], report["n_nonzero"], report["val_loss"], report["n_edges"], strict=True
        )
    ]
    return markdown_table(["width", "nonzero weights", "validation loss (nats)", "edges of a circuit"], body)


def objectives_table(report: Mapping[str, Any]) -> str:
    """Nodes and edges for each task, under each objective and ablation."""
    tasks = report["tasks"]
    cases = list(dict.fromkeys(case for cases in tasks.values() for case in cases))
    body = [[case, *(_size(tasks[task].get(case, {"solved": False})) for task in tasks)] for case in cases]
    return markdown_table(["objective, ablation", *(f"{task}: nodes / edges" for task in tasks)], body)


def _size(one: Mapping[str, Any]) -> str:
    if not one["solved"]:
        return UNMEASURED
    return f"{one['n_nodes']} / {one['n_edges']} (KL from the model {one['kl_to_model']:.2f} nats)"


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "ground_truth": ground_truth_table,
    "controls": controls_table,
    "objectives": objectives_table,
    "sparse_vs_dense": sparse_vs_dense_table,
    "frontier": frontier_table,
}
FIGURES: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "ground_truth": ground_truth_figure,
    "controls": controls_figure,
    "sparse_vs_dense": sparse_vs_dense_figure,
    "frontier": frontier_figure,
}


if __name__ == "__main__":
    app()
