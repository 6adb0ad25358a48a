"""The operations that cost time, each as one function with `impl="naive" | "cpu" | "triton" | "auto"`.

`naive` is plain PyTorch and defines correct; `cpu` is compiled loops for float32 and float64; `triton` is for
NVIDIA GPUs. `auto` picks by device, type and density, and `chosen_impl` says what it picks. All
implementations agree on every choice they make: which entry survives a tie, what NaN means.
"""

import importlib.util
import os
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from circuits.kernels.attention import causal_attention
from circuits.kernels.layout import token_major
from circuits.kernels.sparse_weight import SparseWeight

__all__ = [
    "SparseWeight",
    "abs_topk",
    "causal_attention",
    "chosen_impl",
    "sddmm",
    "slice_topk_mask",
    "sparse_linear",
    "spmm",
    "spmm_t",
    "token_major",
    "topk_mask",
    "topk_threshold",
    "trained_linear",
]

IMPLS = ("naive", "cpu", "triton")
DENSE_FROM = {"cpu": 0.35, "triton": 0.05}
"""Density from which the product with a dense matrix is faster.

CPU: measured, forward and transpose together, 2,048 tokens, one core: dense over sparse time is 2.6 to 3.2 at density
1/8, 1.4 to 2.3 at 1/4, 1.0 to 1.2 at 0.35, 0.7 to 1.0 at 1/2, at widths 128 to 1024. GPU: an estimate,
not measured: a nonzero reads 4 bytes per token from a cache of about 5 TB/s; dense float32 does about 60 TFLOP/s.
"""


def chosen_impl(x: Float[Tensor, "*shape"], impl: str = "auto", weight: SparseWeight | None = None) -> str:
    """Which implementation a call with this tensor runs.

    `auto` is `triton` for CUDA tensors in float32 or bfloat16 where triton is installed, `cpu` for CPU
    tensors in float32 or float64, and `naive` for everything else (float16, other devices). For a product,
    give its `weight`: from the density in `DENSE_FROM` up, where dense matrices are faster, `auto` is
    `naive`.

    Raises:
        ValueError: `impl` is unknown, or cannot run on this tensor.
    """
    if impl == "auto":
        fitting = next((name for name in ("cpu", "triton") if not _misfit(x, name)), "naive")
        dense = weight is not None and weight.density >= DENSE_FROM.get(fitting, 0.0)
        return "naive" if dense else fitting
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
    if impl == "triton":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if not (x.is_cuda or interpreted) or x.dtype not in (torch.float32, torch.bfloat16):
            return "takes float32 or bfloat16 on a CUDA device"
        if importlib.util.find_spec("triton") is None:
            return "needs the package triton, which is not installed"
    return ""


def _module(x: Tensor, impl: str, weight: SparseWeight | None = None) -> ModuleType:
    """The module that holds the implementation, imported on first use: numba and triton import slowly."""
    return importlib.import_module(f"circuits.kernels.{chosen_impl(x, impl, weight)}")


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


def _check_like(name: str, given: Tensor | None, shape: tuple[int, ...], x: Tensor) -> None:
    """That a tensor, if there is one, has this shape, and the type and device of x."""
    if given is None or (tuple(given.shape) == shape and given.dtype == x.dtype and given.device == x.device):
        return
    got = f"{tuple(given.shape)} {given.dtype} on {given.device}"
    raise ValueError(f"{name} is {got}; expected {shape} {x.dtype} on {x.device}: reshape it or convert it")


def _check_operand(name: str, given: Tensor, rows: int, axis: str, weight: SparseWeight) -> None:
    """That activations lie feature-major and match the weight."""
    if given.ndim != 2 or given.shape[0] != rows:
        hint = (
            ": activations are feature-major, give x.t()"
            if given.ndim == 2 and given.shape[1] == rows
            else ""
        )
        raise ValueError(
            f"{name} has shape {tuple(given.shape)}; expected [{rows}, tokens], with {axis} = {rows} "
            f"of the weight {weight.shape}{hint}"
        )
    if given.dtype != weight.values.dtype or given.device != weight.values.device:
        raise ValueError(
            f"{name} is {given.dtype} on {given.device}, the weight {weight.values.dtype} on "
            f"{weight.values.device}; expected the same: convert one, for instance with weight.to(...)"
        )


def spmm(
    weight: SparseWeight,
    x: Float[Tensor, "d_in tokens"],
    bias: Float[Tensor, " d_out"] | None = None,
    impl: str = "auto",
    out: Float[Tensor, "d_out tokens"] | None = None,
) -> Float[Tensor, "d_out tokens"]:
    """Sparse weight times dense activations, feature-major: W^T x + bias.

    Records no gradient: see `sparse_linear`.

    Raises:
        ValueError: shapes, types or devices that disagree.
    """
    d_in, d_out = weight.shape
    _check_operand("x", x, d_in, "d_in", weight)
    _check_like("bias", bias, (d_out,), x)
    _check_like("out", out, (d_out, x.shape[1]), x)
    shift = None if bias is None else bias.detach()
    y: Tensor = _module(x, impl, weight).spmm(weight, x.detach(), shift, out)
    return y


