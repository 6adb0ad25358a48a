"""Bridges, steering and dilution: one dense and one sparse model a seed, prepared once and used by all three.

    python -m circuits.experiments.bridges bridges --seeds 1     -> docs/results/bridges.json
    python -m circuits.experiments.bridges steering --seeds 3    -> docs/results/steering.json
    python -m circuits.experiments.bridges dilution --seeds 1    -> docs/results/dilution.json

The dense model is trained first; then the sparse one, together with the bridges. What is finished stays in the
`out` folder and is taken up again as long as the settings are the same.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from circuits.bridge import BridgeConfig, BridgeSet, fit_bridges, load_bridges
from circuits.checkpoint import load_checkpoint, save_checkpoint
from circuits.circuit import Circuit
from circuits.dilution import attack, dilution_sweep
from circuits.experiments.record import mean, once, write_results
from circuits.model import SparseTransformer
from circuits.prune import PruneConfig, prune
from circuits.steer import channel_effects, steer
from circuits.train import TrainConfig, train
from tasks import Batch, Corpus, load_corpus, load_task

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)
OUT, RESULTS = Path("out/bridges"), Path("docs/results")
Seeds = Annotated[int, typer.Option(help="Number of seeds.")]
Steps = Annotated[int, typer.Option(help="Optimiser steps of each model.")]
Context = Annotated[
    int, typer.Option(help="Context of the models, in tokens; longer lists fit a longer one.")
]


@dataclass(frozen=True, kw_only=True)
class BridgeSetup:
    """The models and bridges of the three experiments."""

    dense: TrainConfig
    "The dense model, trained first."
    sparse: TrainConfig
    "The sparse model, trained together with the bridges."
    bridge: BridgeConfig
    "The bridges."

    @classmethod
    def toy(cls, *, seed: int = 0, steps: int = 1200, n_ctx: int = 64) -> "BridgeSetup":
        """Mini-Python at the toy recipe; two locations' hybrids a step, to train in minutes."""
        dense, sparse = (
            TrainConfig.dense(seed=seed, steps=steps),
            TrainConfig.toy(seed=seed + 1000, steps=steps),
        )
        dense, sparse = (replace(c, model=replace(c.model, n_ctx=n_ctx)) for c in (dense, sparse))
        return cls(dense=dense, sparse=sparse, bridge=BridgeConfig(seed=seed, hybrids_per_step=1))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "dense": self.dense.to_json(),
            "sparse": self.sparse.to_json(),
            "bridge": self.bridge.to_json(),
        }


def prepare(setup: BridgeSetup, out: Path, *, progress: bool = True) -> BridgeSet:
    """Both models and their bridges: from `out` where they were made by the same settings, else made and kept."""
    corpus = load_corpus(setup.dense.corpus)
    dense, seconds = _dense(setup.dense, corpus, out / "dense.safetensors", progress)
    saved = out / "sparse.safetensors"
    wanted = _plain({"setup": setup.to_json(), "dense": dense.fingerprint()})
    kept = load_checkpoint(saved, tokenizer=corpus.tokenizer) if saved.exists() else None
    if kept is not None and kept.meta.get("bridges") == wanted and (out / "bridges.safetensors").exists():
        return load_bridges(out / "bridges.safetensors", dense=dense, sparse=kept.model.eval())
    started = time.perf_counter()
    bridges = fit_bridges(dense, setup.sparse, corpus, setup.bridge, progress=progress)
    seconds += time.perf_counter() - started
    bridges = replace(bridges, metrics={**bridges.metrics, "seconds": round(seconds, 1)})
    bridges.save(out / "bridges.safetensors")
    save_checkpoint(saved, bridges.sparse, meta={"train": setup.sparse.to_json(), "bridges": wanted})
    return bridges


def run_bridges(
    *,
    seeds: Sequence[int] = (0,),
    steps: int = 1200,
    out: Path = OUT,
    results: Path = RESULTS / "bridges.json",
    progress: bool = True,
) -> dict[str, Any]:
    """Train, bridge and measure for each seed, and write the results file; returns its content."""
    runs = []
    for seed in seeds:
        setup = BridgeSetup.toy(seed=seed, steps=steps)
        bridges = prepare(setup, out / f"{seed}", progress=progress)
        facts = {"density": bridges.sparse.density(), "n_nonzero": bridges.sparse.n_nonzero()}
        facts["seconds"] = bridges.metrics["seconds"]
        runs.append({"seed": seed, **bridges.summary(), **facts, "locations": bridges.metrics["locations"]})
    numbers = {
        "min_recovered_dense_to_sparse": min(run["min_recovered_dense_to_sparse"] for run in runs),
        "min_recovered_sparse_to_dense": min(run["min_recovered_sparse_to_dense"] for run in runs),
        "runs": runs,
    }
    return _write(results, "bridges", seeds, steps, numbers)


