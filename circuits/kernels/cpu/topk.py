"""Selection by magnitude on the CPU: compiled loops, exact, ties to the lowest index.

A float's bits without the sign, read as an integer, order like its magnitude. So "the k-th largest magnitude"
is a search for the integer t at which the number of entries >= t is k, and each probe of the search is one
pass of subtract, shift, add over integers: as fast as the vector unit can load. False position (the Illinois
variant) on the float *values* takes 4 to 8 probes on the activations of a network; every fourth probe halves
the *bits* instead, which bounds the worst case. The previous slice's threshold is the first guess for the
next one: it changes how many probes are needed, never the result.

NaN counts as larger than infinity, all NaNs alike: it is kept, and so stays visible.
"""

import functools
from typing import Any, no_type_check

import numpy as np
from numba import carray

from circuits.kernels.cpu.team import claim, compiled, integer_of, pointer, task

LANES = 16  # slices of the strided layout that are transposed together: one cache line of float32
STRIP = 256  # neighbouring slices of the strided layout in one chunk of work
PAD = 16  # extra columns of the transposed buffer, so that its rows do not all fall on one cache set
LINE = 32  # entries of a matrix that are looked at together
ROW_CHUNK = 16_384  # entries of the contiguous layout in one chunk of work


@functools.cache
def _search(itemsize: int) -> Any:
    """Compiled: the k-th largest of integer magnitudes, and how many too many are at least as large."""
    integer, real, _ = integer_of(itemsize)
    sign = integer(8 * itemsize - 1)
    half = real(0.5)

    @compiled
    @no_type_check
    def search(m, n, k, top, n_nonzero, guess, bits, values):
        low, n_low, w_low = integer(1), n_nonzero, real(n_nonzero - k)  # count(>= low) > k, always
        high, w_high = integer(top + 1), real(-k)  # count(>= high) < k, always
        probe, step, side = guess, 0, 0
        while high - low > 1:
            if probe <= low or probe >= high:
                probe = integer(low + (integer(high - low) >> 1))
            below = integer(0)
            for j in range(n):
                below = integer(below - integer(integer(m[j] - probe) >> sign))
            surplus = n - below - k
            step += 1
            if surplus == 0:
                return probe, surplus
            if surplus > 0:
                low, n_low, w_low = probe, n - below, real(surplus)
                w_high = w_high * half if side == 1 else w_high
                side = 1
            else:
                high, w_high = probe, real(surplus)
                w_low = w_low * half if side == 2 else w_low
                side = 2
            bits[0], bits[1] = low, high
            values[2] = values[0] + (values[1] - values[0]) * (w_low / (w_low - w_high))
            probe = bits[2] if step & 3 else low
        return low, n_low - k

    return search


@functools.cache
def _threshold(itemsize: int) -> Any:
    """Compiled: threshold and surplus of one slice of magnitudes, whatever is in it."""
    integer = integer_of(itemsize)[0]
    search = _search(itemsize)

    @compiled
    @no_type_check
    def threshold(m, n, k, top, n_nonzero, guess, bits, values):
        if n_nonzero < k:
            return integer(0), n - k
        if n_nonzero == k:
            return integer(1), integer(0)
        return search(m, n, k, top, n_nonzero, guess, bits, values)

    return threshold


@functools.cache
def _extremes(itemsize: int) -> Any:
    """Compiled: the largest of some magnitudes, and how many are not zero."""
    integer = integer_of(itemsize)[0]

    @compiled
    @no_type_check
    def extremes(m, n):
        top, n_nonzero = integer(0), integer(0)
        for j in range(n):
            top = max(top, m[j])
            n_nonzero = integer(n_nonzero + integer(m[j] != 0))
        return top, n_nonzero

    return extremes


