"""Memory for large results on the CPU: huge pages, and pages that are already there.

Touching fresh memory for the first time costs more than computing what goes there. Filling 64 MiB from `torch.empty`
took 29 ms on one core, from numpy's allocator 5 ms (it asks the kernel for 2 MiB pages, torch's does not), and 2 ms
where the pages were already there. So a block goes back to a list when its last tensor dies, and the next result of
the same size takes it: training and pruning ask for the same sizes at every step.
"""

import ctypes
import threading
import weakref
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

LARGE = 2**18
"""Bytes from which blocks are kept here; below it, the C allocator keeps its pages itself."""
KEPT = 512 * 2**20
"""Bytes that are kept for reuse at the most; what is freed beyond them, longest unused first, is given back."""

_idle: list[np.ndarray] = []
# Re-entrant, because the garbage collector may return a block while this thread is taking one.
_lock = threading.RLock()


def empty(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """An uninitialised contiguous tensor on the CPU, of float32 or float64."""
    n_bytes = shape.numel() * dtype.itemsize
    if n_bytes < LARGE:
        return torch.empty(shape, dtype=dtype)
    block = _take(n_bytes)
    kind = np.float32 if dtype == torch.float32 else np.float64
    array = block.view(kind).reshape(tuple(shape))
    # torch holds `array` for as long as any tensor or view on it lives, hence nobody else can still read the block.
    weakref.finalize(array, _give_back, block).atexit = False
    return torch.from_numpy(array)


def keep_pages() -> bool:
    """Have the C allocator keep the pages of freed tensors for the next ones; returns whether it will.

    **Changes the whole process**, torch and every other library in it, from this call on, and cannot be undone: freed
    memory up to 2 GiB stays with the process instead of going back to the system, and blocks below 1 GiB come from the
    heap, not from maps of their own (mallopt's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD). Results do not change.

    Nothing in `circuits.kernels` calls it. `train`, `prune` and `fit_bridges` do, since they make tensors of the same
    sizes at every step: by default glibc hands every large block back when it is freed, and torch's operations fault
    each page in again, a third of the time of an elementwise operation. Without glibc nothing happens: False. Calling
    it again changes nothing.

    Examples:
        >>> circuits.kernels.keep_pages() in (True, False)
        True
    """
    mallopt = _mallopt()
    if mallopt is None:
        return False
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    return bool(mallopt(mmap, 2**30) and mallopt(trim, 2**31 - 1))


def _mallopt() -> Callable[[int, int], int] | None:
    """glibc's own, or None where there is none."""
    return getattr(ctypes.CDLL(None), "mallopt", None)


def release() -> None:
    """Give all idle blocks back to the system."""
    with _lock:
        _idle.clear()


def _take(n_bytes: int) -> np.ndarray:
    with _lock:
        for place in reversed(range(len(_idle))):
            if _idle[place].nbytes == n_bytes:
                return _idle.pop(place)
    return np.empty(n_bytes, np.uint8)


def _give_back(block: np.ndarray) -> None:
    with _lock:
        _idle.append(block)
        while sum(kept.nbytes for kept in _idle) > KEPT:
            _idle.pop(0)
