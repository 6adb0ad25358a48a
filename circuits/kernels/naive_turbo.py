"""Attention in few bits, in plain PyTorch: the definition. Whole numbers are held as floats, which sum them exactly."""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from circuits.kernels.quantised import LIMIT, TILE, Stored, fake_int8, sas

Exponential = Callable[[Tensor], Tensor]
"""e^x, or what stands for it, of x <= 0."""


def tiled_pattern(
    scores: Float[Tensor, "batch head query key"],
    sink: Float[Tensor, " head"] | None,
    *,
    exponential: Exponential = torch.exp,
    tile: int = TILE,
    int8: bool = False,
) -> Float[Tensor, "batch head query key"]:
    """The pattern that attention over tiles of keys ends up with, masked scores being -inf.

    Tile by tile a query keeps the largest score m so far: `p = exp(s - m_new)`, what was summed before is multiplied
    by `exp(m - m_new)`, which is 1 where m stays. With an exponential that is exact this is the softmax. The sink
    comes before the first tile. int8: each tile of p [tile queries, tile keys] is rounded to whole multiples of its
    largest entry over 119, after it was summed for the denominator. A query without an open key gets NaN.
    """
    n_keys = scores.shape[-1]
    tiles = F.pad(scores, (0, -n_keys % tile), value=-math.inf).unflatten(-1, (-1, tile))
    first = torch.full_like(scores[..., :1], -math.inf) if sink is None else _column(sink, scores)
    largest = torch.cat([first, tiles.amax(-1)], dim=-1).cummax(-1).values
    faded = exponential((largest[..., :-1] - largest[..., 1:]).nan_to_num(-math.inf))
    faded = faded.masked_fill(largest[..., :-1] == largest[..., 1:], 1.0)
    faded = F.pad(faded, (0, 1), value=1.0).flip(-1).cumprod(-1).flip(-1)  # [t]: by all tiles from t on
    p = exponential(tiles - largest[..., 1:, None]).nan_to_num(0.0)
    total = (p.sum(-1) * faded[..., 1:]).sum(-1, keepdim=True)
    if sink is not None:
        total = total + faded[..., :1] * exponential(torch.zeros_like(total))
    p = _rounded(p, tile) if int8 else p
    return (p * faded[..., 1:, None]).flatten(-2)[..., :n_keys] / total


def _column(sink: Tensor, scores: Tensor) -> Tensor:
    return sink.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)


def _rounded(p: Float[Tensor, "batch head query tiles tile"], tile: int) -> Tensor:
    """p in 119 equal steps, tile by tile."""
    n = p.shape[2]
    blocks = F.pad(p, (0, 0, 0, 0, 0, -n % tile)).unflatten(2, (-1, tile))
    step = blocks.amax((3, 5), keepdim=True) / LIMIT
    steps = (blocks / step.masked_fill(step == 0, 1.0)).round()
    return (steps * step).flatten(2, 3)[:, :, :n]


def turbo_attention(
    q: Float[Tensor, "batch pos head d_head"],
    k: Float[Tensor, "batch pos head d_head"],
    v: Float[Tensor, "batch pos head d_head"],
    sink: Float[Tensor, " head"] | None,
    n_r: int,
    tile: int,
) -> Float[Tensor, "batch pos head d_head"]:
    """Causal attention on INT8 tiles with SAS; see `circuits.kernels.turbo_attention`."""
    q, k, v = (fake_int8(x, tile) for x in (q, k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    later = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool, device=q.device).triu(1)
    pattern = tiled_pattern(
        scores.masked_fill(later, -math.inf), sink, exponential=partial(sas, n_r=n_r), tile=tile, int8=True
    )
    return torch.einsum("bhqk,bkhd->bqhd", pattern, v)


def turbo_decode(
    q: Float[Tensor, "batch 1 head d_head"], stored: Stored, sink: Float[Tensor, " head"] | None, n_r: int
) -> Float[Tensor, "batch 1 head d_head"]:
    """One query over packed keys and values; see `circuits.kernels.turbo_decode`."""
    k, v = (x.to(q.dtype) for x in stored.unpacked())
    scores = torch.einsum("bqhd,bkhd->bhqk", fake_int8(q, 1), k) / math.sqrt(q.shape[-1])
    tile = stored.keys.tile
    pattern = tiled_pattern(scores, sink, exponential=partial(sas, n_r=n_r), tile=tile, int8=True)
    return torch.einsum("bhqk,bkhd->bqhd", pattern, v)
