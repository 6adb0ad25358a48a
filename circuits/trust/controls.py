"""Controls: can the same gate training find a "circuit" for nonsense, or in a model that knows nothing?

Pruning proper refuses tasks that the model cannot do, so the controls train gates alone, with one budget for
the true task and for every control, and look at the loss that the open gates reach on other prompts. Where a circuit
was asked to be faithful, gates are asked for the model's own margins, and for those same margins on nonsense.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from circuits.circuit.ablation import mean_values
from circuits.circuit.masked import ordinary, run_masked
from circuits.circuit.score import margins, task_margins, two_way_kl
from circuits.model.compute import frozen, with_gradients
from circuits.model.sites import Site
from circuits.model.transformer import SparseTransformer
from circuits.pruning.learn import GateLearner, GateSettings
from circuits.trust.report import Entry
from circuits.trust.workbench import Bench
from tasks import Batch, Task

SEPARATE = 0.5
"""Nats that a control must stay above (chance is 0.693)."""
MEANINGS = {
    "swapped answers": "with answer and foil exchanged in every pair",
    "unrelated answers": "with answer and foil replaced by two tokens that have nothing to do with the task",
    "random model": "in a model of the same shape with random weights",
}


class Floor(NamedTuple):
    """What gate training reached."""

    loss: float
    """Least loss on held-out prompts, in nats."""
    n_open: int
    """Open gates at that point."""


Relabel = Callable[[Batch], Batch]


def nonsense(bench: Bench, rng: random.Random) -> Sequence[Entry]:
    """The true task, swapped answers, unrelated answers and a random model, under one budget of gate training."""
    config = bench.config
    if not config.control_steps:
        return []
    floors, true = _floors(bench)
    separated = true.loss <= SEPARATE / 2
    return [
        Entry(
            name=name,
            meaning=f"Loss that gate training reaches {MEANINGS[name]}; at least {SEPARATE:g} shows that it "
            "cannot make a circuit out of anything. The baseline is the true task under the same budget.",
            value=floor.loss,
            baseline=true.loss,
            unit="nats",
            verdict="fail" if floor.loss < SEPARATE else "pass" if separated else "note",
            details={
                "n_open": floor.n_open,
                "true_n_open": true.n_open,
                "steps": config.control_steps,
                "lr": config.control_lr,
            },
        )
        for name, floor in floors.items()
    ]


def _floors(bench: Bench) -> tuple[dict[str, Floor], Floor]:
    """Of each control, and of the true task."""
    model, task, seed = bench.model, bench.task, bench.config.seed
    faithful = bench.judge.criterion.objective == "faithful"

    def floor(asked: SparseTransformer, values: dict[Site, Tensor], relabel: Relabel | None = None) -> Floor:
        return gate_floor(
            asked,
            task,
            values,
            steps=bench.config.control_steps,
            lr=bench.config.control_lr,
            seed=seed,
            relabel=relabel,
            follow=model if faithful else None,
        )

    fresh = SparseTransformer(model.config, seed=seed + 1).to(model.W_E.device)
    text = task.batch(256, split="train", seed=seed).to(model.W_E.device)
    true = floor(model, bench.values)
    floors = {
        "swapped answers": floor(model, bench.values, _swapped),
        "unrelated answers": floor(model, bench.values, _unrelated(model, task, seed)),
        "random model": floor(fresh, mean_values(fresh, text.clean, lengths=text.lengths)),
    }
    return floors, true


@with_gradients
def gate_floor(
    model: SparseTransformer,
    task: Task,
    values: dict[Site, Tensor],
    *,
    steps: int,
    seed: int,
    relabel: Relabel | None = None,
    follow: SparseTransformer | None = None,
    target: float = 0.15,
    lr: float = 3e-2,
    penalty: float = 3e-3,
    batch_size: int = 32,
) -> Floor:
    """Train gates on all nodes for `steps` and report the least held-out loss in the second half.

    Open gates cost something only while the loss is within `target`: a control is free to use whatever helps.
    follow: a model whose margins on the task are asked for, in place of the right answers.
    """
    values = {site: ordinary(value) for site, value in values.items()}
    asked = _Asked(model, task, values, seed, relabel or (lambda batch: batch), follow)
    pool, held_out = asked.batch(8 * batch_size, "train"), asked.batch(64, "test")
    settings = GateSettings(steps=steps, batch_size=batch_size, lr=lr, seed=seed, weight_decay=0.01)
    shapes = {site: (value.shape[-1],) for site, value in values.items()}
    best = Floor(float("inf"), 0)
    with frozen(model):
        learner = GateLearner(shapes, pool.batch, settings, like=model.W_E)
        for step, rows, masks in learner.steps():
            loss = asked.loss(pool.rows(rows), masks)
            learner.backward(loss, penalty if float(loss.detach()) <= target else 0.0, masks)
            learner.update()
            if step >= steps // 2 and (step % 5 == 0 or step == steps - 1):
                with torch.no_grad():
                    reached = float(asked.loss(held_out, learner.gates.masks()))
                best = min(best, Floor(reached, learner.gates.n_open()))
    return best


class _Prompts(NamedTuple):
    """Relabelled pairs, and the margins asked for on them, clean prompts first (None: the right answers decide)."""

    batch: Batch
    reference: Tensor | None

    def rows(self, rows: Tensor) -> "_Prompts":
        both = torch.cat([rows, rows + len(self.batch)])
        return _Prompts(self.batch.rows(rows), None if self.reference is None else self.reference[both])


class _Asked(NamedTuple):
    """What gates are asked for: which answers, in which model."""

    model: SparseTransformer
    task: Task
    values: dict[Site, Tensor]
    seed: int
    relabel: Relabel
    follow: SparseTransformer | None

    def batch(self, n: int, split: str) -> _Prompts:
        true = self.task.batch(n, split=split, seed=self.seed).to(self.model.W_E.device)  # type: ignore[arg-type]
        reference = None if self.follow is None else task_margins(self.follow, true)
        return _Prompts(self.relabel(true), reference)

    def loss(self, prompts: _Prompts, masks: dict[Site, Tensor]) -> Tensor:
        targets = prompts.batch.tokens_and_targets()
        margin = margins(run_masked(self.model, targets.tokens, masks, self.values), targets)
        return two_way_kl(margin, prompts.reference)


def _swapped(batch: Batch) -> Batch:
    return replace(batch, answer=batch.foil, foil=batch.answer)


def _unrelated(model: SparseTransformer, task: Task, seed: int) -> Relabel:
    """Each answer token becomes another token that is no answer: the same rule, in an alphabet of its own."""
    sample = task.batch(256, split="train", seed=seed)
    answers = sorted(set(sample.answer.tolist()) | set(sample.foil.tolist()))
    others = [token for token in range(len(model.W_E)) if token not in answers]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(others), generator=generator).tolist()
    table = torch.arange(len(model.W_E))
    for i, token in enumerate(answers):
        table[token] = others[drawn[i % len(drawn)]]
    table = table.to(model.W_E.device)
    return lambda batch: replace(batch, answer=table[batch.answer], foil=table[batch.foil])


def seed_overlap(bench: Bench, rng: random.Random) -> Sequence[Entry]:
    """Mean overlap (shared nodes over all nodes) of the circuit with those of other pruning seeds."""
    own, n_nodes = set(bench.circuit.nodes), bench.circuit.n_nodes
    overlaps = [len(own & set(other.nodes)) / len(own | set(other.nodes)) for other in bench.others]
    mean = sum(overlaps) / len(overlaps) if overlaps else float("nan")
    return [
        Entry(
            name="overlap over seeds",
            meaning="Mean share of nodes in common with the circuits of other pruning seeds; the baseline is what two "
            "random sets of that size share. Not run unless such circuits are given.",
            value=mean,
            baseline=n_nodes / (2 * len(bench.every) - n_nodes),
            verdict="not run" if not overlaps else "pass" if mean >= 0.5 else "fail",
            details={"overlaps": overlaps},
        )
    ]
