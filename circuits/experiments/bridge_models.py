"""The models of the bridge experiments: a dense one, a sparse one trained beside its bridges, and its circuits."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from circuits.bridge import BridgeConfig, BridgeSet, fit_bridges, load_bridges
from circuits.checkpoint import load_checkpoint, save_checkpoint
from circuits.circuit import Circuit
from circuits.model import SparseTransformer
from circuits.prune import PruneConfig, prune
from circuits.train import TrainConfig, Training, train, with_vocabulary
from tasks import Corpus, load_corpus, load_task


@dataclass(frozen=True, kw_only=True)
class BridgeSetup:
    """What decides the models and bridges of one seed."""

    dense: TrainConfig
    "The dense model, trained first."
    sparse: TrainConfig
    "The sparse model, trained together with the bridges."
    bridge: BridgeConfig
    "The bridges."

    @classmethod
    def toy(cls, *, seed: int = 0, steps: int = 1000, n_ctx: int = 40) -> "BridgeSetup":
        """One layer on mini-Python; the sparse model has twice the toy recipe's density, to keep up with the dense.

        A longer context brings proportionally fewer sequences a step.
        """
        recipes = (TrainConfig.dense(seed=seed), TrainConfig.toy(seed=seed + 1000, density=0.02))
        dense, sparse = (
            replace(
                recipe,
                steps=steps,
                batch_size=max(1, recipe.batch_size * recipe.model.n_ctx // n_ctx),
                model=replace(recipe.model, n_ctx=n_ctx),
            )
            for recipe in recipes
        )
        return cls(dense=dense, sparse=sparse, bridge=BridgeConfig(seed=seed, hybrids_per_step=1))

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
    dense, seconds = _dense(setup.dense, corpus, out / "dense.safetensors", progress)
    saved, maps = out / "sparse.safetensors", out / "bridges.safetensors"
    made_by = {"setup": setup.to_json(), "dense": dense.fingerprint()}
    if saved.exists() and maps.exists():
        kept = load_checkpoint(saved, tokenizer=corpus.tokenizer)
        if kept.meta.get("bridges") == made_by:
            return load_bridges(maps, dense=dense, sparse=kept.model.eval())
    started = time.perf_counter()
    stopped = out / "bridges.interrupted.safetensors"
    bridges = fit_bridges(
        dense,
        setup.sparse,
        corpus,
        setup.bridge,
        checkpoint=stopped,
        resume=stopped if stopped.exists() else None,
        progress=progress,
    )
    seconds += time.perf_counter() - started
    bridges = replace(bridges, metrics={**bridges.metrics, "seconds": round(seconds, 1)})
    bridges.save(maps)
    save_checkpoint(saved, bridges.sparse, meta={"train": setup.sparse.to_json(), "bridges": made_by})
    stopped.unlink(missing_ok=True)
    return bridges


def circuit_of(model: SparseTransformer, task: str, path: Path, *, seed: int, progress: bool) -> Circuit:
    """The circuit for a task: from `path` where the same model and settings made it, else pruned and kept there."""
    config = PruneConfig(seed=seed)
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
