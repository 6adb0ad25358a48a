"""Products with a sparse weight on the CPU: compiled loops over compressed rows.

Activations lie feature-major, `[features, tokens]`: one nonzero then is one multiply-add of a whole run of
tokens, contiguous in memory, and no index is read more often than once per run. Runs of TOKENS keep the row
that is being written in the first-level cache; four nonzeros at a time, it is loaded and stored a quarter as
often.

Measured on one core of a 2-core AVX-512 machine, 4,096 tokens, 1024 -> 4096, against the same product in
torch's CSR (MKL) and in dense: density 1/16: 55 ms against 166 and 428; 1/64: 19 against 57 and 427; 1/256:
8.4 against 41 and 430. MKL won nowhere, so it is not used.
"""

import functools
from typing import Any, no_type_check

import numpy as np
from numba import carray

from circuits.kernels.cpu.team import claim, compiled, integer_of, pointer, relaxed, task

TOKENS = 512  # tokens in one run
OUTPUTS = 65_536  # entries of the result in one chunk of work
SAMPLES = 4_096  # sampled products of one run in one chunk of work
LINE = 16  # entries looked at together when a dense row is searched for nonzeros


@functools.cache
def _accumulate() -> Any:
    """Compiled: one row of the result for one run of tokens, four nonzeros at a time."""

    @relaxed
    @no_type_check
    def accumulate(y, bias, index, values, x, t0, t1):
        for t in range(y.size):
            y[t] = bias
        n = index.size
        whole = n - n % 4
        for p in range(0, whole, 4):
            v0, v1, v2, v3 = values[p], values[p + 1], values[p + 2], values[p + 3]
            x0, x1 = x[index[p], t0:t1], x[index[p + 1], t0:t1]
            x2, x3 = x[index[p + 2], t0:t1], x[index[p + 3], t0:t1]
            for t in range(y.size):
                y[t] += v0 * x0[t] + v1 * x1[t] + v2 * x2[t] + v3 * x3[t]
        for p in range(whole, n):
            v0, x0 = values[p], x[index[p], t0:t1]
            for t in range(y.size):
                y[t] += v0 * x0[t]

    return accumulate


@functools.cache
def product_task(itemsize: int) -> Any:
    """Task: y = A x + bias, A in compressed rows; all rows for one run of tokens, then for the next.

    Arguments: start, index, values, x, bias, y, rows, inner, tokens, rows per chunk, whether there is a bias.
    """
    real, accumulate = integer_of(itemsize)[1], _accumulate()

    @task
    @no_type_check
    def product(words_at):
        a = carray(words_at, 13, np.int64)
        rows, inner, tokens, step = a[8], a[9], a[10], a[11]
        start = carray(pointer(a[2]), rows + 1, np.int32)
        index = carray(pointer(a[3]), start[rows], np.int32)
        values = carray(pointer(a[4]), start[rows], real)
        x, y = carray(pointer(a[5]), (inner, tokens), real), carray(pointer(a[7]), (rows, tokens), real)
        bias = carray(pointer(a[6]), rows, real)
        groups = (rows + step - 1) // step
        while True:
            chunk = claim(words_at)
            if chunk >= a[1]:
                return
            t0 = chunk // groups * TOKENS
            t1 = min(tokens, t0 + TOKENS)
            r0 = chunk % groups * step
            for r in range(r0, min(rows, r0 + step)):
                here = slice(start[r], start[r + 1])
                b = bias[r] if a[12] else real(0)
                accumulate(y[r, t0:t1], b, index[here], values[here], x, t0, t1)

    return product


@functools.cache
def _dots(itemsize: int) -> Any:
    """Compiled: one run of tokens of x times that of the rows `index` of dy, added to `out`."""
    real = integer_of(itemsize)[1]

    @relaxed
    @no_type_check
    def dots(out, index, x, dy, t0, t1):
        n = index.size
        whole = n - n % 4
        for p in range(0, whole, 4):
            d0, d1 = dy[index[p], t0:t1], dy[index[p + 1], t0:t1]
            d2, d3 = dy[index[p + 2], t0:t1], dy[index[p + 3], t0:t1]
            s0, s1, s2, s3 = real(0), real(0), real(0), real(0)
            for t in range(x.size):
                s0 += x[t] * d0[t]
                s1 += x[t] * d1[t]
                s2 += x[t] * d2[t]
                s3 += x[t] * d3[t]
            out[p] += s0
            out[p + 1] += s1
            out[p + 2] += s2
            out[p + 3] += s3
        for p in range(whole, n):
            d0, s0 = dy[index[p], t0:t1], real(0)
            for t in range(x.size):
                s0 += x[t] * d0[t]
            out[p] += s0

    return dots


