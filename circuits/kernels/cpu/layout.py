"""Activations laid anew on the CPU: from feature-major, as the sparse products leave them, to token-major and back."""

import functools
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from numba import carray
from torch import Tensor

from circuits.kernels.cpu.memory import empty
from circuits.kernels.cpu.team import claim, compiled, integer_of, pointer, run, task

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


def features_first(x: Float[Tensor, "batch pos *width"]) -> Float[Tensor, "features tokens"]:
    """[batch, pos, *width] as [features, tokens]: a view where the axes of x allow one."""
    return x.flatten(2).flatten(0, 1).t()


def laid_by_token(x: Float[Tensor, "batch pos *width"]) -> Float[Tensor, "batch pos *width"]:
    """x, contiguous; no gradient, at least one entry."""
    return contiguous(features_first(x).t()).view(x.shape)


def laid_by_feature(x: Float[Tensor, "batch pos *width"]) -> Float[Tensor, "batch pos *width"]:
    """x, feature-major; no gradient."""
    return contiguous(features_first(x)).t().unflatten(0, x.shape[:2]).unflatten(-1, x.shape[2:])


def token_major(x: Float[Tensor, "batch pos *width"]) -> Float[Tensor, "batch pos *width"]:
    """x, contiguous; see `circuits.kernels.token_major`."""
    y: Tensor = _TokenMajor.apply(x)
    return y


class _TokenMajor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return laid_by_token(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]  # in whatever layout: who needs another one lays it out anew
