"""Models and circuits that experiments share: each is trained once, pruned once, and kept on disk."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from circuits.circuit.score import UnsolvedError
from circuits.files import once
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.training.config import TrainConfig
from circuits.training.loop import Training, new_model, train, with_vocabulary
from circuits.training.losses import validation_loss
from circuits.training.updates import Updates, check_budgets
from circuits.trust import TrustReport
from tasks import Corpus, load_corpus, load_task

PAIRS = Path("out/pairs")
"""Where experiments that compare a sparse with a dense model keep both, a folder for each seed."""
VALIDATE_EVERY = 10
"""Steps between looks at the validation loss of a model that is trained until it reaches one."""


def published(**changes: Any) -> PruneConfig:
    """Pruning as published: right answers, calibrated. Results from before margins were the default keep to it."""
    return PruneConfig(**{"objective": "task", "starts": 4, "n_eval": 512, **changes})


def model_pair(folder: Path, *, seed: int, steps: int) -> tuple[Training, Training]:
    """A sparse model by the toy recipe, and a dense one of the same shape and (at most) the same validation loss."""
    sparse = kept_training(folder / "sparse.safetensors", TrainConfig.toy(seed=seed, steps=steps))
    twin = TrainConfig.dense(seed=seed, steps=steps)
    return sparse, kept_twin(folder / "dense.safetensors", twin, sparse.val_loss)


def kept_training(path: Path, config: TrainConfig) -> Training:
    """The run of `config`, from `path` where it has been done before."""
    if path.exists() and (kept := Training.load(path)).config == with_vocabulary(config, kept.corpus):
        return kept
    training = train(config, progress=False)
    training.save(path)
    return training


def kept_twin(path: Path, config: TrainConfig, loss: float) -> Training:
    """The model that `train_until` gives, from `path` where it has been trained before."""
    if path.exists():
        kept = Training.load(path)
        if kept.config == with_vocabulary(config, kept.corpus) and kept.val_loss <= loss:
            return kept
    training = train_until(config, loss)
    training.save(path)
    return training


def train_until(config: TrainConfig, loss: float, *, corpus: Corpus | None = None) -> Training:
    """Train until the validation loss is at most `loss` nats, and stop there.

    The schedules are those of the whole run, so the model is taken from the middle of its training. Raises
    ValueError when the run ends before it gets there.
    """
    corpus = corpus or load_corpus(config.corpus, 0)
    config = with_vocabulary(config, corpus)
    check_budgets(config)
    model = new_model(config, corpus)
    updates, generator = Updates(model, config), torch.Generator().manual_seed(config.seed)
    held_out = corpus.windows(
        config.n_val, config.model.n_ctx, split="val", generator=torch.Generator().manual_seed(1)
    )
    history: list[dict[str, int | float]] = []
    for step in range(1, config.steps + 1):
        tokens = corpus.windows(config.batch_size, config.model.n_ctx, split="train", generator=generator)
        updates(model(tokens, return_type="loss"), (step - 1) / config.steps)
        if step % VALIDATE_EVERY == 0:
            history.append({"step": step, "val_loss": validation_loss(model, held_out)})
            if history[-1]["val_loss"] <= loss:
                return Training(model=model.eval(), config=config, text=corpus, history=history, seconds=0.0)
    raise ValueError(
        f"loss: {config.steps} steps reach {history[-1]['val_loss']:.4f} nats; expected at most {loss:.4f}. Train "
        "longer (config.steps)."
    )


def pruned(training: Training, task: str, config: PruneConfig, folder: Path) -> dict[str, Any]:
    """Size and score of the circuit for a task, kept in `folder`; the model's own score alone if it cannot do it."""
    settings = {"model": training.model.fingerprint(), "prune": config.to_json()}
    return once(folder / f"{task}.json", settings, partial(_prune, training, task, config, folder))


def _prune(training: Training, name: str, config: PruneConfig, folder: Path) -> dict[str, Any]:
    try:
        circuit = prune(training.model, load_task(name), config, corpus=training.corpus, progress=False)
    except UnsolvedError as error:
        return {
            "solved": False,
            "full_task_loss": error.score.loss,
            "full_task_accuracy": error.score.accuracy,
        }
    circuit.save(folder / f"{name}.circuit.json")
    keys = (
        "task_loss",
        "task_accuracy",
        "full_task_loss",
        "one_minimal",
        "kl_to_model",
        "agreement_with_model",
    )
    return {
        "solved": True,
        "n_nodes": circuit.n_nodes,
        "n_edges": circuit.n_edges,
        **{key: circuit.metrics[key] for key in keys},
    }


def counted(report: TrustReport) -> dict[str, Any]:
    """How many checks of a report have a verdict, how many of those pass, and which fail."""
    n = sum(entry.verdict in ("pass", "fail") for entry in report.entries)
    return {"counted": n, "passed": n - len(report.failed), "failed": report.failed}
