"""Gate training: which parts are needed, learned all at once. Parts are nodes, or edges."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.circuit.score import margins, two_way_kl
from circuits.pruning.config import PruneConfig
from circuits.pruning.gates import Gates
from tasks import Batch
from tasks.base import Targets

Key = TypeVar("Key", bound=Hashable)
Part = TypeVar("Part")
Forward = Callable[[Targets, dict[Key, Tensor]], Float[Tensor, "rows pos d_vocab"]]
"""Logits on prompts under the masks: for each key one number in [0, 1] a part, 1 = keep."""


def learn_gates(
    parts: Mapping[Key, Sequence[Part]],
    forward: Forward,
    pool: Batch,
    reference: Float[Tensor, " rows"] | None,
    config: PruneConfig,
    *,
    seed: int,
    like: Tensor,
    log: Callable[[int, float, int], Any],
) -> list[list[Part]]:
    """The open parts at each tenth that closed, from all to few, each list best first.

    Ranked by gate, and where gates tie by importance: the mean |d loss / d mask| so far. pool: prompt pairs to learn
    from; reference: the margins that the circuit should have on them, clean prompts first (None: the right answers
    decide); log: called with step, loss in nats and number of open gates.
    """
    gates = Gates({key: (len(own),) for key, own in parts.items()}, seed=seed, like=like)
    calibrated = config.calibrate and reference is None
    log_scale = torch.zeros((), device=like.device, requires_grad=calibrated)
    groups: list[dict[str, Any]] = [
        {"params": [*gates.parameters.values()]},
        {"params": [log_scale], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    importance = {key: torch.zeros_like(gate) for key, gate in gates.parameters.items()}
    way: list[list[Part]] = []
    for step in range(config.steps):
        rows = torch.randint(len(pool), (config.batch_size,), generator=generator)
        targets = pool.rows(rows).tokens_and_targets()
        wanted = None if reference is None else reference[torch.cat([rows, rows + len(pool)])]
        masks = gates.masks()
        for mask in masks.values():
            mask.retain_grad()
        loss = two_way_kl(margins(forward(targets, masks), targets) * log_scale.exp(), wanted)
        n_open = torch.stack([mask.sum() for mask in masks.values()]).sum()
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 - step / config.steps)
        optimizer.zero_grad(set_to_none=True)
        penalty = config.penalty * min(1.0, 2 * step / config.steps)
        (loss + penalty * n_open).backward()
        for key, mask in masks.items():
            assert mask.grad is not None
            importance[key].lerp_((mask.grad - penalty).abs(), 0.05)
        if not way or n_open < min(0.9 * len(way[-1]), len(way[-1]) - 1):
            way.append(_ranked(parts, gates, importance))
        optimizer.step()
        gates.clamp()
        if step % 20 == 0 or step == config.steps - 1:
            log(step, float(loss.detach()), int(n_open))
    return [*way, _ranked(parts, gates, importance)]


def _ranked(
    parts: Mapping[Key, Sequence[Part]], gates: Gates[Key], importance: dict[Key, Tensor]
) -> list[Part]:
    """The open parts, by gate, then by importance where gates tie (as they do at the clamp)."""
    rows = [
        (value, weight, part)
        for key, own in parts.items()
        for part, value, weight in zip(
            own, gates.parameters[key].tolist(), importance[key].tolist(), strict=True
        )
        if value > 0
    ]
    return [part for _, _, part in sorted(rows, key=lambda row: (-row[0], -row[1], row[2]))]
