"""What gradients on the support alone cost: validation loss against exact gradients, on mini-Python.

    python -m docs.experiments.support --seeds 3    -> docs/results/support_gradients.json

Both start from the same weights and see the same batches. What has been run is kept under out/support and not run
again.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from circuits.files import mean, write_results
from circuits.training.config import TrainConfig
from docs.experiments.runs import kept_training

RESULTS, KEPT = Path("docs/results/support_gradients.json"), Path("out/support")
WIDTHS = (128, 256)
GRADS: tuple[Literal["exact", "support"], ...] = ("exact", "support")

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def run(
    seeds: Annotated[int, typer.Option(help="Pairs of models of each width.")] = 3,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 800,
    results: Annotated[Path, typer.Option(help="File to write.")] = RESULTS,
    kept: Annotated[Path, typer.Option(help="Folder for models.")] = KEPT,
) -> dict[str, Any]:
    """Train both ways at every width with every seed; written anew after each pair."""
    runs: list[dict[str, Any]] = []
    report: dict[str, Any] = {}
    for seed in range(seeds):
        for width in WIDTHS:
            for grad in GRADS:
                config = replace(
                    at_width(width), weight_gradient=grad, seed=seed, steps=steps, val_every=steps
                )
                training = kept_training(kept / f"{width}-{seed}-{grad}.safetensors", config)
                one = {"seed": seed, "width": width, "grad": grad, "seconds": training.seconds}
                runs.append({**one, "val_loss": training.val_loss})
                Console().print(runs[-1])
            report = write_results(
                results,
                command=f"python -m docs.experiments.support --seeds {seeds} --steps {steps}",
                seeds=range(seed + 1),
                seconds=sum(one["seconds"] for one in runs),
                numbers=numbers(runs),
            )
    return report


def at_width(width: int) -> TrainConfig:
    """The toy recipe at another width: the same density, heads of the same size."""
    toy = TrainConfig.toy()
    scale = width / toy.model.d_model
    model = replace(
        toy.model,
        d_model=width,
        n_heads=round(toy.model.n_heads * scale),
        d_mlp=round(toy.model.d_mlp * scale),
    )
    return replace(toy, model=model)


def numbers(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Loss, support over exact: a mean over seeds for each width, and the worst of the widths."""
    by_width = {}
    for width in sorted({one["width"] for one in runs}):
        exact, support = (
            [one for one in runs if one["width"] == width and one["grad"] == grad] for grad in GRADS
        )
        pairs = list(zip(exact, support, strict=True))
        by_width[str(width)] = {
            "loss_ratio": mean([b["val_loss"] / a["val_loss"] for a, b in pairs]),
            **{f"val_loss_{grad}": mean([one["val_loss"] for one in part])
               for grad, part in zip(GRADS, (exact, support), strict=True)},
        }  # fmt: skip
    return {
        "loss_ratio": max(one["loss_ratio"] for one in by_width.values()),
        "by_width": by_width,
        "runs": list(runs),
    }


if __name__ == "__main__":
    app()
