"""One token's attention to packed keys and values on the CPU: whole numbers from the bytes to the sums.

A key is `scale * (low + step * code)`, channel by channel, so the query takes the step in once for a tile
(`q1 * step`, 16 bits), and the inner loop is a product of 16 bits with 4 or 2. Values are summed code by code in 16
bits, and their step comes last. A tile whose weights SAS all sets to zero is not read.
"""

import functools
import math
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from numba import carray, njit
from torch import Tensor

from circuits.kernels.cpu.team import claim, compiled, pointer, run, task
from circuits.kernels.quantised import LIMIT, POLY, Stored, int8_scale, tiled, to_int8

C3, C2, C1, C0 = (np.float32(c) for c in POLY)
STEPS = np.float32(LIMIT)
ROUND = np.float32(3 * 2**22)
"""Adding and subtracting it rounds a float32 to a whole number, halves to even."""
ordered_as_fits = functools.partial(
    njit, nogil=True, error_model="numpy", fastmath={"reassoc", "nnan", "nsz"}
)
BLOCK = 16
"""Rows of bytes whose weighted codes fit in 16 bits: 16 * 2 * 119 * 15 < 2^16."""


def turbo_decode(
    q: Float[Tensor, "batch 1 head d_head"], stored: Stored, sink: Float[Tensor, " head"] | None, n_r: int
) -> Float[Tensor, "batch 1 head d_head"]:
    """See `circuits.kernels.turbo_decode`."""
    batch, _, n_heads, d_head = q.shape
    tiles = tiled(q, 1)
    q_scale = int8_scale(tiles)[:, 0].contiguous()
    q1 = to_int8(tiles[:, 0, 0], q_scale[..., None]).contiguous()
    z = torch.empty(batch, n_heads, d_head)
    start = torch.full((n_heads,), -math.inf) if sink is None else sink.float().contiguous()
    layout = _layout(stored.keys.bits, stored.values.bits, stored.keys.tile * d_head / 8)
    buffers = _buffers(stored)
    words = (q1, q_scale, _table(n_r), start, layout, *buffers, z)
    n_tiles = stored.keys.codes.shape[1]
    sizes = (n_heads, n_tiles, stored.n_recent, *(p.codes.shape[2] for p in (stored.keys, stored.values)))
    work = _decode_task(d_head, stored.keys.tile)
    run(work, batch * n_heads, *(t.data_ptr() for t in words), *sizes, -n_r)
    return z[:, None]


@functools.cache
def _table(n_r: int) -> Tensor:
    """e^0, e^-1, ... e^n_r."""
    return (-torch.arange(1 - n_r, dtype=torch.float32)).exp()


@functools.cache
def _layout(key_bits: tuple[int, ...], value_bits: tuple[int, ...], bytes_per_bit: float) -> Tensor:
    """By head: where its bytes begin in a tile and how many bits a code has, of keys and of values."""
    return torch.tensor(
        [
            (
                int(sum(key_bits[:h]) * bytes_per_bit),
                key_bits[h],
                int(sum(value_bits[:h]) * bytes_per_bit),
                value_bits[h],
            )
            for h in range(len(key_bits))
        ]
    )


def _buffers(stored: Stored) -> tuple[Tensor, ...]:
    recent = (stored.recent_keys, stored.recent_values, stored.key_scale, stored.value_scale)
    return tuple(b.contiguous() for b in (*stored.keys.buffers, *stored.values.buffers, *recent))


