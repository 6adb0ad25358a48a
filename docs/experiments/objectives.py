"""Sizes of circuits by what is asked of them and by what is left out: objectives and ablations, on the shipped model.

    python -m docs.experiments.objectives    -> docs/results/objectives.json

What has been run is kept under out/objectives and not run again.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from circuits.files import write_results
from circuits.zoo import load
from docs.experiments.runs import pruned, published

RESULTS, KEPT = Path("docs/results/objectives.json"), Path("out/objectives")
TASKS = ("quotes", "brackets")
CASES: dict[str, dict[str, Any]] = {
    "task, mean": {},
    "task, zero": {"ablation": "zero"},
    "task, position": {"ablation": "position"},
    "faithful, mean": {"objective": "faithful"},
}
"""Objective and ablation of each case, as changes to the default settings. Resample ablation takes far longer."""

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def run(
    seed: Annotated[int, typer.Option(help="Decides gates and prompts.")] = 0,
    results: Annotated[Path, typer.Option(help="File to write.")] = RESULTS,
    kept: Annotated[Path, typer.Option(help="Folder for circuits.")] = KEPT,
) -> dict[str, Any]:
    """Prune the shipped model for each task in each case; written anew after each."""
    training = load("mini-python").training
    report: dict[str, Any] = {}
    tasks: dict[str, dict[str, Any]] = {task: {} for task in TASKS}
    for case, changes in CASES.items():
        for task in TASKS:
            settings = published(seed=seed, **changes)
            tasks[task][case] = pruned(training, task, settings, kept / case.replace(", ", "-"))
            Console().print(task, case, {key: tasks[task][case].get(key) for key in ("n_nodes", "n_edges")})
            report = write_results(
                results,
                command=f"python -m docs.experiments.objectives --seed {seed}",
                seeds=[seed],
                seconds=sum(one["seconds"] for cases in tasks.values() for one in cases.values()),
                numbers={"model": "mini-python", "tasks": tasks},
            )
    return report


if __name__ == "__main__":
    app()
