"""Passes over activations on the CPU: from feature-major to token-major and back, and masks of whole features."""

import functools
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from numba import carray
from torch import Tensor

from circuits.kernels.cpu_topk import integer_of
from circuits.kernels.memory import empty
from circuits.kernels.team import claim, compiled, pointer, relaxed, run, task

BLOCK = 32  # rows and columns that are transposed together: both sides stay in the first-level cache


@functools.cache
def _transpose_task(itemsize: int) -> Any:
    """Task: BLOCK columns of the source a chunk. Arguments: source, target, rows, columns."""
    integer = integer_of(itemsize)[0]

    @compiled
    @no_type_check
    def strip(source, target, c0, c1):
        held = np.empty((BLOCK, BLOCK), integer)
        for r0 in range(0, source.shape[0], BLOCK):
            r1 = min(source.shape[0], r0 + BLOCK)
            for r in range(r0, r1):
                for c in range(c0, c1):
                    held[c - c0, r - r0] = source[r, c]
            for c in range(c0, c1):
                line = target[c, r0:r1]
                for r in range(r1 - r0):
                    line[r] = held[c - c0, r]

    @task
    @no_type_check
    def transpose(words_at):
        a = carray(words_at, 6, np.int64)
        rows, columns = a[4], a[5]
        source = carray(pointer(a[2]), (rows, columns), integer)
        target = carray(pointer(a[3]), (columns, rows), integer)
        while True:
            chunk = claim(words_at)
            if chunk >= a[1]:
                return
            strip(source, target, chunk * BLOCK, min(columns, (chunk + 1) * BLOCK))

    return transpose


@functools.cache
def _replace_task(itemsize: int) -> Any:
    """Task: one feature a chunk. Arguments: x, mask, value, y, features, tokens."""
    real = integer_of(itemsize)[1]

    @compiled
    @no_type_check
    def line(x, y, m, v):
        fill = v * (real(1) - m)
        for t in range(x.size):
            y[t] = x[t] * m + fill

    @task
    @no_type_check
    def replace(words_at):
        a = carray(words_at, 8, np.int64)
        shape = (a[6], a[7])
        x, y = carray(pointer(a[2]), shape, real), carray(pointer(a[5]), shape, real)
        mask, value = carray(pointer(a[3]), a[6], real), carray(pointer(a[4]), a[6], real)
        while True:
            row = claim(words_at)
            if row >= a[1]:
                return
            line(x[row], y[row], mask[row], value[row])

    return replace


@functools.cache
def _replace_backward_task(itemsize: int) -> Any:
    """Task: one feature a chunk. Arguments: dy, x, mask, value, dx, dmask, features, tokens, wants dx."""
    real = integer_of(itemsize)[1]

    @relaxed
    @no_type_check
    def slope(dy, x, v):
        total = real(0)
        for t in range(x.size):
            total += dy[t] * (x[t] - v)
        return total

    @compiled
    @no_type_check
    def scaled(dy, dx, m):
        for t in range(dx.size):
            dx[t] = dy[t] * m

    @task
    @no_type_check
    def backward(words_at):
        a = carray(words_at, 11, np.int64)
        shape = (a[8], a[9])
        dy, x = carray(pointer(a[2]), shape, real), carray(pointer(a[3]), shape, real)
        mask, value = carray(pointer(a[4]), a[8], real), carray(pointer(a[5]), a[8], real)
        dx, dmask = carray(pointer(a[6]), shape, real), carray(pointer(a[7]), a[8], real)
        while True:
            row = claim(words_at)
            if row >= a[1]:
                return
            dmask[row] = slope(dy[row], x[row], value[row])
            if a[10]:
                scaled(dy[row], dx[row], mask[row])

    return backward


def transposed(x: Float[Tensor, "rows columns"]) -> Float[Tensor, "columns rows"]:
    """A contiguous copy of x^T; float32 or float64, x contiguous."""
    rows, columns = x.shape
    out = empty(torch.Size((columns, rows)), x.dtype)
    addresses = (x.data_ptr(), out.data_ptr())
    run(_transpose_task(x.element_size()), -(-columns // BLOCK), *addresses, rows, columns)
    return out


def contiguous(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x.contiguous()`, faster where x is the transpose of a contiguous matrix, whole or but for its first axis."""
    if x.is_contiguous() or x.ndim < 2 or x.dtype not in (torch.float32, torch.float64):
        return x.contiguous()
    back = x.movedim(0, -1)
    if not back.is_contiguous():
        return x.contiguous()
    return transposed(back.reshape(-1, len(x))).view(x.shape)


def replaced(
    x: Float[Tensor, "width tokens"], mask: Float[Tensor, " width"], value: Float[Tensor, " width"]
) -> Float[Tensor, "width tokens"]:
    """x * mask + value * (1 - mask), feature by feature; all contiguous."""
    y = empty(x.shape, x.dtype)
    arrays = (x, mask, value, y)
    run(_replace_task(x.element_size()), len(x), *(a.data_ptr() for a in arrays), *x.shape)
    return y


def replaced_backward(
    dy: Float[Tensor, "width tokens"],
    x: Float[Tensor, "width tokens"],
    mask: Float[Tensor, " width"],
    value: Float[Tensor, " width"],
    wants_x: bool,
) -> tuple[Float[Tensor, "width tokens"] | None, Float[Tensor, " width"]]:
    """Gradients of `replaced` to x, where wanted, and to the mask."""
    dx = empty(x.shape, x.dtype) if wants_x else None
    dmask = torch.empty_like(mask)
    arrays = (dy, x, mask, value, dy if dx is None else dx, dmask)
    work = _replace_backward_task(x.element_size())
    run(work, len(x), *(a.data_ptr() for a in arrays), *x.shape, int(wants_x))
    return dx, dmask