@functools.cache
def _decode_task(d: int, tile: int) -> Any:
    """Task: one head of one row a chunk. Arguments: the tensors, then sizes, as `turbo_decode` lists them."""
    side, packed, recent = _sides(d), _packed_tiles(d, tile), _recent_tokens(d)

    @task
    @no_type_check
    def decode(words_at):
        a = carray(words_at, 26, np.int64)
        n, n_heads, n_tiles, n_recent, lowest = a[1], a[20], a[21], a[22], np.float32(a[25])
        q1, q_scale = carray(pointer(a[2]), (n, d), np.int8), carray(pointer(a[3]), n, np.float32)
        table, sink = carray(pointer(a[4]), a[25] + 1, np.float32), carray(pointer(a[5]), n_heads, np.float32)
        layout = carray(pointer(a[6]), (n_heads, 4), np.int64)
        keys = side(a[7:11], n // n_heads, n_tiles, n_heads, a[23])
        values = side(a[11:15], n // n_heads, n_tiles, n_heads, a[24])
        late = carray(pointer(a[15]), (n, tile, d), np.int8), carray(pointer(a[16]), (n, tile, d), np.int8)
        scales = carray(pointer(a[17]), n, np.float32), carray(pointer(a[18]), n, np.float32)
        out = carray(pointer(a[19]), (n, d), np.float32)
        scores, p, total = np.empty(tile, np.float32), np.empty(tile, np.uint8), np.empty(d, np.int32)
        state = np.empty(3, np.float32)  # largest score, sum of weights, step of the last tile's weights
        while True:
            at = claim(words_at)
            if at >= n:
                return
            row, head = at // n_heads, at % n_heads
            z, q = out[at], q1[at]
            z[:] = 0
            state[0], state[1] = sink[head], table[0] * C0 if sink[head] > -np.inf else np.float32(0)
            unit = q_scale[at] / np.float32(math.sqrt(d))
            packed(q, unit, keys, values, row, head, layout[head], table, lowest, scores, p, total, state, z)
            if n_recent:
                by = unit * scales[0][at], scales[1][at]
                recent(q, late[0][at], late[1][at], by, n_recent, table, lowest, scores, p, total, state, z)
            for c in range(d):
                z[c] /= state[1]

    return decode


@functools.cache
def _sides(d: int) -> Any:
    @compiled
    @no_type_check
    def side(addresses, batch, n_tiles, n_heads, n_bytes):
        """Codes, steps, lows and scales of the keys, or of the values, at four addresses."""
        shape = (batch, n_tiles, n_heads, d)
        return (
            carray(pointer(addresses[0]), (batch, n_tiles, n_bytes), np.uint8),
            carray(pointer(addresses[1]), shape, np.uint8),
            carray(pointer(addresses[2]), shape, np.int8),
            carray(pointer(addresses[3]), (batch, n_tiles, n_heads), np.float32),
        )

    return side


@functools.cache
def _packed_tiles(d: int, tile: int) -> Any:
    dot, gather, weigh = _dots(d), _gathers(d), _weigher(tile)

    @compiled
    @no_type_check
    def fold(q, step, low, folded):
        """The query times the keys' steps; returns its product with their lows."""
        base = np.int32(0)
        for c in range(d):
            folded[c] = np.int16(np.int16(q[c]) * np.int16(step[c]))
        for c in range(d):
            base = np.int32(base + np.int32(np.int32(q[c]) * np.int32(low[c])))
        return base

    @compiled
    @no_type_check
    def add(z, total, step, low, sum_p, by, faded):
        for c in range(d):
            whole = np.int32(np.int32(total[c] * np.int32(step[c])) + np.int32(sum_p * np.int32(low[c])))
            z[c] = z[c] * faded + by * np.float32(whole)

    @compiled
    @no_type_check
    def over(q, unit, keys, values, row, head, places, table, lowest, scores, p, total, state, z):
        """z and the state after all packed tiles of one head."""
        folded = np.empty(d, np.int16)
        for t in range(keys[0].shape[1]):
            base = np.float32(fold(q, keys[1][row, t, head], keys[2][row, t, head], folded))
            dot(keys[0][row, t, places[0] :], places[1], folded, scores, tile)
            by = unit * keys[3][row, t, head]
            for j in range(tile):
                scores[j] = (scores[j] + base) * by
            faded, sum_p = weigh(scores, p, tile, table, lowest, state)
            if sum_p:
                gather(values[0][row, t, places[2] :], places[3], p, total, tile)
                by = state[2] * values[3][row, t, head]
                add(z, total, values[1][row, t, head], values[2][row, t, head], sum_p, by, faded)

    return over


@functools.cache
def _recent_tokens(d: int) -> Any:
    (dot, gather), weigh = _plain(d), _weigher(0)

    @compiled
    @no_type_check
    def over(q, keys, values, by, n, table, lowest, scores, p, total, state, z):
        """z and the state after the tokens in INT8."""
        dot(keys, q, scores, n)
        for j in range(n):
            scores[j] *= by[0]
        faded, _ = weigh(scores, p, n, table, lowest, state)
        gather(values, p, total, n)
        unit = state[2] * by[1]
        for c in range(d):
            z[c] = z[c] * faded + unit * np.float32(total[c])

    return over


@functools.cache
def _weigher(tile: int) -> Any:
    @compiled
    @no_type_check
    def exponential(x, table, n_r):
        y = min(-x, n_r)
        whole = np.int32(y)
        f = np.float32(y - np.float32(whole))
        value = np.float32(table[whole] * (((C3 * f + C2) * f + C1) * f + C0))
        return value if -x <= n_r else np.float32(0)

    @ordered_as_fits
    @no_type_check
    def largest_of(x, n):
        largest = x[0]
        for j in range(1, n):
            largest = x[j] if x[j] > largest else largest
        return largest

    @ordered_as_fits
    @no_type_check
    def sum_of(x, n):
        total = np.float32(0)
        for j in range(n):
            total += x[j]
        return total

    @compiled
    @no_type_check
    def weigh(scores, p, n, table, n_r, state):
        """Scores become weights, then whole numbers p; returns what older sums fade by, and the sum of p."""
        m = max(state[0], largest_of(scores, n))
        faded = np.float32(1)
        if m != state[0]:
            faded = exponential(state[0] - m, table, n_r) if state[0] > -np.inf else np.float32(0)
        for j in range(n):
            scores[j] = exponential(scores[j] - m, table, n_r)
        step = np.float32(largest_of(scores, n) / STEPS)
        state[0], state[1], state[2] = m, faded * state[1] + sum_of(scores, n), step
        sum_p = np.int32(0)
        if step > 0:
            for j in range(n):
                p[j] = np.uint8(np.int32((scores[j] / step + ROUND) - ROUND))
            for j in range(n):
                sum_p = np.int32(sum_p + np.int32(p[j]))
        else:
            p[:n] = 0
        return faded, sum_p

    return weigh


@functools.cache
def _dots(d: int) -> Any:
    """Products of a folded query with the codes of a tile."""

    @compiled
    @no_type_check
    def dot(codes, bits, q, scores, tile):
        rows = tile * bits // 8
        if bits == 4:
            for r in range(rows):
                s0, s1 = np.int32(0), np.int32(0)
                line = codes[r * d : r * d + d]
                for c in range(d):
                    s0 = np.int32(s0 + np.int32(np.int32(q[c]) * np.int32(line[c] & np.uint8(15))))
                    s1 = np.int32(s1 + np.int32(np.int32(q[c]) * np.int32(line[c] >> np.uint8(4))))
                scores[r], scores[r + rows] = s0, s1
        else:
            for r in range(rows):
                s0, s1, s2, s3 = np.int32(0), np.int32(0), np.int32(0), np.int32(0)
                line = codes[r * d : r * d + d]
                for c in range(d):
                    s0 = np.int32(s0 + np.int32(np.int32(q[c]) * np.int32(line[c] & np.uint8(3))))
                    s1 = np.int32(
                        s1 + np.int32(np.int32(q[c]) * np.int32((line[c] >> np.uint8(2)) & np.uint8(3)))
                    )
                    s2 = np.int32(
                        s2 + np.int32(np.int32(q[c]) * np.int32((line[c] >> np.uint8(4)) & np.uint8(3)))
                    )
                    s3 = np.int32(s3 + np.int32(np.int32(q[c]) * np.int32(line[c] >> np.uint8(6))))
                scores[r], scores[r + rows], scores[r + 2 * rows], scores[r + 3 * rows] = s0, s1, s2, s3

    return dot


@functools.cache
def _gathers(d: int) -> Any:
    """Codes of a tile, summed with the weights of their tokens."""

    @compiled
    @no_type_check
    def gather(codes, bits, p, total, tile):
        rows = tile * bits // 8
        total[:] = 0
        short = np.empty(d, np.uint16)
        for first in range(0, rows, BLOCK):
            short[:] = 0
            for r in range(first, min(first + BLOCK, rows)):
                line = codes[r * d : r * d + d]
                if bits == 4:
                    p0, p1 = np.uint16(p[r]), np.uint16(p[r + rows])
                    for c in range(d):
                        x = line[c]
                        short[c] += np.uint16(
                            p0 * np.uint16(x & np.uint8(15)) + p1 * np.uint16(x >> np.uint8(4))
                        )
                else:
                    p0, p1 = np.uint16(p[r]), np.uint16(p[r + rows])
                    p2, p3 = np.uint16(p[r + 2 * rows]), np.uint16(p[r + 3 * rows])
                    for c in range(d):
                        x = line[c]
                        short[c] += np.uint16(
                            p0 * np.uint16(x & np.uint8(3))
                            + p1 * np.uint16((x >> np.uint8(2)) & np.uint8(3))
                            + p2 * np.uint16((x >> np.uint8(4)) & np.uint8(3))
                            + p3 * np.uint16(x >> np.uint8(6))
                        )
            for c in range(d):
                total[c] = np.int32(total[c] + np.int32(short[c]))

    return gather


@functools.cache
def _plain(d: int) -> Any:
    """The same two on int8 itself."""

    @compiled
    @no_type_check
    def dot(keys, q, scores, n):
        for j in range(n):
            s = np.int32(0)
            for c in range(d):
                s = np.int32(s + np.int32(np.int32(q[c]) * np.int32(keys[j, c])))
            scores[j] = s

    @compiled
    @no_type_check
    def gather(values, p, total, n):
        total[:] = 0
        for j in range(n):
            for c in range(d):
                total[c] = np.int32(total[c] + np.int32(np.int32(p[j]) * np.int32(values[j, c])))

    return dot, gather
