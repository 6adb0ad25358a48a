"""Ablation that chooses: what is left out takes values between its mean and its own, at random or the worst there are.

A part of a model that holds only while everything else stands still leans on what it leaves out. So each coordinate
outside takes `mean + share * (own value - mean)`, and each weight outside passes that share of itself, the shares
anywhere in [0, 1]: drawn at random (stochastic), or climbed to the greatest loss (adversarial, projected gradient).
Shares are one number a coordinate or weight for all prompts at once: one model, differently cut, not one per prompt.

Sources: Bushnaq et al. 2025 (arXiv 2506.20790) ablate stochastically; Madry et al. 2018 (arXiv 1706.06083), projected
gradient.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.model.sites import Site, WeightAt

Key = Site | WeightAt
Shares = dict[Key, Tensor]
"""For each site [width] and each weight matrix [d_in, d_out]: how much of itself each part keeps, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Attack:
    """How the worst shares are looked for: projected gradient ascent with steps of the gradient's sign."""

    steps: int = 10
    "Steps from each start."
    starts: int = 3
    "From shares of nothing, which is mean ablation; the others from random ones."
    size: float = 0.5
    "Length of the first step; falls linearly to a tenth of it."
    seed: int = 0
    "Decides the random starts."


class Found(NamedTuple):
    """What an attack found."""

    loss: float
    """The greatest loss, in the unit of the loss it climbed."""
    shares: Shares
    """Where it is; 1 at every kept part."""


def drawn(kept: Mapping[Key, Tensor], generator: torch.Generator) -> Shares:
    """Random shares: 1 where a part is kept (a mask of 0 and 1), uniform in [0, 1] elsewhere."""
    return {
        key: _outside(mask, torch.rand(mask.shape, generator=generator).to(mask))
        for key, mask in kept.items()
    }


def worst(
    kept: Mapping[Key, Tensor], loss: Callable[[Shares], Float[Tensor, ""]], attack: Attack | None = None
) -> Found:
    """The shares outside the kept parts that make the loss greatest, as far as projected gradient ascent finds them.

    kept: 1 at each kept part, 0 elsewhere; loss: of shares, differentiable. The greatest loss seen counts, so more
    starts never find less; all shares 0, which is mean ablation, is always among them.
    """
    attack = attack or Attack()
    generator = torch.Generator().manual_seed(attack.seed)
    best = Found(float("-inf"), {})
    for start in range(attack.starts):
        shares = _start(kept, start, generator)
        for step in range(attack.steps + 1):
            value, slopes = _slopes(loss, shares)
            if value > best.loss:
                best = Found(value, shares)
            length = attack.size * (1 - 0.9 * step / attack.steps)
            shares = {
                key: _outside(kept[key], (share + length * slopes[key].sign()).clamp(0, 1))
                for key, share in shares.items()
            }
    return best


def _start(kept: Mapping[Key, Tensor], start: int, generator: torch.Generator) -> Shares:
    return drawn(kept, generator) if start else dict(kept)


def _slopes(loss: Callable[[Shares], Tensor], shares: Shares) -> tuple[float, Shares]:
    with torch.enable_grad():
        leaves = {key: share.detach().requires_grad_() for key, share in shares.items()}
        value = loss(leaves)
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    slopes = (torch.zeros_like(s) if g is None else g for s, g in zip(shares.values(), found, strict=True))
    return float(value.detach()), dict(zip(shares, slopes, strict=True))


def _outside(mask: Tensor, share: Tensor) -> Tensor:
    """The share where the mask is 0; 1 where it is 1."""
    return mask + (1 - mask) * share