@functools.cache
def _one_row(itemsize: int, as_mask: bool) -> Any:
    """Compiled: write the selection from one contiguous slice; returns its threshold."""
    integer, _, infinity = integer_of(itemsize)
    written = np.uint8 if as_mask else integer
    magnitude, nan = integer(2 ** (8 * itemsize - 1) - 1), integer(infinity + 1)
    threshold = _threshold(itemsize)

    @compiled
    @no_type_check
    def one_row(x, out, m, n, k, guess, bits, values):
        top, n_nonzero = integer(0), integer(0)
        for j in range(n):
            key = min(integer(x[j] & magnitude), nan)
            m[j] = key
            top = max(top, key)
            n_nonzero = integer(n_nonzero + integer(key != 0))
        t, surplus = threshold(m, n, k, top, n_nonzero, guess, bits, values)
        if surplus == 0 or (t == 0 and not as_mask):
            for j in range(n):
                out[j] = (written(1) if as_mask else x[j]) if m[j] >= t else written(0)
            return t
        tied = 0
        for j in range(n):
            tied += m[j] == t
        left = tied - surplus
        for j in range(n):
            keep = m[j] > t
            if m[j] == t and left > 0:
                keep, left = True, left - 1
            out[j] = (written(1) if as_mask else x[j]) if keep else written(0)
        return t

    return one_row


@functools.cache
def rows_task(itemsize: int, as_mask: bool) -> Any:
    """Task: slices contiguous. Arguments: x, out, identity, n_rows, n, k, rows per chunk.

    `out` gets the kept values, or (`as_mask`) ones and zeros; exactly k ones, the lowest index first among
    equals.
    """
    integer, real, _ = integer_of(itemsize)
    written = np.uint8 if as_mask else integer
    one_row = _one_row(itemsize, as_mask)

    @task
    @no_type_check
    def rows(words_at):
        a = carray(words_at, 9, np.int64)
        n_rows, n, k, step = a[5], a[6], a[7], a[8]
        x = carray(pointer(a[2]), (n_rows, n), integer)
        out = carray(pointer(a[3]), (n_rows, n), written)
        identity = carray(pointer(a[4]), n_rows, np.uint8)
        m, bits = np.empty(n, integer), np.empty(3, integer)
        values = bits.view(real)
        while True:
            chunk = claim(words_at)
            if chunk >= a[1]:
                return
            guess = integer(0)
            for r in range(chunk * step, min(n_rows, (chunk + 1) * step)):
                guess = one_row(x[r], out[r], m, n, k, guess, bits, values)
                identity[r] = guess == 0

    return rows


@functools.cache
def _column_thresholds(itemsize: int) -> Any:
    """Compiled: threshold and surplus of each of `width` strided slices, LANES of them transposed at a time."""
    integer, _, infinity = integer_of(itemsize)
    magnitude, nan = integer(2 ** (8 * itemsize - 1) - 1), integer(infinity + 1)
    threshold, extremes = _threshold(itemsize), _extremes(itemsize)

    @compiled
    @no_type_check
    def thresholds(x, c0, width, m, t, surplus, k, bits, values):
        n = x.shape[0]
        guess = integer(0)
        for l0 in range(0, width, LANES):
            lanes = min(LANES, width - l0)
            for i in range(n):
                for lane in range(lanes):
                    m[lane, i] = min(integer(x[i, c0 + l0 + lane] & magnitude), nan)
            for lane in range(lanes):
                top, n_nonzero = extremes(m[lane], n)
                guess, surplus[l0 + lane] = threshold(m[lane], n, k, top, n_nonzero, guess, bits, values)
                t[l0 + lane] = guess

    return thresholds


@functools.cache
def _write_row(itemsize: int, as_mask: bool) -> Any:
    """Compiled: of neighbouring slices' entries at one index, those that reach their slice's threshold."""
    integer = integer_of(itemsize)[0]
    written = np.uint8 if as_mask else integer
    magnitude = integer(2 ** (8 * itemsize - 1) - 1)

    @compiled
    @no_type_check
    def write_row(x, out, t):
        for j in range(t.size):
            out[j] = (written(1) if as_mask else x[j]) if integer(x[j] & magnitude) >= t[j] else written(0)

    return write_row


@functools.cache
def _drop_ties(itemsize: int, as_mask: bool) -> Any:
    """Compiled: clear the last of the entries that equal their slice's threshold, `surplus` of them."""
    integer, _, infinity = integer_of(itemsize)
    magnitude, nan = integer(2 ** (8 * itemsize - 1) - 1), integer(infinity + 1)

    @compiled
    @no_type_check
    def drop_ties(x, out, c0, t, surplus):
        for j in range(t.size):
            extra = surplus[j] if (as_mask or t[j] > 0) else 0
            i = x.shape[0] - 1
            while extra > 0:
                if min(integer(x[i, c0 + j] & magnitude), nan) == t[j]:
                    out[i, c0 + j] = 0
                    extra -= 1
                i -= 1

    return drop_ties


