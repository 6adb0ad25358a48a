"""The page about real Python: its numbers, from the results files.

python -m docs.experiments.python_page    -> docs/explanation/real-python.md
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from circuits.plots.markdown import markdown_table, write_between
from docs.experiments.python_models import BEST, MODELS, TWIN

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)
RESULTS = Path("docs/results")
PAGE = Path("docs/explanation/real-python.md")
COLUMNS = (
    *(
        "choice",
        "sparse",
        "sparse, other seed",
        "dense",
        "circuit, nodes / edges",
        "other seed's",
        "dense one's",
    ),
    "checks passed",
)


@app.command()
def write() -> None:
    """Write the numbers of the results files into docs/explanation/real-python.md, each between its marks."""
    for name, text in sections(RESULTS).items():
        write_between(PAGE, *marks(name), text)


def marks(name: str) -> tuple[str, str]:
    """The marks between which a part of the page is written."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def sections(results: Path) -> dict[str, str]:
    """Each part of the page that numbers stand in, from the results files."""
    read = {
        name: json.loads((results / f"{name}.json").read_text())
        for name in ("python_loss", "python_tasks", "python_circuit")
    }
    table = read["python_tasks"]["tasks"]
    rows = sorted((_cells(task, row) for task, row in table.items()), key=lambda cells: -float(cells[1]))
    return {
        "losses": losses_table(read["python_loss"]),
        "tasks": markdown_table(COLUMNS, rows, numeric=range(1, 8)),
        "mechanism": mechanism_said(read["python_circuit"]),
    }


def losses_table(report: Mapping[str, Any]) -> str:
    """Every model's size and loss, the trigram's, and the differences in a sentence."""
    runs, trigram = report["runs"], report["trigram_loss"]
    named = {BEST: '`circuits.load("python-sparse")`', "sparse-0": "the same, other seed"}
    named[TWIN] = '`circuits.load("python-dense")`'
    rows = []
    for name, called in named.items():
        shape, run = MODELS[name].model, runs[name]
        share = f" ({run['density']:.0%})" if run["density"] < 1 else ""
        size = f"{shape.n_layers} layers, {shape.d_model} wide"
        weights = f"{run['n_nonzero']:,}{share}"
        rows.append([called, size, weights, f"{run['seconds_training']:.0f}", f"{run['val_loss']:.3f}"])
    rows.append(["a trigram (Kneser-Ney)", "", "", "", f"{trigram:.3f}"])
    head = ["model", "shape", "weights", "seconds on an H200", "nats a token, held-out packages"]
    below = [trigram - runs[name]["val_loss"] for name in (BEST, "sparse-0", TWIN)]
    said = "The sparse models are {:.2f} and {:.2f} nats below the trigram, the dense one {:.2f}.".format(
        *below
    )
    return f"{markdown_table(head, rows, numeric=range(2, 5))}\n\n{said}"


def mechanism_said(report: Mapping[str, Any]) -> str:
    """How the circuit that ships finds the opening token, with the numbers measured."""
    n, heads = report["n_prompts"], report["heads"]
    numbers = " and ".join(name.split("H")[1] for name in heads)
    most, alone = (
        " and ".join(f"{one[where]['most']} ({one[where]['share']:.0%})" for one in heads.values())
        for where in ("in_model", "in_circuit")
    )
    return (
        f"Two heads of the first layer, {numbers}, look for the opening token: it gets the most of their attention, "
        f"from the last token, in {most} of {n} prompts in the whole model, and in {alone} in the circuit alone (in "
        f"brackets: its mean share). What their value channels are there: {_values_said(report['values'])}."
    )


def _values_said(values: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Each channel's range at the opening token, by what closes it."""
    parts = (
        f"{node} "
        + ", ".join(f"{low:.1f} to {high:.1f} before `{closer}`" for closer, (low, high) in by.items())
        for node, by in values.items()
    )
    return "; ".join(parts)


def _cells(task: str, row: dict[str, Any]) -> list[str]:
    models = row["models"]
    accuracies = [f"{models[name]['accuracy']:.3f}" for name in (BEST, "sparse-0", TWIN)]
    circuits = [models[name].get("circuit") for name in (BEST, "sparse-0", TWIN)]
    sizes = ["" if own is None else f"{own['n_nodes']} / {own['n_edges']}" for own in circuits]
    trust = circuits[0] and circuits[0]["trust"]
    return [task, *accuracies, *sizes, f"{trust['passed']} of {trust['counted']}" if trust else ""]


if __name__ == "__main__":
    app()
