"""Every operation that NVIDIA GPUs run: float32 or bfloat16 in, any shape; the functions that the dispatcher calls."""

import functools
from typing import Any

import torch
import triton
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.kernels.sparse_weight import SparseWeight
from circuits.kernels.triton import interpreted
from circuits.kernels.triton.kernels import (
    CONFIGS,
    FLAT,
    abs_topk_bwd_kernel,
    abs_topk_fwd_kernel,
    sddmm_fwd_kernel,
    spmm_fwd_kernel,
)
from circuits.kernels.triton.turbo import turbo_attention as turbo_attention
from circuits.kernels.triton.turbo import turbo_decode as turbo_decode


@functools.cache
def _tuned(kernel: Any, space: str) -> Any:
    """The kernel with its search space, timed once per scale and type of arguments."""
    return triton.autotune(CONFIGS[space], ["scale"])(kernel)


def _launch(kernel: Any, grid: Any, arguments: tuple[Any, ...], space: str = "", **constants: Any) -> None:
    """Run a kernel, tuned over the search space if it has one; nothing can be timed under the interpreter."""
    if interpreted():
        blocks = CONFIGS[space][0].kwargs if space else {}
        kernel[grid(blocks)](*arguments, **constants, **blocks)
    else:
        # Fused multiply-add is said aloud: triton's default for it is about to change.
        chosen = _tuned(kernel, space) if space else kernel
        chosen[grid](*arguments, **constants, enable_fp_fusion=True)


def _over(size: int, block: int) -> Any:
    """The grid of a kernel that goes through a tensor once."""
    return lambda blocks: (triton.cdiv(size, block),)


def _low(dtype: torch.dtype) -> int:
    """The lowest bit that a value of this type, widened to float32, can have set."""
    return 16 if dtype == torch.bfloat16 else 0


def _layout(x: Tensor, dim: int) -> tuple[Tensor, int, bool]:
    """x contiguous, its dim, and whether its last axis was moved first: free where x lies feature-major."""
    dim %= x.ndim
    if x.ndim > 1 and not x.is_contiguous() and x.movedim(-1, 0).is_contiguous():
        return x.movedim(-1, 0), (dim + 1) % x.ndim, True
    return x.contiguous(), dim, False


def _select(x: Tensor, out: Tensor, k: int, dim: int, as_mask: bool) -> Tensor:
    """Write the selection from each slice of contiguous x into contiguous out; return the identity flags."""
    outer, n, inner = x.shape[:dim].numel(), x.shape[dim], x.shape[dim + 1 :].numel()
    identity = x.new_empty((*x.shape[:dim], 1, *x.shape[dim + 1 :]), dtype=torch.uint8)
    if inner == 1:
        slices, batches, strides, space = outer, 1, (n, 1, 0), "abs_topk_fwd_kernel rows"
    else:
        slices, batches, strides, space = inner, outer, (1, inner, n * inner), "abs_topk_fwd_kernel columns"

    def grid(blocks: dict[str, Any]) -> tuple[int]:
        return (batches * triton.cdiv(slices, blocks["BLOCK_S"]),)

    if x.numel() > 0:
        arguments = (x, out, identity, slices, n, *strides, k, triton.next_power_of_2(n))
        constants = {"AS_MASK": as_mask, "LOW": _low(x.dtype)}
        _launch(abs_topk_fwd_kernel, grid, arguments, space, **constants)
    return identity.view(torch.bool)


def slice_topk_mask(w: Float[Tensor, "*shape"], k: int, dim: int) -> Bool[Tensor, "*shape"]:
    """True at the k largest magnitudes of each slice along `dim`; see `circuits.kernels.slice_topk_mask`."""
    laid, axis, transposed = _layout(w, dim)
    mask = torch.empty_like(laid, dtype=torch.uint8)
    _select(laid, mask, k, axis, True)
    return (mask.movedim(0, -1) if transposed else mask).view(torch.bool)


def abs_topk_forward(
    x: Float[Tensor, "*shape"], k: int, dim: int, out: Float[Tensor, "*shape"] | None = None
) -> tuple[Float[Tensor, "*shape"], Bool[Tensor, "..."]]:
    """AbsTopK, and for each slice whether fewer than k of its entries are nonzero."""
    laid, axis, transposed = _layout(x, dim)
    written = torch.empty_like(laid)
    identity = _select(laid, written, k, axis, False)
    kept = written.movedim(0, -1) if transposed else written
    return (kept if out is None else out.copy_(kept)), (identity.movedim(0, -1) if transposed else identity)


