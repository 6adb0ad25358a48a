"""Nonsense controls: a model in which they separate, and one in which they do not and the report says so.

    python -m docs.experiments.controls    -> docs/results/controls.json

The demo model is held against a dense model of the same validation loss, whose gates are trained longer and faster:
where every weight is there, gates alone can make a "circuit" for answers that the model never learned. What has
been run is kept under out/pairs and not run again.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from circuits.circuit.circuit import Circuit
from circuits.files import once, write_results
from circuits.training.loop import Training
from circuits.trust import TrustConfig, trust_report
from docs.experiments.runs import PAIRS, model_pair, pruned
from docs.experiments.sparse_vs_dense import comparable
from tasks import load_task

RESULTS, TASK = Path("docs/results/controls.json"), "quotes"
BUDGETS: dict[str, dict[str, Any]] = {
    "default": {},
    "generous": {"control_steps": 500, "control_lr": 3e-2},
}
"""Gate training of the controls: the report's own, and five times as long at three times the learning rate."""
CASES = (("sparse", "default"), ("sparse", "generous"), ("dense", "default"), ("dense", "generous"))
CONTROLS = {
    "swapped_loss": "swapped answers",
    "unrelated_loss": "unrelated answers",
    "random_model_loss": "random model",
}

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def run(
    seed: Annotated[int, typer.Option(help="Decides models, gates and prompts.")] = 0,
    steps: Annotated[int, typer.Option(help="Training steps of the demo model.")] = 2000,
    results: Annotated[Path, typer.Option(help="File to write.")] = RESULTS,
    kept: Annotated[Path, typer.Option(help="Folder for models and circuits.")] = PAIRS,
) -> dict[str, Any]:
    """Report on the quote circuits of both models under both budgets."""
    sparse, dense = model_pair(kept / str(seed), seed=seed, steps=steps)
    models, cases = {"sparse": sparse, "dense": dense}, {}
    for name, budget in CASES:
        folder = kept / str(seed) / name
        cases[f"{name}, {budget}"] = case(models[name], folder, TrustConfig(seed=seed, **BUDGETS[budget]))
        Console().print({name: budget, **cases[f"{name}, {budget}"]})
    demo = cases["sparse, default"]
    return write_results(
        results,
        command=f"python -m docs.experiments.controls --seed {seed} --steps {steps}",
        seeds=[seed],
        seconds=sum(one["seconds"] for one in cases.values()),
        numbers={
            **{key: demo[key] for key in ("true_loss", *CONTROLS)},
            "val_loss": {name: training.val_loss for name, training in models.items()},
            "budgets": {name: TrustConfig(**budget).to_json() for name, budget in BUDGETS.items()},
            "cases": cases,
        },
    )


def case(training: Training, folder: Path, config: TrustConfig) -> dict[str, Any]:
    """The controls, and the verdict of the whole report, on the model's quote circuit."""
    settings = comparable(config.seed)
    if not pruned(training, TASK, settings, folder)["solved"]:
        raise ValueError(
            f"steps: the model in {folder} cannot do {TASK!r}; expected one that can. Train longer."
        )
    circuit = Circuit.load(folder / f"{TASK}.circuit.json")
    keys = {"circuit": circuit.model_hash, "prune": settings.to_json(), "trust": config.to_json()}
    path = folder / f"controls-{config.control_steps}.json"
    return once(path, keys, partial(_reported, training, circuit, config))


def _reported(training: Training, circuit: Circuit, config: TrustConfig) -> dict[str, Any]:
    report = trust_report(training.model, circuit, load_task(TASK), config, corpus=training.corpus)
    return {
        "true_loss": report[CONTROLS["swapped_loss"]].baseline,
        **{key: report[name].value for key, name in CONTROLS.items()},
        "n_open": {key: report[name].details["n_open"] for key, name in CONTROLS.items()},
        "n_nodes": circuit.n_nodes,
        "n_edges": circuit.n_edges,
        "failed": report.failed,
        "verdict": report.verdict,
    }


if __name__ == "__main__":
    app()
