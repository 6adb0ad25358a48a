"""Bridges, steering and dilution: one dense and one sparse model a seed, prepared once and used by all three.

    python -m docs.experiments.bridges bridges --seeds 3     -> docs/results/bridges.json
    python -m docs.experiments.bridges steering --seeds 3    -> docs/results/steering.json
    python -m docs.experiments.bridges dilution --seeds 1    -> docs/results/dilution.json
    python -m docs.experiments.bridges page                  -> docs/explanation/bridges.md, its tables and pictures

The dense model is trained first; then the sparse one, together with the bridges. What is finished stays in the
`out` folder and is taken up again as long as the settings are the same.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Annotated, Any

import typer

from circuits.bridges import BridgeSet
from circuits.bridges.dilution import attack, dilution_sweep
from circuits.bridges.steering import channel_effects, circuit_channels, steer
from circuits.circuit.circuit import Circuit
from circuits.circuit.compare import union
from circuits.files import mean, once, write_results
from docs.experiments.bridge_models import BridgeSetup, circuits_of, prepare
from docs.experiments.bridge_page import write_bridge_page
from tasks import Batch, load_task

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)
OUT, RESULTS = Path("out/bridges"), Path("docs/results")
N_CIRCUITS = 4
"""Circuits whose channels are steered together."""
LONG = 96
"""Context of the models that are asked for the depth of long lists."""
ATTACKED = (8, 10, 12, 14, 16)
"""Elements of the lists that are searched for failures: more than in any list of the training text (6)."""
Seeds = Annotated[int, typer.Option(help="Number of seeds.")]
Steps = Annotated[int, typer.Option(help="Optimiser steps of the sparse model.")]


def run_bridges(
    *,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 2500,
    out: Path = OUT,
    results: Path = RESULTS / "bridges.json",
    progress: bool = True,
) -> dict[str, Any]:
    """Train, bridge and measure for each seed, and write the results file; returns its content."""
    runs = []
    for seed in seeds:
        bridges = prepare(BridgeSetup.toy(seed=seed, steps=steps), out / f"{seed}", progress=progress)
        facts = {"density": bridges.sparse.density(), "n_nonzero": bridges.sparse.n_nonzero()}
        facts["seconds"] = bridges.metrics["seconds"]
        runs.append({"seed": seed, **bridges.summary(), **facts, "locations": bridges.metrics["locations"]})
    numbers = {
        "min_recovered_dense_to_sparse": _least("min_recovered_dense_to_sparse", runs),
        "min_recovered_sparse_to_dense": _least("min_recovered_sparse_to_dense", runs),
        "runs": runs,
    }
    return _write(results, "bridges", seeds, steps, numbers)


def run_steering(
    *,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 2500,
    out: Path = OUT,
    results: Path = RESULTS / "steering.json",
    progress: bool = True,
) -> dict[str, Any]:
    """Steer the closing quote for each seed, and write the results file; returns its content.

    A model may hold the quote more than once, and a smallest circuit keeps one copy. So the channels are those of
    the union of several circuits of the sparse model, ranked by what they do in it. Location and number of channels
    are chosen on validation prompts; what is reported is measured on test prompts.
    """
    runs = _each_seed("quotes", steer_task, seeds, steps, out, progress, n_circuits=N_CIRCUITS)
    keys = ("p_foil_before", "p_foil_after", "control_change")
    numbers: dict[str, Any] = {key: mean([run[key] for run in runs]) for key in keys}
    numbers |= {
        "strength": max(run["strength"] for run in runs),
        "monotone": all(run["monotone"] for run in runs),
        "p_foil_before_worst": max(run["p_foil_before"] for run in runs),
        "p_foil_after_worst": min(run["p_foil_after"] for run in runs),
        "control_change_worst": max(run["control_change"] for run in runs),
    }
    return _write(results, "steering", seeds, steps, {**numbers, "runs": runs})


def steer_task(
    bridges: BridgeSet,
    circuit: Circuit,
    *,
    seed: int = 0,
    n: int = 128,
    n_channels: Sequence[int] = (1, 2, 4, 8),
) -> dict[str, Any]:
    """Steer test prompts by channels of the circuit, at the location and by the number that validation prompts choose.

    Of the choices that move validation prompts over 0.9 while the control stays under 0.1, the fewest channels win.
    """
    task = load_task(circuit.task)
    val, test = task.batch(32, split="val", seed=seed), task.batch(n, split="test", seed=seed)
    tried = [
        _try(bridges, val, str(pair), channels)
        for pair in bridges.pairs
        for channels in _leading(bridges, circuit, val, pair.sparse, n_channels)
    ]
    works = [t for t in tried if t["p_foil_after"] > 0.9 and t["control_change"] < 0.1 and t["monotone"]]
    if works:
        best = min(works, key=lambda t: (len(t["channels"]), -t["p_foil_after"]))
    else:
        best = max(tried, key=lambda t: t["p_foil_after"] - t["control_change"])
    result = steer(bridges, test, best["location"], best["channels"], seed=seed)
    return {**result.to_json(), "tried": tried, "circuit": circuit.summary()}


def run_dilution(
    *,
    seeds: Sequence[int] = (0,),
    steps: int = 2500,
    n_ctx: int = LONG,
    out: Path = OUT,
    results: Path = RESULTS / "dilution.json",
    progress: bool = True,
) -> dict[str, Any]:
    """Sweep and attack for each seed, and write the results file; returns its content."""
    runs = _each_seed("brackets", dilution_of, seeds, steps, out / "long", progress, n_ctx=n_ctx)
    keys = ("spearman", "adversarial_ratio", "adversarial_ratio_deep")
    numbers: dict[str, Any] = {key: mean([run[key] for run in runs]) for key in keys}
    return _write(results, "dilution", seeds, steps, {**numbers, "n_ctx": n_ctx, "runs": runs})


def dilution_of(
    bridges: BridgeSet, circuit: Circuit, *, seed: int = 0, n: int = 256, rounds: int = 40
) -> dict[str, Any]:
    """Sweep over lengths and distractors, and an attack at each of ATTACKED that fits.

    adversarial_ratio pools the lengths: found errors over errors of random prompts. adversarial_ratio_deep compares
    with random *deep* prompts only, since the search ends in those.
    """
    n_ctx = bridges.sparse.config.n_ctx
    lengths = range(1, n_ctx // 4)
    sweep = dilution_sweep(
        bridges.dense, bridges.sparse, circuit, lengths=lengths, distractors=(0, 1, 2), n=n, seed=seed
    )
    reachable = {cell.length for cell in sweep.cells if cell.distractors == 0}
    attacks = [
        attack(
            bridges.dense, bridges.sparse, circuit, length=length, n=n // 2, rounds=rounds, seed=seed
        ).to_json()
        for length in ATTACKED
        if length in reachable
    ]
    found, random, deep = (
        mean([max(a[key], 1 / a["n_random"]) for a in attacks])
        for key in ("found_error", "random_error", "random_deep_error")
    )
    ratios = {"adversarial_ratio": found / random, "adversarial_ratio_deep": found / deep}
    return {**sweep.to_json(), **ratios, "attacks": attacks, "circuit": circuit.summary()}


def _least(key: str, runs: Sequence[Mapping[str, Any]]) -> float | None:
    """The least of the runs that have one: where mean ablation costs nothing, there is nothing to recover."""
    return min((run[key] for run in runs if run[key] is not None), default=None)


def _each_seed(
    task: str,
    measure: Callable[..., dict[str, Any]],
    seeds: Sequence[int],
    steps: int,
    out: Path,
    progress: bool,
    n_circuits: int = 1,
    **shape: int,
) -> list[dict[str, Any]]:
    """For each seed: models and the union of their circuits, then what `measure` finds of them, kept in `out`."""
    runs = []
    for seed in seeds:
        setup, folder = BridgeSetup.toy(seed=seed, steps=steps, **shape), out / f"{seed}"
        bridges = prepare(setup, folder, progress=progress)
        found = circuits_of(bridges.sparse, task, folder, seed=seed, n=n_circuits, progress=progress)
        circuit = reduce(union, found)
        settings = {
            "setup": setup.to_json(),
            "models": bridges.fingerprints(),
            "nodes": [str(node) for node in circuit.nodes],
        }
        kept = folder / f"{measure.__name__}.json"
        result = once(kept, settings, partial(measure, bridges, circuit, seed=seed))
        seconds = {
            "seconds_models": bridges.metrics["seconds"],
            "seconds_circuit": sum(one.metrics["seconds"] for one in found),
        }
        runs.append({"seed": seed, **result, **seconds})
    return runs


def _leading(
    bridges: BridgeSet, circuit: Circuit, batch: Batch, location: str, n_channels: Sequence[int]
) -> list[list[int]]:
    """The circuit's channels at a location by falling effect in the sparse model, by ones, twos and so on."""
    channels = circuit_channels(circuit, location)
    if not channels:
        return []
    effects = channel_effects(bridges.sparse, batch, location)
    ranked = sorted((c for c in channels if effects[c] > 0), key=lambda c: -float(effects[c]))
    return [ranked[:n] for n in n_channels if n <= len(ranked)]


