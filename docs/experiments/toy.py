"""The two circuits of mini-Python over several seeds.

    python -m docs.experiments.toy quotes                -> docs/results/quotes.json
    python -m docs.experiments.toy brackets              -> docs/results/brackets.json

Each seed trains its own model and prunes it, by the default objective and by the published one; what has been run is
kept under out/ and not run again. Nothing was tuned on seeds from 20 on.
"""

import statistics
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from circuits.circuit.circuit import Circuit
from circuits.circuit.score import ORDER
from circuits.commands.demo import extract
from circuits.files import once, write_json, write_results
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.training.config import TrainConfig
from circuits.training.loop import Training
from circuits.trust import TrustConfig, trust_report
from circuits.trust.margins import SURE
from docs.experiments.runs import kept_training, published
from tasks import load_task

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)
RESULTS, KEPT = Path("docs/results"), Path("out/toy")
MAX_NODES, MAX_EDGES, MAX_LOSS, MIN_ACCURACY = 12, 9, 0.15, 0.98
"""What a seed must reach to count as meeting the target, besides the margins of `circuits.trust`."""
HEADLINES = (
    *("n_nodes", "n_edges", "task_loss", "uncalibrated_task_loss", "task_accuracy"),
    *("margin_error", "margin_ratio", "margin_correlation", "adversarial_loss", "stochastic_loss"),
)
PUBLISHED = ("n_nodes", "n_edges", "task_loss", "task_accuracy", "uncalibrated_task_loss")
OnlyPublished = Annotated[
    bool, typer.Option("--only-published", help="By the published objective alone, without a trust report.")
]
Results = Annotated[Path | None, typer.Option(help="File to write (default: docs/results/TASK.json).")]
Order = Annotated[
    float, typer.Option(help="Correlation within an answer to ask of circuits (default: none).")
]
First = Annotated[int, typer.Option(help="The first seed.")]
Seeds = Annotated[int, typer.Option(help="Number of seeds.")]


@app.command()
def quotes(
    first: First = 20,
    seeds: Seeds = 10,
    only_published: OnlyPublished = False,
    order: Order = 0.0,
    results: Results = None,
) -> None:
    """Closing quotes."""
    circuits_over_seeds("quotes", range(first, first + seeds), only_published, order, results)


@app.command()
def brackets(
    first: First = 20,
    seeds: Seeds = 10,
    only_published: OnlyPublished = False,
    order: Order = 0.0,
    results: Results = None,
) -> None:
    """Bracket depth."""
    circuits_over_seeds("brackets", range(first, first + seeds), only_published, order, results)


def circuits_over_seeds(
    task: str, seeds: range, only_published: bool = False, order: float = 0.0, results: Path | None = None
) -> dict[str, Any]:
    """Train, prune and report on once per seed; medians, ranges, and how many meet the target, in docs/results."""
    runs = []
    for seed in seeds:
        runs.append(published_seed(task, seed) if only_published else one_seed(task, seed, order))
        Console().print({key: runs[-1].get(key) for key in ("seed", *HEADLINES, "failed_checks")})
    command = f"python -m docs.experiments.toy {task} --first {seeds.start} --seeds {len(seeds)}"
    command += (" --only-published" if only_published else "") + (f" --order {order:g}" if order else "")
    return write_results(
        results or RESULTS / f"{task}.json",
        command=command if results is None else f"{command} --results {results}",
        seeds=seeds,
        seconds=sum(run["seconds"] for run in runs),
        numbers=_published_numbers(runs) if only_published else _numbers(runs),
    )


