"""Masks of whole features on the CPU: what a left-out coordinate is replaced by, in one compiled pass each way."""

import functools
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from numba import carray
from torch import Tensor

from circuits.kernels.cpu.layout import contiguous, features_first
from circuits.kernels.cpu.memory import empty
from circuits.kernels.cpu.team import claim, compiled, integer_of, pointer, relaxed, run, task


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


def replace_features(
    x: Float[Tensor, "batch pos *width"], mask: Float[Tensor, "*width"], value: Float[Tensor, "*width"]
) -> Float[Tensor, "batch pos *width"]:
    """x where the mask is 1, the value where it is 0; see `circuits.kernels.replace_features`."""
    line = (mask.flatten().contiguous(), value.flatten().contiguous().to(x.dtype))
    y: Tensor = _Replace.apply(features_first(x), *line)
    return y.t().unflatten(0, x.shape[:2]).unflatten(-1, x.shape[2:])


class _Replace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, mask, value)
        return replaced(x, mask, value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, mask, value), dy = ctx.saved_tensors, grads[0]
        if x is None:
            return dy * mask[:, None], None, None
        if torch.is_grad_enabled():  # derivatives of these gradients are recorded
            return dy * mask[:, None], (dy * (x - value[:, None])).sum(1), None
        dx, dmask = replaced_backward(contiguous(dy), x, mask, value, ctx.needs_input_grad[0])
        return dx, dmask, None
