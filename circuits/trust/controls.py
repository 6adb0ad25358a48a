"""Controls: can the same gate training find a "circuit" for nonsense, or in a model that knows nothing?

Pruning proper refuses tasks that the model cannot do, so the controls train gates alone, with pruning's own budget,
objective and calibration for the true task and for every control, and look at the least loss on other prompts among the
open sets along the way that are no larger than a few times what the true task needed. Where a circuit has the model's
margins, gates are asked for those, and for those same margins on nonsense. Where the true task's own gates stayed
open, so few steps prove nothing about nonsense either: the control is inconclusive.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from circuits.circuit.ablation import mean_values
from circuits.circuit.evaluator import MaskedModel
from circuits.circuit.masked import ordinary, run_masked
from circuits.circuit.nodes import Node, NodesOf
from circuits.circuit.score import UNIT, Score, fitted_scale, loss_against, task_margins, two_way_loss
from circuits.model.compute import resting, with_gradients
from circuits.model.kinds import of_subjects
from circuits.model.sites import Site
from circuits.model.subject import Subject
from circuits.model.transformer import SparseTransformer
from circuits.pruning.config import PruneConfig
from circuits.pruning.learn import learn_gates
from circuits.pruning.minimal import thinned
from circuits.trust.report import Entry
from circuits.trust.workbench import Bench
from tasks import Batch, Task
from tasks.base import Targets

SEPARATE = 0.5
"""Loss that a control must stay above: nats, of 0.693 by chance, or of the mean square of margins, of 1 without any."""
ROOM = 3
"""Times as many nodes as the true task needed, among which a control may look for its least loss."""
CLOSED = 0.25
"""Share of all nodes below which the true task's gates count as closed."""
ABOUT = 0.02
"""Loss by which a smaller set may be worse and still count as reaching the least one."""
COARSE = 16
"""Size of the groups of nodes by which a set is thinned out."""
N_HELD_OUT = 64
"""Prompt pairs on which the sets that gates leave are judged."""
MEANINGS = {
    "swapped answers": "with answer and foil exchanged in every pair",
    "unrelated answers": "with answer and foil replaced by two tokens that have nothing to do with the task",
    "random model": "in a model of the same shape with random weights",
}


class Floor(NamedTuple):
    """What gate training reached."""

    loss: float
    """Least loss on held-out prompts, of the objective, among the sets that were looked at."""
    n_open: int
    """Nodes of the set that reached it; the smallest that does about as well."""


Relabel = Callable[[Batch], Batch]


def nonsense(bench: Bench, rng: random.Random) -> Sequence[Entry]:
    """The true task, swapped answers, unrelated answers and a random model, under pruning's own gate training."""
    if not bench.config.control_steps:
        return []
    floors, true = _floors(bench)
    closed = true.loss <= SEPARATE / 2 and true.n_open <= CLOSED * len(bench.every)
    return [
        Entry(
            name=name,
            meaning=f"Loss that gate training reaches {MEANINGS[name]}, with at most {ROOM} times the nodes that the "
            f"true task needs; at least {SEPARATE:g} shows that it cannot make a circuit out of anything. The baseline "
            "is the true task under the same budget; inconclusive where its gates did not close either.",
            value=floor.loss,
            baseline=true.loss,
            unit=UNIT[bench.judge.criterion.objective],
            verdict="fail" if floor.loss < SEPARATE else "pass" if closed else "inconclusive",
            details={"n_open": floor.n_open, "true_n_open": true.n_open, **_budget(bench).to_json()},
        )
        for name, floor in floors.items()
    ] + ([] if isinstance(bench.model, SparseTransformer) else [_no_random_model()])


def _no_random_model() -> Entry:
    """In place of the control in a random model, for a model of which only weights are known."""
    return Entry(
        name="random model",
        meaning="Not run: how a wrapped model's weights were drawn before it was trained is not known, so that there "
        "is no random model of its kind to compare it with.",
        value=float("nan"),
        baseline=float("nan"),
        verdict="not run",
    )


def _budget(bench: Bench) -> PruneConfig:
    """Pruning's settings under the circuit's criterion, with the steps and the rate that the report asks for."""
    asked, config = bench.judge.criterion, bench.config
    return PruneConfig(
        objective=asked.objective,
        target_loss=asked.target_loss,
        calibrate=asked.calibrate,
        steps=config.control_steps,
        lr=config.control_lr,
        seed=config.seed,
    )


