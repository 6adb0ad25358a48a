"""Selection by magnitude: the largest weights of a matrix, and AbsTopK of activations."""

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.kernels.checks import check_dim, check_like, check_selection
from circuits.kernels.dispatch import differentiable, implementation, transformed


def topk_mask(
    w: Float[Tensor, "*shape"], k: int, always: Bool[Tensor, "*shape"] | None = None, impl: str = "auto"
) -> Bool[Tensor, "*shape"]:
    """Mask with exactly k ones, at the k largest magnitudes of the whole tensor.

    Args:
        w: any shape. NaN counts as larger than infinity.
        k: how many to keep, 1 to `w.numel()`.
        always: entries that are kept whatever their magnitude, *inside* the budget k.
        impl: see `chosen_impl`.

    Among equals the lowest index in row-major order is kept.

    Raises:
        ValueError: k out of range, `always` of another shape, or more than k entries in `always`.

    Examples:
        >>> circuits.kernels.topk_mask(torch.tensor([[1.0, 2.0], [4.0, 3.0]]), 2)
        tensor([[False, False],
                [ True,  True]])
    """
    check_selection("w", w, k, w.numel())
    if always is not None and always.shape != w.shape:
        raise ValueError(f"always has shape {tuple(always.shape)}; expected {tuple(w.shape)}, the shape of w")
    if always is not None and (forced := int(always.sum())) > k:
        raise ValueError(f"always marks {forced} entries; expected at most k = {k}: raise k or mark fewer")
    mask: Tensor = implementation("topk_mask", impl, w).topk_mask(w.detach(), k, always)
    return mask


def topk_threshold(w: Float[Tensor, "*shape"], k: int, impl: str = "auto") -> Float[Tensor, ""]:
    """The k-th largest magnitude of the whole tensor, exactly; NaN counts as larger than infinity.

    Raises:
        ValueError: k is not in 1 to `w.numel()`.

    Examples:
        >>> circuits.kernels.topk_threshold(torch.tensor([1.0, -4.0, 3.0]), 2)
        tensor(3.)
    """
    check_selection("w", w, k, w.numel())
    threshold: Tensor = implementation("topk_threshold", impl, w).topk_threshold(w.detach(), k)
    return threshold


def slice_topk_mask(
    w: Float[Tensor, "*shape"], k: int, dim: int, impl: str = "auto"
) -> Bool[Tensor, "*shape"]:
    """Mask with exactly k ones in each slice along `dim`, at the slice's k largest magnitudes.

    For a matrix, `dim=1` keeps k per row and `dim=0` k per column. Among equals the lowest index is kept; NaN
    counts as larger than infinity.

    Raises:
        ValueError: k is not in 1 to `w.shape[dim]`, or w has no such dim.

    Examples:
        >>> circuits.kernels.slice_topk_mask(torch.tensor([[1.0, 2.0], [4.0, 3.0]]), 1, dim=1)
        tensor([[False,  True],
                [ True, False]])
    """
    check_dim(w, dim)
    check_selection("w", w, k, w.shape[dim])
    mask: Tensor = implementation("slice_topk_mask", impl, w).slice_topk_mask(w.detach(), k, dim)
    return mask


def abs_topk(
    x: Float[Tensor, "*shape"],
    k: int,
    dim: int = -1,
    impl: str = "auto",
    out: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """AbsTopK: keep the k largest magnitudes of each slice along `dim`, sign kept, the rest 0.

    At most k entries of a slice are nonzero; among equals the lowest index survives; NaN counts as larger
    than infinity, so it stays visible. The gradient passes on the entries that survive. A slice with fewer
    than k nonzero entries is unchanged, and there the gradient passes on all of them.

    Args:
        x: any shape; fastest when contiguous (whichever dim is reduced) or the transpose of a contiguous
            matrix.
        k: entries kept per slice, 1 to `x.shape[dim]`.
        dim: the axis reduced.
        impl: see `chosen_impl`.
        out: written instead of fresh memory, and returned; may be x itself. Not for calls that record a
            gradient.

    Raises:
        ValueError: k or dim out of range, x not floating point, or `out` of another shape or type or with a
            gradient.

    Source: Gao et al. 2025 (arXiv 2511.13653), activation sparsity.

    Examples:
        >>> circuits.kernels.abs_topk(torch.tensor([3.0, -5.0, 1.0]), 2)
        tensor([ 3., -5.,  0.])
    """
    check_dim(x, dim)
    check_selection("x", x, k, x.shape[dim])
    check_like("out", out, tuple(x.shape), x)
    records = torch.is_grad_enabled() and x.requires_grad
    if records and out is not None:
        raise ValueError(
            "out was given while a gradient is recorded; call without out, or under torch.no_grad()"
        )
    module = implementation("abs_topk", impl, x)
    if transformed():
        y: Tensor = module.abs_topk(x, k, dim)
        return y if out is None else out.copy_(y)
    if records:
        kept: Tensor = _AbsTopK.apply(x, k, dim, module)
    else:
        kept, _ = module.abs_topk_forward(x.detach(), k, dim, out)
    return kept


class _AbsTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int, dim: int, module: ModuleType) -> Tensor:
        kept: Tensor
        kept, identity = module.abs_topk_forward(x, k, dim)
        # The output is all the backward pass needs; the layer that comes next saves it anyway.
        ctx.save_for_backward(kept, identity)
        ctx.dim, ctx.module = dim, module
        return kept

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kept, identity = ctx.saved_tensors
        module = differentiable(ctx.module)
        return module.abs_topk_backward(grads[0], kept, identity, ctx.dim), None, None, None