def run_steering(
    *,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 1200,
    out: Path = OUT,
    results: Path = RESULTS / "steering.json",
    progress: bool = True,
) -> dict[str, Any]:
    """Steer the closing quote for each seed, and write the results file; returns its content.

    Location and number of channels are chosen on validation prompts, and reported on test prompts; which
    channels is decided by the sparse model alone.
    """
    runs = []
    for seed in seeds:
        setup = BridgeSetup.toy(seed=seed, steps=steps)
        bridges = prepare(setup, out / f"{seed}", progress=progress)

        def run(bridges: BridgeSet = bridges, seed: int = seed) -> dict[str, Any]:
            return steer_task(bridges, "quotes", seed=seed)

        settings = {"setup": setup.to_json(), "models": bridges.fingerprints()}
        runs.append(
            {
                "seed": seed,
                **once(out / f"{seed}" / "steering.json", settings, run),
                "seconds_models": bridges.metrics["seconds"],
            }
        )
    keys = ("p_foil_before", "p_foil_after", "control_change", "strength")
    numbers: dict[str, Any] = {key: mean([run[key] for run in runs]) for key in keys}
    numbers["strength"] = max(run["strength"] for run in runs)
    return _write(results, "steering", seeds, steps, {**numbers, "runs": runs})


def steer_task(
    bridges: BridgeSet, task: str, *, seed: int = 0, n: int = 128, n_channels: Sequence[int] = (1, 2, 4, 8)
) -> dict[str, Any]:
    """Choose location and channels on validation prompts, steer test prompts; the fewest channels that do win."""
    val, test = (
        load_task(task).batch(32, split="val", seed=seed),
        load_task(task).batch(n, split="test", seed=seed),
    )
    tried = [
        _try(bridges, val, str(pair), channels)
        for pair in bridges.pairs
        for channels in _leading(bridges, val, pair.sparse, n_channels)
    ]
    works = [t for t in tried if t["p_foil_after"] > 0.9 and t["control_change"] < 0.1 and t["monotone"]]
    if works:
        best = min(works, key=lambda t: (len(t["channels"]), -t["p_foil_after"]))
    else:
        best = max(tried, key=lambda t: t["p_foil_after"] - t["control_change"])
    result = steer(bridges, test, best["location"], best["channels"], seed=seed)
    return {**result.to_json(), "tried": tried}


def run_dilution(
    *,
    seeds: Sequence[int] = (0,),
    steps: int = 1200,
    n_ctx: int = 64,
    out: Path = OUT,
    results: Path = RESULTS / "dilution.json",
    progress: bool = True,
) -> dict[str, Any]:
    """Sweep and attack for each seed, and write the results file; returns its content."""
    runs = []
    for seed in seeds:
        setup = BridgeSetup.toy(seed=seed, steps=steps, n_ctx=n_ctx)
        folder = out / (f"{seed}" if n_ctx == 64 else f"{seed}-{n_ctx}")
        bridges = prepare(setup, folder, progress=progress)
        circuit = _circuit(bridges.sparse, folder / "brackets.json", seed, progress)

        def run(bridges: BridgeSet = bridges, circuit: Circuit = circuit, seed: int = seed) -> dict[str, Any]:
            return dilution_of(bridges, circuit, seed=seed)

        settings = {"setup": setup.to_json(), "models": bridges.fingerprints(), "circuit": circuit.summary()}
        runs.append(
            {
                "seed": seed,
                **once(folder / "dilution.json", settings, run),
                "seconds_models": bridges.metrics["seconds"],
            }
        )
    numbers = {
        "spearman": mean([run["spearman"] for run in runs]),
        "adversarial_ratio": mean([run["adversarial_ratio"] for run in runs]),
        "n_ctx": n_ctx,
        "runs": runs,
    }
    return _write(results, "dilution", seeds, steps, numbers, f" --n-ctx {n_ctx}")


