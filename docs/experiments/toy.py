"""The two circuits of mini-Python over several seeds, and real Python against counting trigrams.

    python -m docs.experiments.toy quotes --seeds 5      -> docs/results/quotes.json
    python -m docs.experiments.toy brackets --seeds 5    -> docs/results/brackets.json
    python -m docs.experiments.toy python --minutes 20   -> docs/results/python_loss.json

Each seed trains its own model and prunes it; what has been run is kept under out/ and not run again.
"""

import statistics
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from circuits.commands.demo import extract
from circuits.files import once, write_results
from circuits.pruning.config import PruneConfig
from circuits.training.config import TrainConfig
from circuits.training.loop import Training, train
from docs.experiments.runs import kept_training
from tasks import load_corpus, trigram_loss

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)
RESULTS, KEPT = Path("docs/results"), Path("out/toy")
MAX_NODES, MAX_EDGES, MAX_LOSS, MIN_ACCURACY = 12, 9, 0.15, 0.98
"""What a seed must reach to count as meeting the target."""


@app.command()
def quotes(seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 5) -> None:
    """Closing quotes."""
    circuits_over_seeds("quotes", seeds)


@app.command()
def brackets(seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 5) -> None:
    """Bracket depth."""
    circuits_over_seeds("brackets", seeds)


@app.command()
def python(
    minutes: Annotated[float, typer.Option(help="Training time.")] = 20.0,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """A weight-sparse model of real Python, and the trigram baseline on the same split."""
    config = TrainConfig.python(minutes=minutes, seed=seed)
    run = once(KEPT / f"python-{seed}.json", config.to_json(), partial(_train_python, config))
    numbers = {"minutes_training": minutes, **{k: v for k, v in run.items() if k != "seconds"}}
    command = f"python -m docs.experiments.toy python --minutes {minutes:g} --seed {seed}"
    report = write_results(
        RESULTS / "python_loss.json", command=command, seeds=[seed], seconds=run["seconds"], numbers=numbers
    )
    Console().print({key: report[key] for key in ("val_loss", "trigram_loss", "minutes")})


def circuits_over_seeds(task: str, n_seeds: int) -> dict[str, Any]:
    """Train and prune once per seed; medians, and how many seeds meet the target, in docs/results."""
    runs = []
    for seed in range(n_seeds):
        run = one_seed(task, seed)
        runs.append(run)
        Console().print({k: run[k] for k in ("seed", "n_nodes", "n_edges", "task_loss", "task_accuracy")})
    numbers = {
        **{
            key: statistics.median(run[key] for run in runs)
            for key in ("n_nodes", "n_edges", "task_loss", "task_accuracy")
        },
        "one_minimal": all(run["one_minimal"] for run in runs),
        "seeds_meeting_target": sum(map(meets_target, runs)),
        "seeds_total": n_seeds,
        "runs": runs,
    }
    return write_results(
        RESULTS / f"{task}.json",
        command=f"python -m docs.experiments.toy {task} --seeds {n_seeds}",
        seeds=range(n_seeds),
        seconds=sum(run["seconds"] for run in runs),
        numbers=numbers,
    )


def meets_target(run: dict[str, Any]) -> bool:
    """Whether one run's circuit is small, right, and 1-minimal."""
    small = run["n_nodes"] <= MAX_NODES and run["n_edges"] <= MAX_EDGES
    right = run["task_loss"] <= MAX_LOSS and run["task_accuracy"] >= MIN_ACCURACY
    return small and right and run["one_minimal"]


def one_seed(task: str, seed: int) -> dict[str, Any]:
    """The report of one seed; its model is trained once for both tasks."""
    config, prune = TrainConfig.toy(seed=seed), PruneConfig(seed=seed)
    settings = {"train": config.to_json(), "prune": prune.to_json()}
    return once(KEPT / f"{task}-{seed}.json", settings, partial(_extract, config, task))


def _extract(config: TrainConfig, task: str) -> dict[str, Any]:
    return extract(_trained(config), task, KEPT / f"{task}-{config.seed}", progress=False)


def _trained(config: TrainConfig) -> Training:
    return kept_training(KEPT / f"model-{config.seed}.safetensors", config)


def _train_python(config: TrainConfig) -> dict[str, Any]:
    result = train(config, checkpoint=KEPT / "python.interrupted.safetensors")
    result.save(KEPT / f"python-{config.seed}.safetensors")
    return {
        "val_loss": result.val_loss,
        "trigram_loss": trigram_loss(load_corpus("python")),
        "density": result.model.density(),
        "n_nonzero": result.model.n_nonzero(),
        "steps": result.history[-1]["step"],
        "history": [entry for entry in result.history if "val_loss" in entry],
    }


if __name__ == "__main__":
    app()
