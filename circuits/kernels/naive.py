"""Every operation in plain PyTorch: slow, short, and the definition of correct."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.kernels.sparse_weight import SparseWeight


def topk_mask(
    w: Float[Tensor, "*shape"], k: int, always: Bool[Tensor, "*shape"] | None
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
    return torch.zeros_like(w, dtype=torch.bool).scatter_(dim, order.narrow(dim, 0, k), True)


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
    y = weight.to_dense().t() @ x
    y = y if bias is None else y + bias[:, None]
    return y if out is None else out.copy_(y)


def spmm_t(
    weight: SparseWeight, dy: Float[Tensor, "d_out tokens"], out: Float[Tensor, "d_in tokens"] | None = None
) -> Float[Tensor, "d_in tokens"]:
    """W dy; see `circuits.kernels.spmm_t`."""
    dx = weight.to_dense() @ dy
    return dx if out is None else out.copy_(dx)


def sddmm(
    weight: SparseWeight, x: Float[Tensor, "d_in tokens"], dy: Float[Tensor, "d_out tokens"]
) -> Float[Tensor, " n_nonzero"]:
    """x dy^T on the support; see `circuits.kernels.sddmm`."""
    return (x @ dy.t())[weight.rows_of_values(), weight.column.long()]