def spmm_t(
    weight: SparseWeight,
    dy: Float[Tensor, "d_out tokens"],
    impl: str = "auto",
    out: Float[Tensor, "d_in tokens"] | None = None,
) -> Float[Tensor, "d_in tokens"]:
    """The transpose of `spmm`, which is the gradient to the activations: W dy.

    Raises:
        ValueError: shapes, types or devices that disagree.
    """
    d_in, d_out = weight.shape
    _check_operand("dy", dy, d_out, "d_out", weight)
    _check_like("out", out, (d_in, dy.shape[1]), dy)
    dx: Tensor = _module(dy, impl, weight).spmm_t(weight, dy.detach(), out)
    return dx


def sddmm(
    weight: SparseWeight,
    x: Float[Tensor, "d_in tokens"],
    dy: Float[Tensor, "d_out tokens"],
    impl: str = "auto",
) -> Float[Tensor, " n_nonzero"]:
    """Sampled dense-dense product: the entries of x dy^T on the support, which is the gradient to the values.

    Raises:
        ValueError: shapes, types or devices that disagree.
    """
    d_in, d_out = weight.shape
    _check_operand("x", x, d_in, "d_in", weight)
    _check_operand("dy", dy, d_out, "d_out", weight)
    _check_like("dy", dy, (d_out, x.shape[1]), x)
    dvalues: Tensor = _module(x, impl, weight).sddmm(weight, x.detach(), dy.detach())
    return dvalues


def sparse_linear(
    x: Float[Tensor, "d_in tokens"],
    weight: SparseWeight,
    values: Float[Tensor, " n_nonzero"] | None = None,
    bias: Float[Tensor, " d_out"] | None = None,
    impl: str = "auto",
) -> Float[Tensor, "d_out tokens"]:
    """A linear layer that costs what its nonzeros cost, forward and backward: W^T x + bias.

    Gradients go to x, to `values` and to `bias`, each computed only where it is required; none is dense.

    Args:
        x: activations, feature-major.
        weight: the support, and the values unless `values` is given.
        values: values to use, and to train, in the order of `weight.values`.
        bias: added to every token.
        impl: see `chosen_impl`.

    Raises:
        ValueError: shapes, types or devices that disagree.
    """
    values = weight.values if values is None else values
    weight = weight.with_values(values)
    _check_operand("x", x, weight.shape[0], "d_in", weight)
    _check_like("bias", bias, (weight.shape[1],), x)
    y: Tensor = _SparseLinear.apply(x, values, bias, weight, _module(x, impl, weight))
    return y


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, weight: SparseWeight, module: ModuleType
    ) -> Tensor:
        # x is needed only for the gradient to the values: a frozen weight does not keep it alive.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, values)
        ctx.weight, ctx.module = weight, module
        y: Tensor = module.spmm(weight, x, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, values = ctx.saved_tensors
        weight = ctx.weight.with_values(values)
        wants_x, wants_values, wants_bias = ctx.needs_input_grad[:3]
        dx = ctx.module.spmm_t(weight, dy) if wants_x else None
        dvalues = ctx.module.sddmm(weight, x, dy) if wants_values else None
        return dx, dvalues, (dy.sum(1) if wants_bias else None), None, None


def trained_linear(
    x: Float[Tensor, "d_in tokens"],
    dense: Float[Tensor, "d_in d_out"],
    weight: SparseWeight,
    bias: Float[Tensor, " d_out"],
    on_support: bool = False,
    impl: str = "auto",
) -> Float[Tensor, "d_out tokens"]:
    """`sparse_linear` for a weight that is trained as a dense matrix: W^T x + bias.

    Args:
        x: activations, feature-major.
        dense: gets the gradient, as a dense matrix; its entries are not read.
        weight: the nonzeros of `dense`.
        bias: added to every token.
        on_support: take the gradient to `dense` at the nonzeros only, and zero elsewhere; otherwise everywhere.
        impl: see `chosen_impl`.

    Raises:
        ValueError: shapes, types or devices that disagree.
    """
    _check_operand("x", x, weight.shape[0], "d_in", weight)
    _check_like("dense", dense, weight.shape, x)
    _check_like("bias", bias, (weight.shape[1],), x)
    y: Tensor = _TrainedLinear.apply(x, dense, bias, weight, on_support, _module(x, impl, weight))
    return y


class _TrainedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dense: Tensor,
        bias: Tensor,
        weight: SparseWeight,
        on_support: bool,
        module: ModuleType,
    ) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None)
        ctx.weight, ctx.on_support, ctx.module = weight, on_support, module
        y: Tensor = module.spmm(weight, x, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        weight = ctx.weight
        wants_x, wants_dense, wants_bias = ctx.needs_input_grad[:3]
        dx = ctx.module.spmm_t(weight, dy) if wants_x else None
        ddense = None
        if wants_dense and ctx.on_support:
            ddense = weight.with_values(ctx.module.sddmm(weight, x, dy)).to_dense()
        elif wants_dense:
            ddense = x @ dy.t()
        return dx, ddense, (dy.sum(1) if wants_bias else None), None, None, None


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
