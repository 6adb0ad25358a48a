"""Every operation in plain PyTorch: slow, short, and the definition of correct."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.kernels.dispatch import transformed
from circuits.kernels.naive_turbo import turbo_attention as turbo_attention
from circuits.kernels.naive_turbo import turbo_decode as turbo_decode
from circuits.kernels.sparse_weight import SparseWeight, from_sorted


def topk_mask(
    w: Float[Tensor, "*shape"], k: int, always: Bool[Tensor, "*shape"] | None = None
) -> Bool[Tensor, "*shape"]:
    """True at the k largest magnitudes of the whole tensor; see `circuits.kernels.topk_mask`."""
    rank = w.abs()
    first = torch.zeros_like(rank) if always is None else always.to(rank.dtype)
    order = rank.flatten().sort(descending=True, stable=True).indices
    order = order[first.flatten()[order].sort(descending=True, stable=True).indices]
    mask = torch.zeros(w.numel(), dtype=torch.bool, device=w.device)
    mask[order[:k]] = True
    return mask.view(w.shape)


def topk_threshold(w: Float[Tensor, "*shape"], k: int) -> Float[Tensor, ""]:
    """The k-th largest magnitude; see `circuits.kernels.topk_threshold`."""
    return w.abs().flatten().sort(descending=True).values[k - 1]


def slice_topk_mask(w: Float[Tensor, "*shape"], k: int, dim: int) -> Bool[Tensor, "*shape"]:
    """True at the k largest magnitudes of each slice along `dim`; see `circuits.kernels.slice_topk_mask`."""
    order = w.abs().sort(dim=dim, descending=True, stable=True).indices
    return torch.zeros_like(w, dtype=torch.bool).scatter(dim, order.narrow(dim, 0, k), True)


def abs_topk(x: Float[Tensor, "*shape"], k: int, dim: int) -> Float[Tensor, "*shape"]:
    """AbsTopK, differentiable as it stands; see `circuits.kernels.abs_topk`."""
    identity = (x != 0).sum(dim, keepdim=True) < k
    return torch.where(slice_topk_mask(x.detach(), k, dim) | identity, x, torch.zeros_like(x))


def abs_topk_forward(
    x: Float[Tensor, "*shape"], k: int, dim: int, out: Float[Tensor, "*shape"] | None = None
) -> tuple[Float[Tensor, "*shape"], Bool[Tensor, "..."]]:
    """AbsTopK, and for each slice whether fewer than k of its entries are nonzero."""
    kept = torch.where(slice_topk_mask(x, k, dim), x, torch.zeros_like(x))
    identity = (x != 0).sum(dim, keepdim=True) < k
    return (kept if out is None else out.copy_(kept)), identity


def abs_topk_backward(
    dy: Float[Tensor, "*shape"], y: Float[Tensor, "*shape"], identity: Bool[Tensor, "..."], dim: int
) -> Float[Tensor, "*shape"]:
    """The gradient of AbsTopK, from its output and the flags that came with it."""
    return torch.where((y != 0) | identity, dy, torch.zeros_like(dy))


def spmm(
    weight: SparseWeight,
    x: Float[Tensor, "d_in tokens"],
    bias: Float[Tensor, " d_out"] | None = None,
    out: Float[Tensor, "d_out tokens"] | None = None,
) -> Float[Tensor, "d_out tokens"]:
    """W^T x + bias; see `circuits.kernels.spmm`."""
    rows, columns = weight.rows_of_values(), weight.column.long()
    y = (
        weight.to_dense().t() @ x
        if _finite(x)
        else _over_nonzeros(weight.values, rows, columns, x, weight.shape[1])
    )
    y = y if bias is None else y + bias[:, None]
    return y if out is None else out.copy_(y)


def spmm_t(
    weight: SparseWeight, dy: Float[Tensor, "d_out tokens"], out: Float[Tensor, "d_in tokens"] | None = None
) -> Float[Tensor, "d_in tokens"]:
    """W dy; see `circuits.kernels.spmm_t`."""
    rows, columns = weight.rows_of_values(), weight.column.long()
    dx = (
        weight.to_dense() @ dy
        if _finite(dy)
        else _over_nonzeros(weight.values, columns, rows, dy, weight.shape[0])
    )
    return dx if out is None else out.copy_(dx)


def _finite(x: Tensor) -> bool:
    """Whether a dense product will do; taken for granted where PyTorch looks through the call and no value is known."""
    return transformed() or bool(x.isfinite().all())


def _over_nonzeros(
    values: Float[Tensor, " nnz"],
    read: Int[Tensor, " nnz"],
    written: Int[Tensor, " nnz"],
    x: Float[Tensor, "n_read tokens"],
    n_written: int,
) -> Float[Tensor, "n_written tokens"]:
    """The sum over nonzeros alone: NaN and infinity reach no row through a weight of zero."""
    return x.new_zeros(n_written, x.shape[1]).index_add(0, written, values[:, None] * x[read])


def sddmm(
    weight: SparseWeight, x: Float[Tensor, "d_in tokens"], dy: Float[Tensor, "d_out tokens"]
) -> Float[Tensor, " n_nonzero"]:
    """x dy^T on the support; see `circuits.kernels.sddmm`."""
    return (x @ dy.t())[weight.rows_of_values(), weight.column.long()]


def from_dense(
    w: Float[Tensor, "d_in d_out"], mask: Bool[Tensor, "d_in d_out"] | None = None
) -> SparseWeight:
    """The nonzeros of a dense matrix, or the entries that `mask` marks; see `SparseWeight.from_dense`."""
    support = (w != 0) if mask is None else mask
    rows, columns = support.nonzero(as_tuple=True)
    return from_sorted(rows, columns, w[rows, columns], (w.shape[0], w.shape[1]))


def causal_attention(
    q: Float[Tensor, "batch pos head d_head"],
    k: Float[Tensor, "batch pos head d_head"],
    v: Float[Tensor, "batch pos head d_head"],
    sink: Float[Tensor, " head"] | None,
) -> Float[Tensor, "batch pos head d_head"]:
    """Softmax over the keys so far and the sink, the pattern in memory; see `circuits.kernels.causal_attention`."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    scores = scores.masked_fill(later, -torch.inf)
    column = scores.new_full((*scores.shape[:3], 1), -torch.inf)
    if sink is not None:
        column = sink[:, None, None].expand_as(column)
    pattern = torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]
    return torch.einsum("bhqk,bkhd->bqhd", pattern, v)


def token_major(x: Float[Tensor, "batch pos *width"]) -> Float[Tensor, "batch pos *width"]:
    """x, contiguous; see `circuits.kernels.token_major`."""
    return x.contiguous()


def replace_features(
    x: Float[Tensor, "batch pos *width"], mask: Float[Tensor, "*width"], value: Float[Tensor, "*width"]
) -> Float[Tensor, "batch pos *width"]:
    """x where the mask is 1, the value where it is 0; see `circuits.kernels.replace_features`."""
    return x * mask + value * (1 - mask)
