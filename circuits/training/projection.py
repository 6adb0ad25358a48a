"""Top-k: the projection of weights during training, AbsTopK of activations, and the density schedule."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits import kernels
from circuits.kernels import abs_topk

__all__ = ["abs_topk", "budget", "density_at", "project_topk", "topk_mask"]


def budget(n_entries: int, density: float) -> int:
    """Nonzeros that a tensor of `n_entries` may keep: `max(1, int(density * n_entries))`."""
    return max(1, int(density * n_entries))


def topk_mask(
    weight: Float[Tensor, "..."], k: int, *, min_alive: int = 0, unit_axis: int | None = None
) -> Bool[Tensor, "..."]:
    """The k entries of largest magnitude, among them the `min_alive` largest of every unit: True = keep.

    Exactly k entries are kept; ties go to the lower index. `unit_axis` is the axis that enumerates the units
    (1: columns of W_in, incoming weights; 0: rows of W_out, outgoing weights). The guaranteed entries count
    in k. Raises ValueError when they alone exceed it.
    Source: Gao et al. 2025 (arXiv 2511.13653), minimum alive j; here inside the budget.
    """
    if not 1 <= k <= weight.numel():
        raise ValueError(
            f"k: got {k}; expected 1 to {weight.numel()}, the entries of a {tuple(weight.shape)} tensor."
        )
    if min_alive == 0 or unit_axis is None:
        return kernels.topk_mask(weight, k)
    units = weight.shape[unit_axis]
    if min_alive * units > k:
        raise ValueError(
            f"min_alive: {min_alive} weights for each of {units} units need {min_alive * units} nonzeros, but "
            f"the budget of this {tuple(weight.shape)} tensor is {k}. Raise the density to at least "
            f"{min_alive * units / weight.numel():.4g}, or lower min_alive to at most {k // units}."
        )
    alive = kernels.slice_topk_mask(weight, min(min_alive, weight.shape[1 - unit_axis]), 1 - unit_axis)
    return kernels.topk_mask(weight, k, alive)


def project_topk(
    weight: Float[Tensor, "..."], k: int, *, min_alive: int = 0, unit_axis: int | None = None
) -> None:
    """Zero, in place, every entry that `topk_mask` does not keep. Same arguments, same errors."""
    with torch.no_grad():
        weight.masked_fill_(~topk_mask(weight, k, min_alive=min_alive, unit_axis=unit_axis), 0.0)


def density_at(
    progress: float,
    final: float,
    *,
    start: float = 0.01,
    end: float = 0.5,
    shape: Literal["linear", "exponential"] = "linear",
) -> float:
    """Density at a fraction of training: 1 until `start`, `final` from `end` on, falling in between.

    Linear: equal steps of density. Exponential: equal steps of its logarithm.
    """
    if progress >= end:
        return final  # exactly: 1 + (final - 1) would round, and cost a budget its last weight
    t = max(0.0, (progress - start) / (end - start))
    return 1.0 + t * (final - 1.0) if shape == "linear" else final**t
