"""Controls: can the same gate training find a "circuit" for nonsense, or in a model that knows nothing?

Pruning proper refuses tasks that the model cannot do, so the controls train gates alone, with one budget for
the true task and for every control, and look at the loss that the open gates reach on other prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import mean_values, run_masked
from circuits.circuit.score import margins, two_way_loss
from circuits.model.compute import frozen
from circuits.model.sites import Site
from circuits.model.transformer import SparseTransformer
from circuits.pruning.gates import Gates
from circuits.trust.report import Entry
from tasks import Batch, Task

SEPARATE = 0.5
"""Nats that a control must stay above (chance is 0.693)."""


class Floor(NamedTuple):
    """What gate training reached."""

    loss: float
    """Least two-way loss on held-out prompts, in nats."""
    n_open: int
    """Open gates at that point."""


Relabel = Callable[[Batch], Batch]


def control_entries(
    model: SparseTransformer, circuit: Circuit, task: Task, *, steps: int, lr: float, seed: int
) -> list[Entry]:
    """The true task, swapped answers, unrelated answers and a random model, under one budget of gate training."""
    values = {site: value.to(model.W_E) for site, value in circuit.values.items()}
    fresh = SparseTransformer(model.config, seed=seed + 1).to(model.W_E.device)
    text = task.batch(256, split="train", seed=seed).clean.to(model.W_E.device)
    floor = partial(gate_floor, task=task, steps=steps, lr=lr, seed=seed)
    true = floor(model, values=values)
    floors = {
        "swapped answers": floor(model, values=values, relabel=_swapped),
        "unrelated answers": floor(model, values=values, relabel=_unrelated(task, model, seed)),
        "random model": floor(fresh, values=mean_values(fresh, text)),
    }
    meanings = {
        "swapped answers": "with answer and foil exchanged in every pair",
        "unrelated answers": "with answer and foil replaced by two tokens that have nothing to do with the task",
        "random model": "in a model of the same shape with random weights",
    }
    separated = true.loss <= SEPARATE / 2
    return [
        Entry(
            name=name,
            meaning=f"Task loss that gate training reaches {meanings[name]}; at least {SEPARATE:g} shows that it "
            "cannot make a circuit out of anything. The baseline is the true task under the same budget.",
            value=floor.loss,
            baseline=true.loss,
            unit="nats",
            verdict="fail" if floor.loss < SEPARATE else "pass" if separated else "note",
            details={"n_open": floor.n_open, "true_n_open": true.n_open, "steps": steps, "lr": lr},
        )
        for name, floor in floors.items()
    ]


def gate_floor(
    model: SparseTransformer,
    task: Task,
    values: dict[Site, Tensor],
    *,
    steps: int,
    seed: int,
    relabel: Relabel | None = None,
    target: float = 0.15,
    lr: float = 3e-2,
    penalty: float = 3e-3,
    batch_size: int = 32,
) -> Floor:
    """Train gates on all nodes for `steps` and report the least held-out loss in the second half.

    Open gates cost something only while the loss is within `target`: a control is free to use whatever helps.
    """
    relabel = relabel or (lambda batch: batch)
    device = model.W_E.device
    pool = relabel(task.batch(8 * batch_size, split="train", seed=seed)).to(device)
    held_out = relabel(task.batch(64, split="test", seed=seed)).to(device)
    gates = Gates({s: (v.shape[-1],) for s, v in values.items()}, seed=seed, like=model.W_E)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(list(gates.parameters.values()), lr=lr, betas=(0.9, 0.95))
    best = Floor(float("inf"), 0)
    with frozen(model):
        for step in range(steps):
            rows = torch.randint(len(pool), (batch_size,), generator=generator)
            masks = gates.masks()
            n_open = torch.stack([mask.sum() for mask in masks.values()]).sum()
            task_loss = _loss(model, pool.rows(rows), masks, values)
            loss = task_loss + (penalty * n_open if float(task_loss.detach()) <= target else 0.0)
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            gates.clamp()
            if step >= steps // 2 and (step % 5 == 0 or step == steps - 1):
                with torch.no_grad():
                    reached = float(_loss(model, held_out, gates.masks(), values))
                best = min(best, Floor(reached, gates.n_open()))
    return best


def _loss(
    model: SparseTransformer, batch: Batch, masks: dict[Site, Tensor], values: dict[Site, Tensor]
) -> Tensor:
    targets = batch.tokens_and_targets()
    return two_way_loss(margins(run_masked(model, targets.tokens, masks, values), targets))


def _swapped(batch: Batch) -> Batch:
    return replace(batch, answer=batch.foil, foil=batch.answer)


def _unrelated(task: Task, model: SparseTransformer, seed: int) -> Relabel:
    """Each answer token becomes another token that is no answer: the same rule, in an alphabet of its own."""
    sample = task.batch(256, split="train", seed=seed)
    answers = sorted(set(sample.answer.tolist()) | set(sample.foil.tolist()))
    others = [token for token in range(len(model.W_E)) if token not in answers]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(others), generator=generator).tolist()
    table = torch.arange(len(model.W_E))
    for i, token in enumerate(answers):
        table[token] = others[drawn[i % len(drawn)]]
    return lambda batch: replace(batch, answer=table[batch.answer], foil=table[batch.foil])


def overlap_entry(circuit: Circuit, others: Sequence[Circuit]) -> Entry:
    """Mean overlap (shared nodes over all nodes) of the circuit with those of other pruning seeds."""
    own = set(circuit.nodes)
    overlaps = [len(own & set(other.nodes)) / len(own | set(other.nodes)) for other in others]
    n_all = sum(circuit.widths.values())
    return Entry(
        name="overlap over seeds",
        meaning="Mean share of nodes in common with the circuits of other pruning seeds; the baseline is what two "
        "random sets of that size share. Not run unless such circuits are given.",
        value=sum(overlaps) / len(overlaps) if overlaps else float("nan"),
        baseline=circuit.n_nodes / (2 * n_all - circuit.n_nodes),
        verdict="not run" if not overlaps else "pass" if sum(overlaps) / len(overlaps) >= 0.5 else "fail",
        details={"overlaps": overlaps},
    )