@functools.cache
def sampled_task(itemsize: int) -> Any:
    """Task: row i of x times row j of dy, at the nonzeros (i, j) of a matrix in compressed rows.

    Arguments: start, index, x, dy, out, rows, columns, tokens, rows per chunk.
    """
    real, dots = integer_of(itemsize)[1], _dots(itemsize)

    @task
    @no_type_check
    def sampled(words_at):
        a = carray(words_at, 11, np.int64)
        rows, columns, tokens, step = a[7], a[8], a[9], a[10]
        start = carray(pointer(a[2]), rows + 1, np.int32)
        index = carray(pointer(a[3]), start[rows], np.int32)
        x, dy = carray(pointer(a[4]), (rows, tokens), real), carray(pointer(a[5]), (columns, tokens), real)
        out = carray(pointer(a[6]), start[rows], real)
        while True:
            chunk = claim(words_at)
            if chunk >= a[1]:
                return
            first, last = chunk * step, min(rows, (chunk + 1) * step)
            for p in range(start[first], start[last]):
                out[p] = real(0)
            for t0 in range(0, tokens, TOKENS):
                t1 = min(tokens, t0 + TOKENS)
                for r in range(first, last):
                    here = slice(start[r], start[r + 1])
                    dots(out[here], index[here], x[r, t0:t1], dy, t0, t1)

    return sampled


@functools.cache
def count_task(itemsize: int, masked: bool) -> Any:
    """Task: nonzeros of each row. Arguments: w or mask, counts, rows, columns, rows per chunk."""
    read = np.uint8 if masked else integer_of(itemsize)[0]
    magnitude = read(255 if masked else 2 ** (8 * itemsize - 1) - 1)

    @compiled
    @no_type_check
    def count(row):
        n = np.int32(0)
        for j in range(row.size):
            n = np.int32(n + np.int32(read(row[j] & magnitude) != 0))
        return n

    @task
    @no_type_check
    def counts(words_at):
        a = carray(words_at, 7, np.int64)
        rows, columns, step = a[4], a[5], a[6]
        w, out = carray(pointer(a[2]), (rows, columns), read), carray(pointer(a[3]), rows, np.int32)
        while True:
            chunk = claim(words_at)
            if chunk >= a[1]:
                return
            for r in range(chunk * step, min(rows, (chunk + 1) * step)):
                out[r] = count(w[r])

    return counts


@functools.cache
def _fill(itemsize: int, masked: bool) -> Any:
    """Compiled: column and value of each nonzero of a row.

    Whole lines of zeros, most of a sparse matrix, are passed over by one vector test.
    """
    read = np.uint8 if masked else integer_of(itemsize)[0]
    magnitude = read(255 if masked else 2 ** (8 * itemsize - 1) - 1)

    @compiled
    @no_type_check
    def fill(support, w, column, values):
        at = 0
        for j0 in range(0, support.size, LINE):
            line = support[j0 : j0 + LINE]
            seen = read(0)
            for j in range(line.size):
                seen = read(seen | read(line[j] & magnitude))
            if seen != 0:
                for j in range(line.size):
                    if read(line[j] & magnitude) != 0:
                        column[at], values[at] = j0 + j, w[j0 + j]
                        at += 1

    return fill


@functools.cache
def fill_task(itemsize: int, masked: bool) -> Any:
    """Task: column and value of each nonzero.

    Arguments: w or mask, w, start, column, values, rows, columns, rows per chunk.
    """
    integer = integer_of(itemsize)[0]
    read, fill = (np.uint8 if masked else integer), _fill(itemsize, masked)

    @task
    @no_type_check
    def fills(words_at):
        a = carray(words_at, 10, np.int64)
        rows, columns, step = a[7], a[8], a[9]
        support, w = (
            carray(pointer(a[2]), (rows, columns), read),
            carray(pointer(a[3]), (rows, columns), integer),
        )
        start = carray(pointer(a[4]), rows + 1, np.int32)
        column = carray(pointer(a[5]), start[rows], np.int32)
        values = carray(pointer(a[6]), start[rows], integer)
        while True:
            chunk = claim(words_at)
            if chunk >= a[1]:
                return
            for r in range(chunk * step, min(rows, (chunk + 1) * step)):
                here = slice(start[r], start[r + 1])
                fill(support[r], w[r], column[here], values[here])

    return fills


@functools.cache
def transpose_order() -> Any:
    """Compiled: the column order of a support given in row order."""

    @compiled
    @no_type_check
    def reorder(row_start, column, column_start, row, order):
        place = column_start.copy()
        for r in range(row_start.size - 1):
            for p in range(row_start[r], row_start[r + 1]):
                at = place[column[p]]
                place[column[p]] += 1
                row[at], order[at] = r, p

    return reorder
