"""Attention in few bits in Triton: int8 products summed in int32, a table and a cubic for the exponential."""

from typing import no_type_check

import triton
import triton.language as tl

from circuits.kernels.quantised import LIMIT, POLY

STEPS = tl.constexpr(float(LIMIT))
C3, C2, C1, C0 = tl.constexpr(POLY[0]), tl.constexpr(POLY[1]), tl.constexpr(POLY[2]), tl.constexpr(POLY[3])
ROUND = tl.constexpr(float(3 * 2**22))  # adding and subtracting it rounds a float32, halves to even


@triton.jit
@no_type_check
def _sas(x, table, N_R: tl.constexpr):
    """e^x for x <= 0, 0 below -N_R; table: e^0, e^-1, ... e^-N_R."""
    y = tl.minimum(-x, N_R * 1.0)
    whole = tl.floor(y)
    f = y - whole
    value = tl.load(table + whole.to(tl.int32)) * (((C3 * f + C2) * f + C1) * f + C0)
    return tl.where(-x > N_R, 0.0, value)


@triton.jit
@no_type_check
def _tile(q1, k1, v1, real, open, by, v_scale, m, total, z, table, N_R: tl.constexpr):
    """One tile of keys and values: what m, the sum of weights and z become. real: rows that are queries."""
    s = tl.dot(q1, tl.trans(k1), out_dtype=tl.int32).to(tl.float32) * by
    s = tl.where(open, s, -float("inf"))
    above = tl.maximum(m, tl.max(s, axis=1))
    faded = tl.where(m == above, 1.0, _sas(m - above, table, N_R))
    p = tl.where(real[:, None], _sas(s - above[:, None], table, N_R), 0.0)
    total = faded * total + tl.sum(p, axis=1)
    step = tl.max(tl.max(p, axis=1), axis=0) / STEPS
    p1 = ((p / tl.where(step > 0, step, 1.0) + ROUND) - ROUND).to(tl.int8)
    z = z * faded[:, None] + tl.dot(p1, v1, out_dtype=tl.int32).to(tl.float32) * (step * v_scale)
    return above, total, z


@triton.jit
@no_type_check
def _one_query(q1, k1, v1, open, by, v_scale, m, total, z, table, N_R: tl.constexpr):
    """`_tile` for one query [channel], in sums of whole numbers: a matrix unit would work on fifteen idle rows."""
    s = tl.where(open, tl.sum(k1 * q1[None, :], axis=1).to(tl.float32) * by, -float("inf"))
    above = tl.maximum(m, tl.max(s, axis=0))
    faded = tl.where(m == above, 1.0, _sas(m - above, table, N_R))
    p = _sas(s - above, table, N_R)
    total = faded * total + tl.sum(p, axis=0)
    step = tl.max(p, axis=0) / STEPS
    p1 = ((p / tl.where(step > 0, step, 1.0) + ROUND) - ROUND).to(tl.int32)
    z = z * faded + tl.sum(p1[:, None] * v1, axis=0).to(tl.float32) * (step * v_scale)
    return above, total, z


