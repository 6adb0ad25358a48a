"""How gates are learned, for whoever has some: parts of a circuit, nonsense controls, compositions of heads."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from circuits.circuit.nodes import HOSTILE, Ablation
from circuits.circuit.score import disorder, loss_against, margins, two_way_loss
from circuits.pruning.config import PruneConfig
from circuits.pruning.gates import Gates
from circuits.settings import Amount, Count, Decay, Positive, Settings
from tasks import Batch
from tasks.base import Targets

Key = TypeVar("Key", bound=Hashable)
Part = TypeVar("Part")
DISORDER = 3.0
"""What disorder within an answer weighs against the error of the margins, where an order is asked for: gates that learn
without it close what the order needs, and the search then starts from nearly all of the model."""
CLIMB = 0.1
"""Step of the shares that closed parts keep under adversarial ablation."""
Forward = Callable[[Targets, dict[Key, Tensor]], Float[Tensor, "rows pos d_vocab"]]
"""Logits on prompts under the masks: for each key one number in [0, 1] a part, 1 = keep."""


@dataclass(frozen=True, kw_only=True)
class GateSettings(Settings):
    """How gates are learned: AdamW with a learning rate that falls linearly to 0."""

    steps: Count
    "Optimiser steps."
    batch_size: Count
    "Prompt pairs per step."
    lr: Positive
    "Peak learning rate."
    seed: int
    "Decides gates and prompts."
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    "AdamW's averaging constants."
    weight_decay: Amount = 1e-3
    "AdamW's weight decay."


class GateLearner(Generic[Key]):
    """Gates and their optimiser; each step is a batch of prompts, a loss that the caller makes, and an update."""

    def __init__(
        self,
        shapes: Mapping[Key, tuple[int, ...]],
        pool: Batch,
        settings: GateSettings,
        *,
        like: Tensor,
        beside: Sequence[Tensor] = (),
    ) -> None:
        """pool: prompt pairs to learn from; beside: other parameters that learn along, without decay or bounds."""
        self.gates = Gates(dict(shapes), seed=settings.seed, like=like)
        self.pool, self.settings = pool, settings
        self._generator = torch.Generator().manual_seed(settings.seed)
        own = [*self.gates.parameters.values()]
        self._parameters = [*own, *(p for p in beside if p.requires_grad)]
        groups: list[dict[str, Any]] = [{"params": own}, {"params": [*beside], "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(
            groups, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )

    def steps(self) -> Iterator[tuple[int, Int64[Tensor, " pairs"], dict[Key, Tensor]]]:
        """The number of each step, the pairs of the pool it looks at, and the masks as they are: 1 = keep.

        Call `backward` and `update` before the next one.
        """
        for step in range(self.settings.steps):
            for group in self._optimizer.param_groups:
                group["lr"] = self.settings.lr * (1 - step / self.settings.steps)
            rows = torch.randint(len(self.pool), (self.settings.batch_size,), generator=self._generator)
            yield step, rows, self.gates.masks()

    def backward(
        self, loss: Float[Tensor, ""], penalty: float, masks: Mapping[Key, Tensor]
    ) -> tuple[Float[Tensor, ""], dict[Key, Tensor]]:
        """Gradients of `loss` + `penalty` nats an open gate; returns how many are open, and d loss / d mask."""
        if not bool(loss.detach().isfinite()):
            raise ValueError(
                f"lr: the loss of the gates is {float(loss.detach())}; expected a finite number. Lower lr, which is "
                f"{self.settings.lr:g}, and look for NaN among the model's weights."
            )
        n_open = torch.stack([mask.sum() for mask in masks.values()]).sum()
        wanted = [*self._parameters, *masks.values()]
        grads = torch.autograd.grad(loss + penalty * n_open, wanted)
        for parameter, grad in zip(self._parameters, grads, strict=False):
            parameter.grad = grad
        by_mask = zip(masks, grads[len(self._parameters) :], strict=True)
        return n_open.detach(), {key: grad - penalty for key, grad in by_mask}

    def update(self) -> None:
        """One step of the optimiser; gates stay in their bounds."""
        self._optimizer.step()
        self.gates.clamp()


def rising(penalty: float, step: int, steps: int) -> float:
    """The penalty at a step: from 0 to its full size over the first half, so that gates close one by one."""
    return penalty * min(1.0, 2 * step / steps)


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
) -> "list[Ranked[Part]]":
    """The open parts at each tenth that closed, from all to few, each list best first.

    parts: lists, or what makes each part when it is asked for: there may be hundreds of thousands.

    Ranked by gate, and where gates tie by importance: the mean |d loss / d mask| so far. pool: prompt pairs to learn
    from; reference: the margins that the circuit should have on them, clean prompts first (None: the right answers
    decide); log: called with step, loss in nats and number of open gates.
    """
    calibrated, power = config.calibrate and reference is None, None
    if reference is not None:
        power = float(reference.square().mean())
    log_scale = torch.zeros((), device=like.device, requires_grad=calibrated)
    settings = GateSettings(
        steps=config.steps,
        batch_size=config.batch_size,
        lr=config.lr,
        seed=seed,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
    shapes = {key: (len(own),) for key, own in parts.items()}
    closed = _Closed(config.ablation, shapes, seed=seed, like=like)
    learner = GateLearner(shapes, pool, settings, like=like, beside=[log_scale])
    importance = {key: torch.zeros_like(gate) for key, gate in learner.gates.parameters.items()}
    way: list[Ranked[Part]] = []
    sides = torch.Generator().manual_seed(seed)
    for step, rows, masks in learner.steps():
        targets, places = _prompts(pool, rows, config, sides)
        margin = margins(forward(targets, closed.filled(masks)), targets)
        if reference is None:
            loss = two_way_loss(margin * log_scale.exp())
        else:
            loss = loss_against(config.objective, margin, reference[places], power)
            if config.target_order and config.objective == "margins":
                loss = loss + DISORDER * disorder(margin, reference[places], targets.answer)
        n_open, by_mask = learner.backward(loss, rising(config.penalty, step, config.steps), masks)
        for key, grad in by_mask.items():
            importance[key].lerp_(grad.abs(), 0.05)
        closed.climb(by_mask)
        if not way or n_open < min(0.9 * len(way[-1]), len(way[-1]) - 1):
            way.append(_ranked(parts, learner.gates, importance))
        learner.update()
        if step % 20 == 0 or step == config.steps - 1:
            log(step, float(loss.detach()), int(n_open))
    return [*way, _ranked(parts, learner.gates, importance)]


def _prompts(
    pool: Batch, rows: Int64[Tensor, " pairs"], config: PruneConfig, sides: torch.Generator
) -> tuple[Targets, Int64[Tensor, " prompts"]]:
    """The prompts of a step, both of each pair or either, and their places among all: clean ones, then corrupted."""
    both = pool.rows(rows).tokens_and_targets()
    places = torch.cat([rows, rows + len(pool)])
    if config.prompts == "both":
        return both, places
    n = len(rows)
    taken = torch.arange(n) + n * torch.randint(2, (n,), generator=sides)
    return Targets(*(part[taken.to(part.device)] for part in both)), places[taken]


class _Closed(Generic[Key]):
    """The shares of themselves that closed parts keep while gates learn: none, random ones, or ones that climb.

    Ablations that stand still leave none. Adversarial ones go up the loss, by a step of its sign, each time that the
    gates go down.
    """

    def __init__(
        self, ablation: Ablation, shapes: Mapping[Key, tuple[int, ...]], *, seed: int, like: Tensor
    ) -> None:
        self.ablation, self._generator = ablation, torch.Generator().manual_seed(seed)
        self._shares = {key: torch.zeros(shape).to(like) for key, shape in shapes.items()}

    def filled(self, masks: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
        """The masks with closed parts at their shares."""
        if self.ablation not in HOSTILE:
            return dict(masks)
        if self.ablation == "stochastic":
            self._shares = {
                key: torch.rand(share.shape, generator=self._generator).to(share)
                for key, share in self._shares.items()
            }
        return {key: mask + (1 - mask) * self._shares[key] for key, mask in masks.items()}

    def climb(self, slopes: Mapping[Key, Tensor]) -> None:
        """Move the shares up the loss, given its slopes by the masks, which have the sign of those by the shares."""
        if self.ablation == "adversarial":
            self._shares = {
                # A share of 1 would hide the part's gate from the loss.
                key: (share + CLIMB * slopes[key].sign()).clamp(0, 0.9)
                for key, share in self._shares.items()
            }


class Ranked(Sequence[Part]):
    """The open parts, best first: places alone, until somebody asks which parts they are."""

    def __init__(self, parts: Sequence[Sequence[Part]], order: Int64[Tensor, " open"]) -> None:
        """parts: of each key; order: places of the open ones among all parts, one key after the other."""
        self._parts, self._order = parts, order.cpu()
        self._starts = torch.tensor([0, *accumulate(map(len, parts))])

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Part]:
        keys = torch.searchsorted(self._starts, self._order, right=True) - 1
        places = self._order - self._starts[keys]
        return (self._parts[key][i] for key, i in zip(keys.tolist(), places.tolist(), strict=True))

    def __getitem__(self, place: Any) -> Any:
        return list(self)[place]


def _ranked(
    parts: Mapping[Key, Sequence[Part]], gates: Gates[Key], importance: dict[Key, Tensor]
) -> Ranked[Part]:
    """The open parts, by gate, then by importance where gates tie (as they do at the clamp), then as parts sort."""
    keys = sorted((key for key in parts if len(parts[key])), key=lambda key: parts[key][0])  # type: ignore[arg-type,return-value]
    if not keys:
        return Ranked([], torch.zeros(0, dtype=torch.int64))
    gate = torch.cat([gates.parameters[key].detach() for key in keys])
    weight = torch.cat([importance[key] for key in keys])
    order = weight.sort(descending=True, stable=True).indices
    order = order[gate[order].sort(descending=True, stable=True).indices]
    return Ranked([parts[key] for key in keys], order[gate[order] > 0])
