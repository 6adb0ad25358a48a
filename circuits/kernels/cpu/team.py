"""Compiled loops on the threads torch already has.

Two thread pools on one set of cores fight: an idle OpenMP worker spins before it sleeps, so a loop that runs
on a pool of its own (numba's, or Python's) shares its core with torch's spinning worker and loses up to half
its speed. The loops of this package therefore run on the OpenMP runtime that torch itself is linked with,
with as many threads as `torch.get_num_threads()` says; where that runtime has no such entry point they run on
the calling thread.

A *task* is a numba `cfunc` of one argument, the address of an int64 array: word 0 is the next chunk of work
to claim, word 1 the number of chunks, then the task's own arguments. Chunks are claimed one at a time, which
evens out cores that are not equally fast; every output belongs to one chunk, so the result does not depend on
who computed it.

numba's on-disk cache stays off: it numbers its files per function, so two processes that compile different
types of one function at the same moment can each end up with the other's machine code.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# error_model="numpy": without it every division carries a branch that raises, and no loop with one is
# vectorised.
compiled = functools.partial(njit, nogil=True, error_model="numpy")
# Sums of products: fused, and in whatever order vectorises; the order is fixed when compiled, so runs repeat
# bit for bit.
relaxed = functools.partial(njit, nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})
task = cfunc("void(voidptr)", error_model="numpy")


@intrinsic
def pointer(typing_context: Any, address: Any) -> Any:
    """The int64 `address` as a pointer, for `numba.carray`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic
def claim(typing_context: Any, words: Any) -> Any:
    """The next unclaimed chunk: an atomic `words[0]++` on the word at this address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        int64 = context.get_value_type(types.int64)
        counter = builder.bitcast(arguments[0], int64.as_pointer())
        return builder.atomic_rmw("add", counter, int64(1), "monotonic")

    return types.int64(types.voidptr), generate


@functools.cache
def integer_of(itemsize: int) -> tuple[Any, Any, int]:
    """The integer type as wide as a float of this many bytes, the float type, and the bits of infinity."""
    if itemsize == 4:
        return np.int32, np.float32, 0x7F80_0000
    return np.int64, np.float64, 0x7FF0_0000_0000_0000


@functools.cache
def _fork() -> Callable[..., None] | None:
    """`GOMP_parallel` of the OpenMP runtime torch is linked with, or None where there is none."""
    # A lookup through torch's extension module also searches the libraries it depends on, hence finds *its*
    # runtime.
    fork = getattr(ctypes.CDLL(torch._C.__file__), "GOMP_parallel", None)
    if fork is None:
        return None
    fork.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    fork.restype = None
    return fork


def n_threads() -> int:
    """How many threads a task runs on: torch's own number, or 1 where its threads cannot be borrowed."""
    return torch.get_num_threads() if _fork() is not None else 1


def run(work: Any, n_chunks: int, *arguments: int) -> None:
    """Run all chunks of a task; returns when the last is done."""
    words = np.array((0, n_chunks, *arguments), dtype=np.int64)
    threads = min(n_threads(), n_chunks)
    fork = _fork()
    if threads <= 1 or fork is None:
        work.ctypes(words.ctypes.data)
    else:
        fork(work.address, words.ctypes.data, threads, 0)