def _published_numbers(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, and how many are small, right after calibration, and 1-minimal."""
    good = [
        run["n_nodes"] <= MAX_NODES
        and run["n_edges"] <= MAX_EDGES
        and run["task_loss"] <= MAX_LOSS
        and run["task_accuracy"] >= MIN_ACCURACY
        and run["one_minimal"]
        for run in runs
    ]
    return {
        **{key: statistics.median(run[key] for run in runs) for key in PUBLISHED},
        "one_minimal": all(run["one_minimal"] for run in runs),
        "seeds_meeting_target": sum(good),
        "seeds_total": len(runs),
        "runs": runs,
    }


def _numbers(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        **{key: statistics.median(run[key] for run in runs) for key in HEADLINES},
        "range": {key: [min(run[key] for run in runs), max(run[key] for run in runs)] for key in HEADLINES},
        "one_minimal": all(run["one_minimal"] for run in runs),
        "seeds_meeting_target": sum(map(meets_target, runs)),
        "seeds_passing_trust": sum(meets_target(run) and not run["failed_checks"] for run in runs),
        "seeds_passing_trust_at_any_size": sum(not run["failed_checks"] for run in runs),
        "failed_checks": dict(Counter(name for run in runs for name in run["failed_checks"])),
        "published": {key: statistics.median(run["published"][key] for run in runs) for key in HEADLINES},
        "seeds_total": len(runs),
        "runs": runs,
    }


def meets_target(run: dict[str, Any]) -> bool:
    """Whether one run's circuit is small, right, as sure as the model, in the model's order, and 1-minimal."""
    small = run["n_nodes"] <= MAX_NODES and run["n_edges"] <= MAX_EDGES
    right = run["uncalibrated_task_loss"] <= MAX_LOSS and run["task_accuracy"] >= MIN_ACCURACY
    like = SURE[0] <= run["margin_ratio"] <= SURE[1] and run["margin_correlation"] >= ORDER
    return bool(small and right and like and run["one_minimal"])


def one_seed(task: str, seed: int, order: float = 0.0) -> dict[str, Any]:
    """The report of one seed; its model is trained once for both tasks."""
    config, asked = TrainConfig.toy(seed=seed), PruneConfig(seed=seed, target_order=order)
    settings = {
        "train": config.to_json(),
        "prune": asked.to_json(),
        "trust": TrustConfig(seed=seed).to_json(),
    }
    folder = KEPT / (f"{task}-{seed}-order" if order else f"{task}-{seed}")
    return once(folder.with_suffix(".json"), settings, partial(_extract, config, task, asked, folder))


def published_seed(task: str, seed: int) -> dict[str, Any]:
    """The report of one seed by the published objective."""
    config, prune = TrainConfig.toy(seed=seed), published(seed=seed)
    settings = {"train": config.to_json(), "prune": prune.to_json()}
    folder = KEPT / f"{task}-{seed}-published"
    return once(
        folder.with_suffix(".json"),
        settings,
        lambda: extract(_trained(config), task, folder, progress=False, config=prune),
    )


def _extract(config: TrainConfig, task: str, how: PruneConfig, folder: Path) -> dict[str, Any]:
    """The circuit of these settings with its trust report, and beside it the published objective's.

    Each of the three is kept by itself, so that what was stopped between them goes on there.
    """
    training = _trained(config)
    trust = TrustConfig(seed=config.seed)
    settings = {"train": config.to_json(), "prune": how.to_json()}
    found = once(
        folder / "found.json",
        settings,
        lambda: extract(training, task, folder, progress=False, config=how),
    )
    trusted = once(
        folder / "trusted.json",
        {**settings, "trust": trust.to_json()},
        partial(_report, training, folder, trust),
    )
    beside = once(
        folder / "beside.json",
        {"train": config.to_json()},
        partial(_beside, training, task, folder),
    )
    return {
        **found,
        "scope": Circuit.load(folder / "circuit.json").metrics["scope"],
        "failed_checks": trusted["failed"],
        "published": {key: value for key, value in beside.items() if key != "seconds"},
    }


def _report(training: Training, folder: Path, config: TrustConfig) -> dict[str, Any]:
    circuit = Circuit.load(folder / "circuit.json")
    report = trust_report(training.model, circuit, config=config, corpus=training.corpus)
    write_json(folder / "trust.json", report.to_json())
    return {"failed": report.failed}


def _beside(training: Training, task: str, folder: Path) -> dict[str, Any]:
    """The circuit of the published objective on the same model, in headlines."""
    config = PruneConfig(seed=training.config.seed, objective="task")
    circuit = prune(training.model, load_task(task), config, corpus=training.corpus, progress=False)
    circuit.save(folder / "published.json")
    beside = {key: circuit.metrics.get(key) for key in HEADLINES}
    return {**beside, "n_nodes": circuit.n_nodes, "n_edges": circuit.n_edges}


def _trained(config: TrainConfig) -> Training:
    return kept_training(KEPT / f"model-{config.seed}.safetensors", config)


if __name__ == "__main__":
    app()
