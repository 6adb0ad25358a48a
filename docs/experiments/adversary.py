"""Circuits and what they leave out: losses while the rest takes its worst values, and the price of pruning against it.

    python -m docs.experiments.adversary sizes     -> docs/results/size_faithfulness.json
    python -m docs.experiments.adversary attack    -> docs/results/adversarial.json

On the quote models of `docs.experiments.toy`. What has been run is kept under out/adversary and not run again.
"""

import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from circuits.circuit.adversary import Attack
from circuits.circuit.circuit import Circuit
from circuits.circuit.criterion import Criterion
from circuits.circuit.evaluator import Evaluator
from circuits.files import once, write_results
from circuits.model.compute import frozen
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.training.config import TrainConfig
from circuits.training.loop import Training
from circuits.trust import TrustConfig, trust_report
from docs.experiments.runs import kept_training
from tasks import load_task

RESULTS, KEPT, MODELS = Path("docs/results"), Path("out/adversary"), Path("out/toy")
TASK = "quotes"
TARGETS = (0.3, 0.12, 0.04, 0.01)
"""Mean square errors of the margins, over their mean square, that circuits may have."""
KINDS: dict[str, dict[str, Any]] = {
    "published": {"objective": "task"},
    "mean": {},
    "resample": {"ablation": "resample"},
    "stochastic": {"ablation": "stochastic"},
    "adversarial": {"ablation": "adversarial", "starts": 1},
}
"""Settings of the circuits that are attacked, by name."""
FIERCE = Attack(steps=20, starts=6, seed=1000)
"""Twice the steps and starts of pruning's own attack, from other places."""
SAID = ("n_nodes", "n_edges", "margin_error", "margin_ratio", "margin_correlation", "uncalibrated_task_loss")

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)
First = Annotated[int, typer.Option(help="The first seed.")]
Seeds = Annotated[int, typer.Option(help="Number of seeds.")]


@app.command()
def sizes(first: First = 20, seeds: Seeds = 3) -> None:
    """Size of a circuit against how near its margins are to the model's, and which passes its own report."""
    runs = [_sized(seed, target) for seed in range(first, first + seeds) for target in TARGETS]
    numbers = {
        "targets": list(TARGETS),
        "medians": {str(target): _medians([r for r in runs if r["target"] == target]) for target in TARGETS},
        "smallest_passing": {
            str(seed): min(
                (r["n_nodes"], r["n_edges"]) for r in runs if r["seed"] == seed and not r["failed"]
            )
            if any(r["seed"] == seed and not r["failed"] for r in runs)
            else None
            for seed in range(first, first + seeds)
        },
        "runs": runs,
    }
    _written("size_faithfulness", "sizes", range(first, first + seeds), runs, numbers)


@app.command()
def attack(first: First = 20, seeds: Seeds = 3) -> None:
    """Losses of each kind of circuit under each kind of ablation, and their sizes."""
    runs = [_attacked(seed, kind) for seed in range(first, first + seeds) for kind in KINDS]
    by_kind = {kind: _medians([r for r in runs if r["kind"] == kind]) for kind in KINDS}
    numbers = {
        "loss_before": by_kind["mean"]["adversarial"],
        "loss_after": by_kind["adversarial"]["adversarial"],
        "sizes": {kind: [found["n_nodes"], found["n_edges"]] for kind, found in by_kind.items()},
        "medians": by_kind,
        "runs": runs,
    }
    _written("adversarial", "attack", range(first, first + seeds), runs, numbers)


def _written(
    name: str, command: str, seeds: range, runs: list[dict[str, Any]], numbers: dict[str, Any]
) -> None:
    write_results(
        RESULTS / f"{name}.json",
        command=f"python -m docs.experiments.adversary {command} --first {seeds.start} --seeds {len(seeds)}",
        seeds=seeds,
        seconds=sum(run["seconds"] for run in runs),
        numbers=numbers,
    )
    Console().print(numbers["medians"])


def _medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Of every plain number of the runs."""
    names = [name for name, value in runs[0].items() if isinstance(value, int | float)]
    return {name: statistics.median(run[name] for run in runs) for name in names}


def _sized(seed: int, target: float) -> dict[str, Any]:
    config = PruneConfig(seed=seed, target_loss=target)
    found = once(KEPT / f"size-{seed}-{target}.json", config.to_json(), partial(_trusted, seed, config))
    return {"seed": seed, "target": target, **found}


def _trusted(seed: int, config: PruneConfig) -> dict[str, Any]:
    training, circuit = _circuit(seed, config, f"size-{seed}-{config.target_loss}")
    report = trust_report(
        training.model, circuit, config=TrustConfig(seed=seed, control_steps=0), corpus=training.corpus
    )
    return {**_said(circuit), "failed": report.failed}


def _attacked(seed: int, kind: str) -> dict[str, Any]:
    config = PruneConfig(**{"seed": seed, **KINDS[kind]})
    found = once(
        KEPT / f"attack-{seed}-{kind}.json", config.to_json(), partial(_under_each, seed, kind, config)
    )
    return {"seed": seed, "kind": kind, **found}


def _under_each(seed: int, kind: str, config: PruneConfig) -> dict[str, Any]:
    """Errors of the margins of one circuit under mean, stochastic and adversarial ablation, on test prompts."""
    training, circuit = _circuit(seed, config, f"attack-{seed}-{kind}")
    task = load_task(TASK)
    means = _circuit(seed, PruneConfig(seed=seed), f"attack-{seed}-mean")[1].values
    judge = Evaluator(training.model, task, Criterion.of(task, seed=seed), dict(means))
    parts = (circuit.nodes, circuit.edges)
    with frozen(training.model):
        return {
            **_said(circuit),
            "mean": judge.scored(judge.test, *parts).loss,
            "stochastic": judge.at_random(judge.test, *parts).loss,
            "adversarial": judge.under_attack(judge.test, *parts, attack=FIERCE).loss,
        }


def _said(circuit: Circuit) -> Mapping[str, Any]:
    summary = circuit.summary()
    return {name: summary[name] for name in SAID}


def _circuit(seed: int, config: PruneConfig, name: str) -> tuple[Training, Circuit]:
    """The circuit of these settings, pruned once."""
    training = kept_training(MODELS / f"model-{seed}.safetensors", TrainConfig.toy(seed=seed))
    path = KEPT / f"{name}.circuit.json"
    if path.exists() and Circuit.load(path).metrics["prune"] == config.to_json():
        return training, Circuit.load(path)
    circuit = prune(training.model, load_task(TASK), config, corpus=training.corpus, progress=False)
    circuit.save(path)
    return training, circuit


if __name__ == "__main__":
    app()
