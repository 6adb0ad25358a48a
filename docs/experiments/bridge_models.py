"""The models of the bridge experiments: a dense one, a sparse one trained beside its bridges, and its circuits.

The maps are fitted twice: together with the sparse model, whose training they steer, and then once more beside the
finished model, from the least-squares ones. Maps that follow a model that still changes lag behind it.
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from circuits.bridges import BridgeConfig, BridgeSet, fit_bridges, load_bridges
from circuits.circuit.circuit import Circuit
from circuits.model.checkpoint import load_checkpoint, save_checkpoint
from circuits.model.transformer import SparseTransformer
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.training.config import TrainConfig
from circuits.training.loop import Training, train, with_vocabulary
from docs.experiments.runs import published
from tasks import Corpus, load_corpus, load_task

MIN_ACCURACY = 0.94
"""Asked of circuits: a sparse side that is trained together with its bridges solves a task a little less surely."""


@dataclass(frozen=True, kw_only=True)
class BridgeSetup:
    """What decides the models and bridges of one seed."""

    dense: TrainConfig
    "The dense model, trained first."
    sparse: TrainConfig
    "The sparse model, trained together with bridges."
    bridge: BridgeConfig
    "The bridges, in both fits."

    @classmethod
    def toy(cls, *, seed: int = 0, steps: int = 1500, n_ctx: int = 40) -> "BridgeSetup":
        """One layer on mini-Python, by the toy recipes: `steps` for the sparse model, two fifths for the dense one.

        A longer context brings proportionally fewer sequences a step.
        """
        recipes = (
            TrainConfig.dense(seed=seed, steps=max(1, 2 * steps // 5)),
            TrainConfig.toy(seed=seed + 1000, steps=steps),
        )
        dense, sparse = (
            replace(
                recipe,
                batch_size=max(1, recipe.batch_size * recipe.model.n_ctx // n_ctx),
                model=replace(recipe.model, n_ctx=n_ctx),
            )
            for recipe in recipes
        )
        bridge = BridgeConfig(seed=seed, steps=max(1, steps // 5), hybrids_per_step=1)
        return cls(dense=dense, sparse=sparse, bridge=bridge)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        parts = {
            "dense": self.dense.to_json(),
            "sparse": self.sparse.to_json(),
            "bridge": self.bridge.to_json(),
        }
        return json.loads(json.dumps(parts))


def prepare(setup: BridgeSetup, out: Path, *, progress: bool = True) -> BridgeSet:
    """Both models and their bridges: from `out` where the same settings made them, else made and kept there.

    Ctrl-C leaves files in `out` from which the next call goes on.
    """
    corpus = load_corpus(setup.dense.corpus)
    dense, seconds_dense = _dense(setup.dense, corpus, out / "dense.safetensors", progress)
    made_by = {"setup": setup.to_json(), "dense": dense.fingerprint()}
    saved, maps = out / "sparse.safetensors", out / "bridges.safetensors"
    kept = load_checkpoint(saved, tokenizer=corpus.tokenizer) if saved.exists() else None
    if kept is not None and kept.meta.get("bridges") == made_by:
        sparse, seconds_sparse = kept.model.eval(), kept.meta["seconds"]
        if maps.exists():
            return load_bridges(maps, dense=dense, sparse=sparse)
    else:
        joint, seconds_sparse = _fitted(dense, setup.sparse, corpus, setup.bridge, out / "joint", progress)
        sparse = joint.sparse
        meta = {"train": setup.sparse.to_json(), "bridges": made_by, "seconds": seconds_sparse}
        save_checkpoint(saved, sparse, meta=meta)
        maps.unlink(missing_ok=True)
    bridges, seconds = _fitted(dense, sparse, corpus, setup.bridge, out / "bridges", progress)
    metrics = {**bridges.metrics, "seconds": round(seconds_dense + seconds_sparse + seconds, 1)}
    bridges = replace(bridges, metrics=metrics)
    bridges.save(maps)
    return bridges


def _fitted(
    dense: SparseTransformer,
    sparse: SparseTransformer | TrainConfig,
    corpus: Corpus,
    config: BridgeConfig,
    path: Path,
    progress: bool,
) -> tuple[BridgeSet, float]:
    """Bridges and the seconds that they took, taken up where Ctrl-C stopped the same fit."""
    started = time.perf_counter()
    stopped = path.with_suffix(".interrupted.safetensors")
    resume = stopped if stopped.exists() else None
    bridges = fit_bridges(dense, sparse, corpus, config, checkpoint=stopped, resume=resume, progress=progress)
    stopped.unlink(missing_ok=True)
    return bridges, time.perf_counter() - started


def circuits_of(
    model: SparseTransformer, task: str, folder: Path, *, seed: int, n: int, progress: bool
) -> list[Circuit]:
    """Circuits for a task from n pruning seeds: each from `folder` where the same model and settings made it."""
    # One start each where there are several circuits: together they look at as many as one circuit usually does.
    starts = 1 if n > 1 else published().starts
    settings = published(target_accuracy=MIN_ACCURACY, starts=starts)
    return [
        _circuit_of(
            model, task, folder / f"{task}-{k}.json", replace(settings, seed=seed + 100 * k), progress
        )
        for k in range(n)
    ]


def _circuit_of(
    model: SparseTransformer, task: str, path: Path, config: PruneConfig, progress: bool
) -> Circuit:
    if path.exists():
        kept = Circuit.load(path)
        if kept.model_hash == model.fingerprint() and kept.metrics.get("prune") == config.to_json():
            return kept
    circuit = prune(model, load_task(task), config, progress=progress)
    circuit.save(path)
    return circuit


def _dense(
    config: TrainConfig, corpus: Corpus, path: Path, progress: bool
) -> tuple[SparseTransformer, float]:
    if path.exists():
        kept = Training.load(path)
        if kept.config == with_vocabulary(config, corpus):
            return kept.model, kept.seconds
    stopped = path.with_suffix(".interrupted.safetensors")
    resume = stopped if stopped.exists() else None
    training = train(config, corpus=corpus, checkpoint=stopped, resume=resume, progress=progress)
    training.save(path)
    stopped.unlink(missing_ok=True)
    return training.model, training.seconds