def abs_topk_backward(
    dy: Float[Tensor, "*shape"], y: Float[Tensor, "*shape"], identity: Bool[Tensor, "..."], dim: int
) -> Float[Tensor, "*shape"]:
    """The gradient of AbsTopK, from its output and the flags that came with it."""
    y, axis, transposed = _layout(y, dim)
    dy = (dy.movedim(-1, 0) if transposed else dy).contiguous()
    flags = (identity.movedim(-1, 0) if transposed else identity).contiguous().view(torch.uint8)
    dx = torch.empty_like(y)
    inner = y.shape[axis + 1 :].numel()
    if y.numel() > 0:
        arguments = (dy, y, flags, dx, y.numel(), y.shape[axis] * inner, inner)
        _launch(abs_topk_bwd_kernel, _over(y.numel(), FLAT), arguments, BLOCK=FLAT)
    return dx.movedim(0, -1) if transposed else dx


def _product(
    start: Tensor,
    index: Tensor,
    order: Tensor | None,
    values: Tensor,
    x: Tensor,
    bias: Tensor | None,
    out: Tensor | None,
) -> Tensor:
    """A x + bias, with A in compressed rows, into `out` or fresh memory."""
    rows, tokens = start.numel() - 1, x.shape[1]
    fits = out is not None and out.is_contiguous()
    y = out if out is not None and fits else x.new_empty((rows, tokens))

    def grid(blocks: dict[str, Any]) -> tuple[int, int]:
        return rows, triton.cdiv(tokens, blocks["BLOCK_T"])

    if y.numel() > 0:
        unread = values  # in place of an argument that is not there
        arrays = (start, index, order if order is not None else index, values.contiguous(), x.contiguous())
        arguments = (
            *arrays,
            unread if bias is None else bias.contiguous(),
            y,
            tokens,
            triton.next_power_of_2(tokens),
        )
        constants = {"HAS_ORDER": order is not None, "HAS_BIAS": bias is not None}
        _launch(spmm_fwd_kernel, grid, arguments, "spmm_fwd_kernel", **constants)
    return y if out is None or fits else out.copy_(y)


def spmm(
    weight: SparseWeight,
    x: Float[Tensor, "d_in tokens"],
    bias: Float[Tensor, " d_out"] | None = None,
    out: Float[Tensor, "d_out tokens"] | None = None,
) -> Float[Tensor, "d_out tokens"]:
    """W^T x + bias; see `circuits.kernels.spmm`."""
    return _product(weight.column_start, weight.row, weight.order, weight.values.detach(), x, bias, out)


def spmm_t(
    weight: SparseWeight, dy: Float[Tensor, "d_out tokens"], out: Float[Tensor, "d_in tokens"] | None = None
) -> Float[Tensor, "d_in tokens"]:
    """W dy; see `circuits.kernels.spmm_t`."""
    return _product(weight.row_start, weight.column, None, weight.values.detach(), dy, None, out)


def sddmm(
    weight: SparseWeight, x: Float[Tensor, "d_in tokens"], dy: Float[Tensor, "d_out tokens"]
) -> Float[Tensor, " n_nonzero"]:
    """x dy^T on the support; see `circuits.kernels.sddmm`."""
    out = x.new_empty(weight.n_nonzero)
    (rows, _), tokens = weight.shape, x.shape[1]
    if weight.n_nonzero > 0:
        sizes = (tokens, triton.next_power_of_2(tokens))
        arguments = (weight.row_start, weight.column, x.contiguous(), dy.contiguous(), out, *sizes)
        _launch(sddmm_fwd_kernel, lambda blocks: (rows,), arguments, "sddmm_fwd_kernel")
    return out


def _keys(w: Tensor, always: Tensor | None = None) -> Tensor:
    """Flat whole numbers that rank entries by magnitude: NaN above infinity, `always` above both."""
    whole = torch.int32 if w.dtype == torch.float32 else torch.int16
    infinity = int(torch.tensor(torch.inf, dtype=w.dtype).view(whole))
    keys = w.abs().contiguous().view(whole).flatten().clamp(max=infinity + 1)
    return keys if always is None else keys.masked_fill(always.flatten(), infinity + 2)


def topk_mask(
    w: Float[Tensor, "*shape"], k: int, always: Bool[Tensor, "*shape"] | None = None
) -> Bool[Tensor, "*shape"]:
    """True at the k largest magnitudes of the whole tensor; see `circuits.kernels.topk_mask`.

    Selection is torch.topk's; which of several equals it takes is not said, so they are counted here. On an H200 that
    took half the time of histograms of our own for up to 4 million entries, the same at 16 and 1.7 times at 67.
    """
    keys = _keys(w, always)
    threshold = keys.topk(k, sorted=False).values.min()
    above, equal = keys > threshold, keys == threshold
    mask = above | (equal & (equal.cumsum(0, dtype=torch.int32) <= k - above.sum()))
    return mask.view(w.shape)


def topk_threshold(w: Float[Tensor, "*shape"], k: int) -> Float[Tensor, ""]:
    """The k-th largest magnitude; see `circuits.kernels.topk_threshold`."""
    return _keys(w).topk(k, sorted=False).values.min().view(w.dtype)