def _try(bridges: BridgeSet, batch: Batch, location: str, channels: list[int]) -> dict[str, Any]:
    return steer(
        bridges, batch, location, channels, strengths=(0.0, 0.5, 1.0, 1.5, 2.0), n_controls=4
    ).summary()


def _write(
    path: Path, name: str, seeds: Sequence[int], steps: int, numbers: dict[str, Any]
) -> dict[str, Any]:
    parts = ("seconds", "seconds_models", "seconds_circuit")
    seconds = sum(run.get(part, 0.0) for run in numbers["runs"] for part in parts)
    command = f"python -m docs.experiments.bridges {name} --seeds {len(seeds)} --steps {steps}"
    return write_results(path, command=command, seeds=seeds, seconds=seconds, numbers=numbers)


@app.command(name="bridges")
def bridges_command(seeds: Seeds = 3, steps: Steps = 2500) -> None:
    """Loss that hybrid passes recover at every location."""
    run_bridges(seeds=range(seeds), steps=steps)


@app.command(name="steering")
def steering_command(seeds: Seeds = 3, steps: Steps = 2500) -> None:
    """The closing quote of the dense model, moved through channels of the sparse model's circuit."""
    run_steering(seeds=range(seeds), steps=steps)


@app.command(name="dilution")
def dilution_command(seeds: Seeds = 1, steps: Steps = 2500) -> None:
    """Where the dense model loses count of brackets, as the sparse circuit foretells it."""
    run_dilution(seeds=range(seeds), steps=steps)


@app.command(name="page")
def page_command() -> None:
    """Rewrite the tables and pictures of docs/explanation/bridges.md from the results files."""
    write_bridge_page(RESULTS.parent)


if __name__ == "__main__":
    app()
