"""The operations that cost time, each as one function with `impl="naive" | "cpu" | "triton" | "auto"`.

`naive` is plain PyTorch and defines correct; `cpu` is compiled loops for float32 and float64; `triton` is for
NVIDIA GPUs. `auto` picks by device, type and density, and `chosen_impl` says what it picks. All
implementations agree on every choice they make: which entry survives a tie, what NaN means.
"""

import importlib
from types import ModuleType
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Impl", "abs_topk", "chosen_impl", "slice_topk_mask", "topk_mask", "topk_threshold"]

Impl = Literal["naive", "cpu", "triton", "auto"]
IMPLS = ("naive", "cpu", "triton")


def chosen_impl(x: Float[Tensor, "*shape"], impl: str = "auto") -> str:
    """Which implementation a call with this tensor runs.

    `auto` is `triton` for CUDA tensors in float32 or bfloat16 where triton is installed, `cpu` for CPU
    tensors in float32 or float64, and `naive` for everything else (float16, other devices).

    Raises:
        ValueError: `impl` is unknown, or cannot run on this tensor.
    """
    if impl == "auto":
        return next((name for name in ("cpu", "triton") if not _misfit(x, name)), "naive")
    if impl not in IMPLS:
        raise ValueError(f"impl is {impl!r}; expected one of 'auto', 'naive', 'cpu', 'triton'")
    misfit = _misfit(x, impl)
    if misfit:
        raise ValueError(
            f"impl={impl!r} {misfit}; got {x.dtype} on {x.device}: convert it, or use impl='auto'"
        )
    return impl


def _misfit(x: Tensor, impl: str) -> str:
    """Why this implementation cannot run on x; empty when it can."""
    if impl == "cpu" and (x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64)):
        return "takes float32 or float64 on the CPU"
    if impl == "triton" and (not x.is_cuda or x.dtype not in (torch.float32, torch.bfloat16)):
        return "takes float32 or bfloat16 on a CUDA device"
    return ""


def _module(x: Tensor, impl: str) -> ModuleType:
    """The module that holds the implementation, imported on first use: numba and triton import slowly."""
    return importlib.import_module(f"circuits.kernels.{chosen_impl(x, impl)}")


def _check_selection(name: str, x: Tensor, k: int, width: int) -> None:
    if not x.is_floating_point():
        raise ValueError(
            f"{name} has dtype {x.dtype}; expected a floating-point tensor: convert it with .float()"
        )
    if not 1 <= k <= width:
        raise ValueError(f"k is {k}; expected 1 to {width}, the number of entries it selects from")


def _check_dim(x: Tensor, dim: int) -> None:
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(
            f"dim is {dim}; expected {-x.ndim} to {x.ndim - 1} for a tensor of shape {tuple(x.shape)}"
        )


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
    """
    _check_selection("w", w, k, w.numel())
    if always is not None and always.shape != w.shape:
        raise ValueError(f"always has shape {tuple(always.shape)}; expected {tuple(w.shape)}, the shape of w")
    if always is not None and (forced := int(always.sum())) > k:
        raise ValueError(f"always marks {forced} entries; expected at most k = {k}: raise k or mark fewer")
    mask: Tensor = _module(w, impl).topk_mask(w.detach(), k, always)
    return mask


def topk_threshold(w: Float[Tensor, "*shape"], k: int, impl: str = "auto") -> Float[Tensor, ""]:
    """The k-th largest magnitude of the whole tensor, exactly; NaN counts as larger than infinity.

    Raises:
        ValueError: k is not in 1 to `w.numel()`.
    """
    _check_selection("w", w, k, w.numel())
    threshold: Tensor = _module(w, impl).topk_threshold(w.detach(), k)
    return threshold


def slice_topk_mask(
    w: Float[Tensor, "*shape"], k: int, dim: int, impl: str = "auto"
) -> Bool[Tensor, "*shape"]:
    """Mask with exactly k ones in each slice along `dim`, at the slice's k largest magnitudes.

    For a matrix, `dim=1` keeps k per row and `dim=0` k per column. Among equals the lowest index is kept; NaN
    counts as larger than infinity.

    Raises:
        ValueError: k is not in 1 to `w.shape[dim]`, or w has no such dim.
    """
    _check_dim(w, dim)
    _check_selection("w", w, k, w.shape[dim])
    mask: Tensor = _module(w, impl).slice_topk_mask(w.detach(), k, dim)
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
    """
    _check_dim(x, dim)
    _check_selection("x", x, k, x.shape[dim])
    records = torch.is_grad_enabled() and x.requires_grad
    if out is not None:
        if out.shape != x.shape or out.dtype != x.dtype or out.device != x.device:
            got = f"{tuple(out.shape)} {out.dtype} on {out.device}"
            raise ValueError(f"out is {got}; expected {tuple(x.shape)} {x.dtype} on {x.device}, like x")
        if records:
            raise ValueError(
                "out was given while a gradient is recorded; call without out, or under torch.no_grad()"
            )
    module = _module(x, impl)
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
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        kept, identity = ctx.saved_tensors
        return ctx.module.abs_topk_backward(dy, kept, identity, ctx.dim), None, None, None