@functools.cache
def columns_task(itemsize: int, as_mask: bool) -> Any:
    """Task: slices strided, STRIP of them a chunk. Arguments: x, out, identity, outer, n, inner, k."""
    integer, real, _ = integer_of(itemsize)
    written = np.uint8 if as_mask else integer
    thresholds = _column_thresholds(itemsize)
    write_row, drop_ties = _write_row(itemsize, as_mask), _drop_ties(itemsize, as_mask)

    @task
    @no_type_check
    def columns(words_at):
        a = carray(words_at, 9, np.int64)
        outer, n, inner, k = a[5], a[6], a[7], a[8]
        x = carray(pointer(a[2]), (outer, n, inner), integer)
        out = carray(pointer(a[3]), (outer, n, inner), written)
        identity = carray(pointer(a[4]), (outer, inner), np.uint8)
        m, bits = np.empty((LANES, n + PAD), integer), np.empty(3, integer)
        values = bits.view(real)
        t, surplus = np.empty(STRIP, integer), np.empty(STRIP, integer)
        strips = (inner + STRIP - 1) // STRIP
        while True:
            chunk = claim(words_at)
            if chunk >= a[1]:
                return
            o, c0 = chunk // strips, (chunk % strips) * STRIP
            width = min(STRIP, inner - c0)
            thresholds(x[o], c0, width, m, t, surplus, k, bits, values)
            for i in range(n):
                write_row(x[o, i, c0 : c0 + width], out[o, i, c0 : c0 + width], t[:width])
            drop_ties(x[o], out[o], c0, t[:width], surplus)
            for j in range(width):
                identity[o, c0 + j] = t[j] == 0

    return columns


