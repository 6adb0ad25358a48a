"""Sparse against dense: the circuits of a sparse and of a dense model of equal validation loss, task by task.

    python -m docs.experiments.sparse_vs_dense --seeds 3    -> docs/results/sparse_vs_dense.json

For each seed one sparse model is trained, and one dense model of the same shape until its validation loss is that of
the sparse. Both are pruned on every task with the same settings, to the same task loss. What has been run is kept
under out/pairs and not run again.
"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from circuits.files import mean, write_results
from circuits.pruning.config import PruneConfig
from docs.experiments.runs import PAIRS, model_pair, pruned, published

RESULTS = Path("docs/results/sparse_vs_dense.json")
TASKS = ("quotes", "brackets", "bracket_kind", "line_end", "separator", "string_end", "call_end")

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def run(
    seeds: Annotated[int, typer.Option(help="Pairs of models.")] = 3,
    steps: Annotated[int, typer.Option(help="Training steps of the sparse model.")] = 2000,
    results: Annotated[Path, typer.Option(help="File to write.")] = RESULTS,
    kept: Annotated[Path, typer.Option(help="Folder for models and circuits.")] = PAIRS,
) -> dict[str, Any]:
    """Train pairs of models, prune both on every task, and compare the edges; written anew after each task."""
    runs: list[dict[str, Any]] = []
    report: dict[str, Any] = {}
    command = f"python -m docs.experiments.sparse_vs_dense --seeds {seeds} --steps {steps}"
    for seed in range(seeds):
        folder = kept / str(seed)
        sparse, dense = model_pair(folder, seed=seed, steps=steps)
        losses = {"sparse": sparse.val_loss, "dense": dense.val_loss}
        Console().print({"seed": seed, **losses})
        for task in TASKS:
            sides = {
                name: pruned(training, task, comparable(seed), folder / name)
                for name, training in (("sparse", sparse), ("dense", dense))
            }
            runs.append({"seed": seed, "task": task, "val_loss": losses, **sides})
            Console().print({name: side.get("n_edges") for name, side in sides.items()}, seed, task)
            seconds = sum(one[name]["seconds"] for one in runs for name in losses)
            report = write_results(
                results, command=command, seeds=range(seed + 1), seconds=seconds, numbers=_numbers(runs)
            )
    return report


def comparable(seed: int) -> PruneConfig:
    """One start and a quarter of the usual prompts: a dense circuit has thousands of weights to try."""
    return published(seed=seed, starts=1, n_eval=128)


def _numbers(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Per task the ratio of edges, dense over sparse (geometric mean over seeds), and the mean over the tasks."""
    tasks: dict[str, float] = {}
    sizes: dict[str, dict[str, Any]] = {}
    for task in dict.fromkeys(one["task"] for one in runs):
        own = [one for one in runs if one["task"] == task and _comparable(one)]
        if own:
            tasks[task] = geometric_mean([one["dense"]["n_edges"] / one["sparse"]["n_edges"] for one in own])
            sizes[task] = {
                "n_seeds": len(own),
                **{
                    f"{name}_{key}": statistics.median(one[name][key] for one in own)
                    for name in ("sparse", "dense")
                    for key in ("n_nodes", "n_edges")
                },
            }
    return {
        "geomean_edge_ratio": geometric_mean(list(tasks.values())) if tasks else None,
        "tasks": tasks,
        "sizes": sizes,
        "val_loss": {name: mean([one["val_loss"][name] for one in runs]) for name in ("sparse", "dense")},
        "left_out": [
            {"seed": one["seed"], "task": one["task"], **_why(one)} for one in runs if not _comparable(one)
        ],
        "runs": list(runs),
    }


def _comparable(run: dict[str, Any]) -> bool:
    """Both models do the task, and both circuits have edges to count."""
    return all(run[name]["solved"] and run[name]["n_edges"] for name in ("sparse", "dense"))


def _why(run: dict[str, Any]) -> dict[str, Any]:
    return {name: "solved" if run[name]["solved"] else "not solved" for name in ("sparse", "dense")}


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean of positive numbers."""
    return math.exp(mean([math.log(value) for value in values]))


if __name__ == "__main__":
    app()
