"""Larger is smaller: at a fixed number of nonzero weights, what does width do to the loss and to the circuits?

    python -m docs.experiments.frontier --seeds 3    -> docs/results/frontier.json

Every width has as many nonzeros in its blocks, and as many in its embeddings, as the toy recipe has at width 128.
What has been run is kept under out/frontier and not run again.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from circuits.files import mean, write_results
from circuits.training.config import TrainConfig
from docs.experiments.runs import kept_training, pruned, published

RESULTS, KEPT = Path("docs/results/frontier.json"), Path("out/frontier")
WIDTHS = (64, 128, 256)
TASKS = ("quotes", "brackets")
REFERENCE = 128
"""Width at which the densities are those of the toy recipe."""
MIN_ACCURACY = 0.97
"""Accuracy asked of a circuit: a little less than usual, so that narrow models are not left out."""

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def run(
    seeds: Annotated[int, typer.Option(help="Models of each width.")] = 3,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 1000,
    results: Annotated[Path, typer.Option(help="File to write.")] = RESULTS,
    kept: Annotated[Path, typer.Option(help="Folder for models and circuits.")] = KEPT,
) -> dict[str, Any]:
    """Train and prune every width with every seed; written anew after each model."""
    runs: list[dict[str, Any]] = []
    report: dict[str, Any] = {}
    command = f"python -m docs.experiments.frontier --seeds {seeds} --steps {steps}"
    for seed in range(seeds):
        for width in WIDTHS:
            folder = kept / f"{width}-{seed}"
            training = kept_training(folder / "model.safetensors", at_width(width, seed=seed, steps=steps))
            circuits = {
                task: pruned(
                    training, task, published(seed=seed, starts=2, target_accuracy=MIN_ACCURACY), folder
                )
                for task in TASKS
            }
            runs.append(
                {
                    "seed": seed,
                    "width": width,
                    "val_loss": training.val_loss,
                    "n_nonzero": training.model.n_nonzero(),
                    "density": training.model.density(),
                    "seconds": training.seconds + sum(one["seconds"] for one in circuits.values()),
                    "circuits": circuits,
                }
            )
            Console().print(
                {"width": width, "seed": seed, "val_loss": training.val_loss}
                | {task: one.get("n_edges") for task, one in circuits.items()}
            )
            report = write_results(
                results,
                command=command,
                seeds=range(seed + 1),
                seconds=sum(one["seconds"] for one in runs),
                numbers=_numbers(runs),
            )
    return report


def at_width(width: int, *, seed: int, steps: int) -> TrainConfig:
    """The toy recipe at another width, with as many nonzeros in blocks and embeddings as it has at 128.

    No minimum of alive weights: at this budget a wide model cannot keep one for every unit.
    """
    toy = TrainConfig.toy()
    assert toy.model.d_model == REFERENCE
    assert toy.embed_density is not None
    scale = REFERENCE / width
    model = replace(
        toy.model,
        d_model=width,
        n_heads=round(toy.model.n_heads / scale),
        d_mlp=round(toy.model.d_mlp / scale),
    )
    return replace(
        toy,
        model=model,
        density=toy.density * scale**2,
        embed_density=toy.embed_density * scale,
        min_alive=0,
        seed=seed,
        steps=steps,
    )


def _numbers(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds for each width; sizes over the runs, of all tasks, whose model does the task."""
    widths = sorted({one["width"] for one in runs})
    by_width = {width: [one for one in runs if one["width"] == width] for width in widths}
    return {
        "widths": widths,
        **{
            key: [mean([one[key] for one in by_width[w]]) for w in widths]
            for key in ("val_loss", "n_nonzero")
        },
        **{key: [_mean_size(by_width[w], TASKS, key) for w in widths] for key in ("n_nodes", "n_edges")},
        "tasks": {
            task: {
                "n_edges": [_mean_size(by_width[w], [task], "n_edges") for w in widths],
                "n_solved": [sum(one["circuits"][task]["solved"] for one in by_width[w]) for w in widths],
            }
            for task in TASKS
        },
        "runs": list(runs),
    }


def _mean_size(runs: Sequence[dict[str, Any]], tasks: Sequence[str], key: str) -> float | None:
    sizes = [one["circuits"][task][key] for one in runs for task in tasks if one["circuits"][task]["solved"]]
    return mean(sizes) if sizes else None


if __name__ == "__main__":
    app()
