"""What comes back when circuits are looked for again, and whether one shares little with a second that does the same.

    python -m docs.experiments.stability --first 30 --seeds 2    -> docs/results/stability.json

For each of the toy models of `docs.experiments.toy`, and each task: three seeds of gates and prompts times three
settings, the other kinds of prompts, and a search for a rival of the first circuit. What has been run is kept under
out/stability.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from circuits.circuit.circuit import Circuit
from circuits.circuit.score import UnsolvedError
from circuits.files import once, write_results
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.pruning.redundancy import rivals
from circuits.pruning.stability import searches, stability
from circuits.training.config import TrainConfig
from circuits.training.loop import Training
from docs.experiments.runs import kept_training
from tasks import Task, load_task

RESULTS, KEPT, MODELS = Path("docs/results/stability.json"), Path("out/stability"), Path("out/toy")
TASKS = ("quotes", "brackets")

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def run(
    first: Annotated[int, typer.Option(help="The first seed.")] = 30,
    seeds: Annotated[int, typer.Option(help="Models.")] = 2,
    results: Annotated[Path, typer.Option(help="File to write.")] = RESULTS,
) -> dict[str, Any]:
    """Prune every model again and again for each task; written anew after each card."""
    cards: list[dict[str, Any]] = []
    report: dict[str, Any] = {}
    for seed in range(first, first + seeds):
        for task in TASKS:
            cards.append(one_card(seed, task))
            Console().print({key: cards[-1][key] for key in ("seed", "task", "counts", "situation")})
            report = write_results(
                results,
                command=f"python -m docs.experiments.stability --first {first} --seeds {seeds}",
                seeds=range(first, seed + 1),
                seconds=sum(card["seconds"] for card in cards),
                numbers=numbers(cards),
            )
    return report


def numbers(cards: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of core, contingent and noise nodes for each card, by task, and where a rival was found."""
    tasks = list(dict.fromkeys(card["task"] for card in cards))
    by_kind = {
        kind: {task: [c["counts"]["nodes"][kind] for c in cards if c["task"] == task] for task in tasks}
        for kind in ("core", "contingent", "noise")
    }
    found = {task: [c["situation"] == "redundant" for c in cards if c["task"] == task] for task in tasks}
    return {**by_kind, "rival_found": found, "cards": cards}


def one_card(seed: int, name: str) -> dict[str, Any]:
    """The card of one model and task, and the situation of its first circuit."""
    training = kept_training(MODELS / f"model-{seed}.safetensors", TrainConfig.toy(seed=seed))
    task, folder, found, seconds = load_task(name), KEPT / f"{name}-{seed}", {}, 0.0
    for called, prompts, config in searches(task, PruneConfig(seed=seed), n_ctx=training.model.n_ctx):
        path = folder / f"{called.replace(' ', '-').replace(',', '')}.json"
        settings = {"called": called, "train": training.config.to_json(), "prune": config.to_json()}
        made = once(path, settings, partial(_pruned, training, prompts, config, path))
        seconds += made["seconds"]
        if made["solved"]:
            found[called] = Circuit.load(path.with_suffix(".circuit.json"))
    card = stability(found)
    first = next(iter(found.values()))
    rival = once(folder / "rival.json", _said(first), partial(_rival, training, task, first))
    return {
        "seed": seed,
        "task": name,
        "counts": card.counts(),
        "card": card.to_json(),
        "situation": rival["situation"],
        "verdict": rival["verdict"],
        "seconds": seconds + rival["seconds"],
    }


def _pruned(training: Training, task: Task, config: PruneConfig, path: Path) -> dict[str, Any]:
    """One circuit, kept beside `path`; or that the model cannot do these prompts."""
    try:
        circuit = prune(training.model, task, config, corpus=training.corpus, progress=False)
    except UnsolvedError:
        return {"solved": False}
    circuit.save(path.with_suffix(".circuit.json"))
    return {"solved": True}


def _said(circuit: Circuit) -> dict[str, Any]:
    return {"model": circuit.model_hash, "nodes": [str(node) for node in circuit.nodes]}


def _rival(training: Training, task: Task, circuit: Circuit) -> dict[str, Any]:
    found = rivals(training.model, task, circuit, corpus=training.corpus, progress=False)
    return {
        "situation": found.situation,
        "verdict": found.verdict,
        "core": len(found.core),
        "n_nodes": circuit.n_nodes,
        "rival": found.rival.n_nodes if found.rival else None,
    }


if __name__ == "__main__":
    app()