def _floors(bench: Bench) -> tuple[dict[str, Floor], Floor]:
    """Of each control, and of the true task."""
    model, task, budget = bench.model, bench.task, _budget(bench)
    true = gate_floor(model, task, bench.values, budget)
    most = ROOM * max(true.n_open, bench.circuit.n_nodes)
    unrelated = _unrelated(model, task, budget.seed)
    found = {
        "swapped answers": gate_floor(model, task, bench.values, budget, relabel=_swapped, most=most),
        "unrelated answers": gate_floor(model, task, bench.values, budget, relabel=unrelated, most=most),
    }
    if isinstance(model, SparseTransformer):
        fresh = SparseTransformer(model.config, seed=budget.seed + 1).to(model.W_E.device)
        text = task.batch(256, split="train", seed=budget.seed).to(model.W_E.device)
        values = mean_values(fresh, text.clean, lengths=text.lengths)
        found["random model"] = gate_floor(fresh, task, values, budget, follow=model, most=most)
    return found, true


@of_subjects
@with_gradients
def gate_floor(
    model: Subject,
    task: Task,
    values: dict[Site, Tensor],
    config: PruneConfig,
    *,
    relabel: Relabel | None = None,
    follow: Subject | None = None,
    most: int | None = None,
) -> Floor:
    """Train gates on all nodes as pruning does; the least held-out loss among the open sets along the way.

    The last of them that reaches half of `SEPARATE` is thinned out, as pruning does, to one set more.
    relabel: what to make of the prompts' answers. follow: the model whose margins are asked for where the objective
    asks for some (default: `model`). most: only sets of at most that many nodes count, if there are any.

    Examples:
        >>> found = circuits.load("quotes-handmade")
        >>> quick = circuits.PruneConfig(objective="task", steps=10, n_eval=16, n_test=16)
        >>> floor = circuits.trust.gate_floor(found.model, found.task, found.circuit.values, quick)
    """
    values = {site: ordinary(value) for site, value in values.items()}
    asked = _Asked(task, config, relabel or (lambda batch: batch), follow or model)
    pool, wanted = asked.prompts(16 * config.batch_size, "train")
    test, reference = asked.prompts(N_HELD_OUT, "test")
    parts = {site: NodesOf(site, model.widths[site]) for site in values}

    def forward(targets: Targets, masks: dict[Site, Tensor]) -> Tensor:
        return run_masked(model, targets.tokens, masks, values)

    with resting(model):
        way = learn_gates(
            parts, forward, pool, wanted, config, seed=config.seed, like=model.like, log=lambda *_: None
        )
        runs = MaskedModel(model, values, test)

        def reached(nodes: Sequence[Node]) -> float:
            return asked.loss(runs.margins(nodes, "all"), reference)

        def good(nodes: Sequence[Node]) -> Score | None:
            loss = reached(nodes)
            return Score(loss, 1.0) if loss <= SEPARATE / 2 else None

        found = [Floor(reached(nodes), len(nodes)) for nodes in way]
        enough = [nodes for nodes, floor in zip(way, found, strict=True) if floor.loss <= SEPARATE / 2]
        thin = [thinned(nodes, good, COARSE) for nodes in enough[-1:]]
        small = [Floor(reached(nodes), len(nodes)) for nodes in thin]
    within = [floor for floor in found + small if most is None or floor.n_open <= most] or found[-1:]
    least = min(within).loss
    return min((floor for floor in within if floor.loss <= least + ABOUT), key=lambda floor: floor.n_open)


class _Asked(NamedTuple):
    """What gates are asked for: which answers, and in which model's margins."""

    task: Task
    config: PruneConfig
    relabel: Relabel
    follow: Subject

    def prompts(self, n: int, split: str) -> tuple[Batch, Tensor | None]:
        """Relabelled pairs, and the margins asked for on them, clean prompts first (None: the right answers decide)."""
        true = self.task.batch(n, split=split, seed=self.config.seed).to(self.follow.like.device)  # type: ignore[arg-type]
        reference = None if self.config.objective == "task" else task_margins(self.follow, true)
        return self.relabel(true), reference

    def loss(self, margin: Tensor, reference: Tensor | None) -> float:
        """Of margins on such prompts, calibrated for themselves where the objective calibrates."""
        if reference is not None:
            return float(loss_against(self.config.objective, margin, reference))
        scale = fitted_scale(margin) if self.config.calibrate else 1.0
        return float(two_way_loss(margin * scale))


def _swapped(batch: Batch) -> Batch:
    return replace(batch, answer=batch.foil, foil=batch.answer)


def _unrelated(model: Subject, task: Task, seed: int) -> Relabel:
    """Each answer token becomes another token that is no answer: the same rule, in an alphabet of its own."""
    sample = task.batch(256, split="train", seed=seed)
    answers = sorted(set(sample.answer.tolist()) | set(sample.foil.tolist()))
    others = [token for token in range(model.d_vocab) if token not in answers]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(others), generator=generator).tolist()
    table = torch.arange(model.d_vocab)
    for i, token in enumerate(answers):
        table[token] = others[drawn[i % len(drawn)]]
    table = table.to(model.like.device)
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