@triton.jit
@no_type_check
def _begin(sink, h, table, HAS_SINK: tl.constexpr, M: tl.constexpr, D: tl.constexpr):
    """m, the sum of weights and z before the first tile: the sink alone."""
    m = tl.full([M], -float("inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    if HAS_SINK:
        m = tl.zeros([M], tl.float32) + tl.load(sink + h)
        total += tl.load(table) * C0
    return m, total, tl.zeros([M, D], tl.float32)


@triton.jit
@no_type_check
def turbo_fwd_kernel(
    q, k, v, q_scale, k_scale, v_scale, sink, table, out, n, n_heads, n_tiles, unit,
    d: tl.constexpr,
    HAS_SINK: tl.constexpr, N_R: tl.constexpr, TILE: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head against all tiles of keys up to it; q, k, v int8 [batch, pos, head, d]."""
    i, at = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = at // n_heads, at % n_heads
    rows, cols, c = tl.arange(0, M), tl.arange(0, N), tl.arange(0, D)
    width = n_heads * d
    base = b * n_tiles * TILE * width + h * d
    query, scales = i * TILE + rows, b * n_tiles * n_heads + h
    real, inside = (rows < TILE) & (query < n), (cols < TILE)[:, None] & (c < d)[None, :]
    spots = query.to(tl.int64)[:, None] * width + c[None, :]
    q1 = tl.load(q + base + spots, mask=real[:, None] & (c < d)[None, :], other=0)
    by = tl.load(q_scale + scales + i * n_heads) * unit
    m, total, z = _begin(sink, h, table, HAS_SINK, M, D)
    for j in range(0, i + 1):
        key = j * TILE + cols
        places = key.to(tl.int64)[:, None] * width + c[None, :]
        k1 = tl.load(k + base + places, mask=inside, other=0)
        v1 = tl.load(v + base + places, mask=inside, other=0)
        open = ((cols < TILE) & (key < n))[None, :] & (key[None, :] <= query[:, None])
        ks, vs = tl.load(k_scale + scales + j * n_heads), tl.load(v_scale + scales + j * n_heads)
        m, total, z = _tile(q1, k1, v1, real, open, by * ks, vs, m, total, z, table, N_R)
    spots = (b * n + query.to(tl.int64))[:, None] * width + h * d + c[None, :]
    tl.store(out + spots, z / tl.where(total > 0, total, 1.0)[:, None], mask=real[:, None] & (c < d)[None, :])


@triton.jit
@no_type_check
def _levels(codes, first, step, low, line, bits, cols, c, d: tl.constexpr, inside, TILE: tl.constexpr):
    """`low + step * code` of a tile of a head, an int8 in an int32 [token, channel]; codes: its first byte, from the
    buffer's."""
    rows = TILE * bits // 8
    if d % 16 == 0:  # so that whole words are loaded
        first = tl.multiple_of(first, 16)
        line = tl.multiple_of(line, 16)
    packed = tl.load(codes + first + (cols % rows)[:, None] * d + c[None, :], mask=inside, other=0).to(
        tl.int32
    )
    code = (packed >> ((cols // rows) * bits)[:, None]) & ((1 << bits) - 1)
    steps = tl.load(step + line + c, mask=c < d, other=0).to(tl.int32)
    least = tl.load(low + line + c, mask=c < d, other=0).to(tl.int32)
    return (least[None, :] + steps[None, :] * code).to(tl.int8).to(tl.int32)


@triton.jit
@no_type_check
def turbo_decode_kernel(
    q, q_scale, k_codes, k_step, k_low, k_scale, v_codes, v_step, v_low, v_scale,
    recent_k, recent_v, recent_k_scale, recent_v_scale, layout, sink, table, out,
    n_heads, n_tiles, n_recent, k_bytes, v_bytes, unit,
    d: tl.constexpr,
    HAS_SINK: tl.constexpr, N_R: tl.constexpr, TILE: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One head's query against packed tiles and the recent tokens. layout: first byte and bits, of keys and values."""
    at = tl.program_id(0).to(tl.int64)
    b, h = at // n_heads, at % n_heads
    cols, c = tl.arange(0, N), tl.arange(0, D)
    inside = (cols < TILE)[:, None] & (c < d)[None, :]
    q1 = tl.load(q + at * d + c, mask=c < d, other=0).to(tl.int32)
    k_start, k_bits = tl.load(layout + 4 * h), tl.load(layout + 4 * h + 1)
    v_start, v_bits = tl.load(layout + 4 * h + 2), tl.load(layout + 4 * h + 3)
    by = tl.load(q_scale + at) * unit
    m, total, z = -float("inf"), 0.0, tl.zeros([D], tl.float32)
    if HAS_SINK:
        m, total = tl.load(sink + h), tl.load(table) * C0
    for j in range(0, n_tiles):
        tile = b * n_tiles + j
        line = tile * n_heads + h
        k1 = _levels(
            k_codes, tile * k_bytes + k_start, k_step, k_low, line * d, k_bits, cols, c, d, inside, TILE
        )
        v1 = _levels(
            v_codes, tile * v_bytes + v_start, v_step, v_low, line * d, v_bits, cols, c, d, inside, TILE
        )
        ks, vs = tl.load(k_scale + line), tl.load(v_scale + line)
        m, total, z = _one_query(q1, k1, v1, cols < TILE, by * ks, vs, m, total, z, table, N_R)
    if n_recent > 0:
        places = at * TILE * d + cols[:, None] * d + c[None, :]
        k1 = tl.load(recent_k + places, mask=inside, other=0).to(tl.int32)
        v1 = tl.load(recent_v + places, mask=inside, other=0).to(tl.int32)
        ks, vs = tl.load(recent_k_scale + at), tl.load(recent_v_scale + at)
        m, total, z = _one_query(q1, k1, v1, cols < n_recent, by * ks, vs, m, total, z, table, N_R)
    tl.store(out + at * d + c, z / tl.where(total > 0, total, 1.0), mask=c < d)