def dilution_of(
    bridges: BridgeSet, circuit: Circuit, *, seed: int = 0, n: int = 256, rounds: int = 40
) -> dict[str, Any]:
    """Sweep over lengths and distractors, and an attack at every third length that fits."""
    n_ctx = bridges.sparse.config.n_ctx
    lengths = range(1, n_ctx // 4)
    sweep = dilution_sweep(
        bridges.dense, bridges.sparse, circuit, lengths=lengths, distractors=(0, 1, 2, 4), n=n, seed=seed
    )
    reachable = sorted({cell.length for cell in sweep.cells if cell.distractors == 0})
    attacks = [
        attack(bridges.dense, bridges.sparse, circuit, length=length, n=n, rounds=rounds, seed=seed).to_json()
        for length in reachable[2::3]
    ]
    found = mean([a["found_error"] for a in attacks])
    random = mean([max(a["random_error"], 1 / a["n_random"]) for a in attacks])
    return {**sweep.to_json(), "adversarial_ratio": found / random, "attacks": attacks}


def _dense(
    config: TrainConfig, corpus: Corpus, path: Path, progress: bool
) -> tuple[SparseTransformer, float]:
    config = replace(config, model=replace(config.model, d_vocab=corpus.tokenizer.d_vocab))
    if path.exists():
        kept = load_checkpoint(path, tokenizer=corpus.tokenizer)
        if kept.meta.get("train") == _plain(config.to_json()):
            return kept.model.eval(), kept.meta["seconds"]
    stopped = path.with_suffix(".interrupted.safetensors")
    training = train(
        config,
        corpus=corpus,
        checkpoint=stopped,
        resume=stopped if stopped.exists() else None,
        progress=progress,
    )
    training.save(path)
    stopped.unlink(missing_ok=True)
    return training.model, training.seconds


def _circuit(model: SparseTransformer, path: Path, seed: int, progress: bool) -> Circuit:
    if path.exists():
        kept = Circuit.load(path)
        if kept.model_hash == model.fingerprint():
            return kept
    circuit = prune(model, load_task("brackets"), PruneConfig(seed=seed), progress=progress)
    circuit.save(path)
    return circuit


def _leading(bridges: BridgeSet, batch: Batch, location: str, n_channels: Sequence[int]) -> list[list[int]]:
    """The channels with the largest effects in the sparse model, by ones, twos and so on."""
    effects = channel_effects(bridges.sparse, batch, location)
    ranked = [int(c) for c in effects.argsort(descending=True) if effects[c] > 0]
    return [ranked[:n] for n in n_channels if n <= len(ranked)]


def _try(bridges: BridgeSet, batch: Batch, location: str, channels: list[int]) -> dict[str, Any]:
    return steer(
        bridges, batch, location, channels, strengths=(0.0, 0.5, 1.0, 1.5, 2.0), n_controls=4
    ).summary()


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(data))


def _write(
    path: Path,
    name: str,
    seeds: Sequence[int],
    steps: int,
    numbers: dict[str, Any],
    options: str = "",
) -> dict[str, Any]:
    seconds = sum(run["seconds"] + run.get("seconds_models", 0.0) for run in numbers["runs"])
    command = f"python -m circuits.experiments.bridges {name} --seeds {len(seeds)} --steps {steps}{options}"
    return write_results(path, command=command, seeds=seeds, seconds=seconds, numbers=numbers)


@app.command(name="bridges")
def bridges_command(seeds: Seeds = 1, steps: Steps = 1200) -> None:
    """Loss that hybrid passes recover at every location."""
    run_bridges(seeds=range(seeds), steps=steps)


@app.command(name="steering")
def steering_command(seeds: Seeds = 3, steps: Steps = 1200) -> None:
    """The closing quote of the dense model, moved through a channel of the sparse one."""
    run_steering(seeds=range(seeds), steps=steps)


@app.command(name="dilution")
def dilution_command(seeds: Seeds = 1, steps: Steps = 1200, n_ctx: Context = 64) -> None:
    """Where the dense model loses count of brackets, as the sparse circuit foretells it."""
    run_dilution(seeds=range(seeds), steps=steps, n_ctx=n_ctx)


if __name__ == "__main__":
    app()
