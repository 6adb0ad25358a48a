"""Selection by magnitude on the CPU, on the compiled loops of `topk`: weights of a matrix, AbsTopK of activations."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.kernels.cpu import topk as loops
from circuits.kernels.cpu.layout import contiguous
from circuits.kernels.cpu.memory import empty
from circuits.kernels.cpu.team import integer_of, run

SAMPLE = 16_384  # entries looked at to guess where the threshold of a large matrix lies
FLAT_CHUNK = 65_536  # entries of a matrix in one chunk of work


def _layout(x: Tensor, dim: int) -> tuple[Tensor, int, bool]:
    """x contiguous, its dim, and whether its last axis was moved first: free where x lies feature-major."""
    dim %= x.ndim
    if x.ndim > 1 and not x.is_contiguous() and x.movedim(-1, 0).is_contiguous():
        return x.movedim(-1, 0), (dim + 1) % x.ndim, True
    return x.contiguous(), dim, False


def _sizes(x: Tensor, dim: int) -> tuple[int, int, int]:
    """Number of slices before `dim`, length of a slice, number of slices that lie interleaved."""
    return x.shape[:dim].numel(), x.shape[dim], x.shape[dim + 1 :].numel()


def _select(x: Tensor, out: Tensor, k: int, dim: int, as_mask: bool) -> Tensor:
    """Write the selection from each slice of contiguous x into contiguous out; return the identity flags."""
    outer, n, inner = _sizes(x, dim)
    identity = torch.empty((*x.shape[:dim], 1, *x.shape[dim + 1 :]), dtype=torch.bool)
    addresses = (x.data_ptr(), out.data_ptr(), identity.data_ptr())
    if inner == 1:
        step = max(1, loops.ROW_CHUNK // n)
        run(loops.rows_task(x.element_size(), as_mask), -(-outer // step), *addresses, outer, n, k, step)
    elif x.numel() > 0:
        strips = -(-inner // loops.STRIP)
        run(loops.columns_task(x.element_size(), as_mask), outer * strips, *addresses, outer, n, inner, k)
    return identity


def slice_topk_mask(w: Float[Tensor, "*shape"], k: int, dim: int) -> Bool[Tensor, "*shape"]:
    """True at the k largest magnitudes of each slice along `dim`; see `circuits.kernels.slice_topk_mask`."""
    laid, axis, transposed = _layout(w, dim)
    mask = torch.empty_like(laid, dtype=torch.bool)
    _select(laid, mask, k, axis, True)
    return mask.movedim(0, -1) if transposed else mask


def _bracket(w: np.ndarray, always: np.ndarray | None, k: int) -> tuple[int, int]:
    """Keys between which the k-th largest almost surely lies, from an evenly spread sample."""
    integer, _, infinity = integer_of(w.itemsize)
    if w.size <= SAMPLE:
        return 0, infinity + 3
    stride = (w.size // SAMPLE) | 1  # odd: no power-of-two row length hides whole columns from the sample
    keys = np.minimum(w[::stride] & np.iinfo(integer).max, integer(infinity + 1))
    if always is not None:
        keys[always[::stride] != 0] = infinity + 2
    keys.sort()
    share = k / w.size
    rank = keys.size * (1 - share)
    slack = 4 + 4 * (keys.size * share * (1 - share)) ** 0.5
    low, high = int(rank - slack), int(rank + slack)
    return (int(keys[low]) if low >= 0 else 0), (int(keys[high]) if high < keys.size else infinity + 3)


def _kth_key(w: np.ndarray, always: np.ndarray | None, k: int) -> tuple[int, int]:
    """The k-th largest key of a flat array of float bits, and how many too many are at least as large."""
    integer, _, infinity = integer_of(w.itemsize)
    work = loops.gather_task(w.itemsize, always is not None)
    n_chunks = -(-w.size // FLAT_CHUNK)
    found = torch.empty(w.size, dtype=torch.int32 if w.itemsize == 4 else torch.int64).numpy()
    counts = np.empty((2, n_chunks), np.int64)
    forced = w if always is None else always
    everything = (0, infinity + 3)
    for low, high in (_bracket(w, always, k), everything):
        arrays = (w, forced, found, counts[0], counts[1])
        run(work, n_chunks, *(a.ctypes.data for a in arrays), w.size, FLAT_CHUNK, low, high)
        above = int(counts[1].sum())
        if above < k <= above + int(counts[0].sum()):
            break
    keys = np.concatenate([found[c * FLAT_CHUNK :][:size] for c, size in enumerate(counts[0])])
    t, surplus = loops.threshold_of(w.itemsize)(keys, integer(k - above))
    return int(keys[keys >= t].min()), int(surplus)


def topk_mask(
    w: Float[Tensor, "*shape"], k: int, always: Bool[Tensor, "*shape"] | None = None
) -> Bool[Tensor, "*shape"]:
    """True at the k largest magnitudes of the whole tensor; see `circuits.kernels.topk_mask`."""
    integer = integer_of(w.element_size())[0]
    flat = w.contiguous().numpy().reshape(-1).view(integer)
    forced = None if always is None else always.contiguous().numpy().reshape(-1).view(np.uint8)
    t, surplus = _kth_key(flat, forced, k)
    mask = torch.empty(w.shape, dtype=torch.bool)
    written = mask.numpy().reshape(-1).view(np.uint8)
    unread = flat if forced is None else forced
    addresses = (flat.ctypes.data, unread.ctypes.data, written.ctypes.data)
    work = loops.mask_task(w.element_size(), forced is not None)
    run(work, -(-flat.size // FLAT_CHUNK), *addresses, flat.size, FLAT_CHUNK, t)
    if surplus > 0:
        view = unread.view(np.uint8)[: flat.size]
        loops.drop_last(w.element_size(), forced is not None)(flat, view, written, t, surplus)
    return mask


def topk_threshold(w: Float[Tensor, "*shape"], k: int) -> Float[Tensor, ""]:
    """The k-th largest magnitude; see `circuits.kernels.topk_threshold`."""
    integer, real, _ = integer_of(w.element_size())
    t, _ = _kth_key(w.contiguous().numpy().reshape(-1).view(integer), None, k)
    return torch.from_numpy(np.array(t, integer).view(real).copy())


def abs_topk_forward(
    x: Float[Tensor, "*shape"], k: int, dim: int, out: Float[Tensor, "*shape"] | None = None
) -> tuple[Float[Tensor, "*shape"], Bool[Tensor, "..."]]:
    """AbsTopK, and for each slice whether fewer than k of its entries are nonzero."""
    laid, axis, transposed = _layout(x, dim)
    target = None if out is None else (out.movedim(-1, 0) if transposed else out)
    written = target if target is not None and target.is_contiguous() else empty(laid.shape, laid.dtype)
    identity = _select(laid, written, k, axis, False)
    if target is not None and target is not written:
        target.copy_(written)
    kept = out if out is not None else (written.movedim(0, -1) if transposed else written)
    return kept, (identity.movedim(0, -1) if transposed else identity)


def abs_topk_backward(
    dy: Float[Tensor, "*shape"], y: Float[Tensor, "*shape"], identity: Bool[Tensor, "..."], dim: int
) -> Float[Tensor, "*shape"]:
    """The gradient of AbsTopK, from its output and the flags that came with it."""
    y, axis, transposed = _layout(y, dim)
    dy = contiguous(dy.movedim(-1, 0) if transposed else dy)
    flags = (identity.movedim(-1, 0) if transposed else identity).contiguous()
    dx = empty(y.shape, y.dtype)
    outer, n, inner = _sizes(y, axis)
    lines, width = (outer, n) if inner == 1 else (outer * n, inner)
    if y.numel() > 0:
        step = max(1, loops.ROW_CHUNK // width)
        addresses = (dy.data_ptr(), y.data_ptr(), flags.data_ptr(), dx.data_ptr())
        run(loops.backward_task(y.element_size()), -(-lines // step), *addresses, outer, n, inner, step)
    return dx.movedim(0, -1) if transposed else dx