@functools.cache
def backward_task(itemsize: int) -> Any:
    """Task: gradient of AbsTopK. Arguments: dy, y, identity, dx, outer, n, inner, lines per chunk.

    A line is contiguous: one slice where inner is 1, else the entries of neighbouring slices at one index.
    """
    integer = integer_of(itemsize)[0]
    magnitude = integer(2 ** (8 * itemsize - 1) - 1)

    @compiled
    @no_type_check
    def along(dy, y, dx, identity):
        for j in range(dx.size):
            dx[j] = dy[j] if integer(y[j] & magnitude) != 0 or identity else integer(0)

    @compiled
    @no_type_check
    def across(dy, y, dx, identity):
        for j in range(dx.size):
            dx[j] = dy[j] if (integer(y[j] & magnitude) != 0) | (identity[j] != 0) else integer(0)

    @task
    @no_type_check
    def backward(words_at):
        a = carray(words_at, 10, np.int64)
        outer, n, inner, step = a[6], a[7], a[8], a[9]
        lines, width = (outer, n) if inner == 1 else (outer * n, inner)
        dy, y = carray(pointer(a[2]), (lines, width), integer), carray(pointer(a[3]), (lines, width), integer)
        dx = carray(pointer(a[5]), (lines, width), integer)
        identity = carray(pointer(a[4]), (outer, inner), np.uint8)
        while True:
            chunk = claim(words_at)
            if chunk >= a[1]:
                return
            for r in range(chunk * step, min(lines, (chunk + 1) * step)):
                if inner == 1:
                    along(dy[r], y[r], dx[r], identity[r, 0] != 0)
                else:
                    across(dy[r], y[r], dx[r], identity[r // n])

    return backward


@functools.cache
def _key(itemsize: int) -> Any:
    """Compiled: the integer that ranks one entry; entries to be kept whatever their size rank above NaN."""
    integer, _, infinity = integer_of(itemsize)
    magnitude, nan = integer(2 ** (8 * itemsize - 1) - 1), integer(infinity + 1)

    @compiled
    @no_type_check
    def key(x, always):
        return integer(nan + 1) if always else min(integer(x & magnitude), nan)

    return key


@functools.cache
def _gather_chunk(itemsize: int, forced: bool) -> Any:
    """Compiled: the keys of one chunk in [low, high); returns how many, and how many are >= high.

    Most lines have none in the interval: they cost one vector test.
    """
    integer, key = integer_of(itemsize)[0], _key(itemsize)

    @compiled
    @no_type_check
    def gather_chunk(x, always, found, low, high):
        at, above = 0, 0
        for i0 in range(0, x.size, LINE):
            line, marks = x[i0 : i0 + LINE], always[i0 : i0 + LINE]
            n_low, n_high = integer(0), integer(0)
            for i in range(line.size):
                m = key(line[i], marks[i] != 0 if forced else False)
                n_low = integer(n_low + integer(m >= low))
                n_high = integer(n_high + integer(m >= high))
            above += n_high
            if n_low > n_high:
                for i in range(line.size):
                    m = key(line[i], marks[i] != 0 if forced else False)
                    if m >= low and m < high:
                        found[at] = m
                        at += 1
        return at, above

    return gather_chunk


@functools.cache
def gather_task(itemsize: int, forced: bool) -> Any:
    """Task: the keys in [low, high). Arguments: x, always, found, n_found, n_above, n, step, low, high.

    Each chunk writes its finds at its own offset of `found`, and how many keys are >= high.
    """
    integer, gather_chunk = integer_of(itemsize)[0], _gather_chunk(itemsize, forced)

    @task
    @no_type_check
    def gather(words_at):
        a = carray(words_at, 11, np.int64)
        n, step, low, high = a[7], a[8], integer(a[9]), integer(a[10])
        x, always = carray(pointer(a[2]), n, integer), carray(pointer(a[3]), n, np.uint8)
        found = carray(pointer(a[4]), n, integer)
        n_found, n_above = carray(pointer(a[5]), a[1], np.int64), carray(pointer(a[6]), a[1], np.int64)
        while True:
            chunk = claim(words_at)
            if chunk >= a[1]:
                return
            here = slice(chunk * step, min(n, (chunk + 1) * step))
            n_found[chunk], n_above[chunk] = gather_chunk(x[here], always[here], found[here], low, high)

    return gather


@functools.cache
def mask_task(itemsize: int, forced: bool) -> Any:
    """Task: ones where the key is >= t. Arguments: x, always, mask, n, step, t."""
    integer, key = integer_of(itemsize)[0], _key(itemsize)

    @compiled
    @no_type_check
    def mask_chunk(x, always, mask, t):
        for i in range(x.size):
            mask[i] = key(x[i], always[i] != 0 if forced else False) >= t

    @task
    @no_type_check
    def mask_at_least(words_at):
        a = carray(words_at, 8, np.int64)
        n, step, t = a[5], a[6], integer(a[7])
        x, always = carray(pointer(a[2]), n, integer), carray(pointer(a[3]), n, np.uint8)
        mask = carray(pointer(a[4]), n, np.uint8)
        while True:
            chunk = claim(words_at)
            if chunk >= a[1]:
                return
            here = slice(chunk * step, min(n, (chunk + 1) * step))
            mask_chunk(x[here], always[here], mask[here], t)

    return mask_at_least


@functools.cache
def drop_last(itemsize: int, forced: bool) -> Any:
    """Compiled: clear the last `surplus` entries of a mask whose key is exactly t."""
    key = _key(itemsize)

    @compiled
    @no_type_check
    def drop(x, always, mask, t, surplus):
        i = x.size - 1
        while surplus > 0:
            if key(x[i], always[i] != 0 if forced else False) == t:
                mask[i] = 0
                surplus -= 1
            i -= 1

    return drop


@functools.cache
def threshold_of(itemsize: int) -> Any:
    """Compiled: the k-th largest of some keys, and how many too many are at least as large."""
    integer, real, _ = integer_of(itemsize)
    threshold, extremes = _threshold(itemsize), _extremes(itemsize)

    @compiled
    @no_type_check
    def kth(keys, k):
        bits = np.empty(3, integer)
        top, n_nonzero = extremes(keys, keys.size)
        return threshold(keys, keys.size, k, top, n_nonzero, integer(0), bits, bits.view(real))

    return kth
