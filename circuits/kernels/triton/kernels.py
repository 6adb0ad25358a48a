"""The Triton kernels, and the search space of each one that is tuned: sums in float32, 64-bit addresses."""

from typing import no_type_check

import triton
import triton.language as tl

INFINITY = tl.constexpr(0x7F80_0000)
MAGNITUDE = tl.constexpr(0x7FFF_FFFF)
FLAT = 1024  # entries in one block of the kernels that go through a tensor once


def _config(warps: int, **blocks: int) -> triton.Config:
    return triton.Config(blocks, num_warps=warps)


# The search spaces: small, since each configuration is compiled and timed on first use. The first one is used
# where nothing can be timed. BLOCK_N nonzeros are in flight at once, each a row of BLOCK_T tokens.
PRODUCT = [
    _config(4, BLOCK_T=256, BLOCK_N=4),
    _config(4, BLOCK_T=512, BLOCK_N=4),
    _config(4, BLOCK_T=128, BLOCK_N=8),
]
SAMPLED = [
    _config(4, BLOCK_T=256, BLOCK_N=8),
    _config(4, BLOCK_T=512, BLOCK_N=4),
    _config(8, BLOCK_T=256, BLOCK_N=16),
]
# BLOCK_S slices by BLOCK_N entries. Threads run along whichever of the two is contiguous.
ROWS = [
    _config(4, BLOCK_S=8, BLOCK_N=128),
    _config(4, BLOCK_S=1, BLOCK_N=1024),
    _config(8, BLOCK_S=1, BLOCK_N=4096),
]
COLUMNS = [
    _config(4, BLOCK_S=32, BLOCK_N=32),
    _config(4, BLOCK_S=32, BLOCK_N=16),
    _config(8, BLOCK_S=64, BLOCK_N=32),
]


@triton.jit
@no_type_check
def spmm_fwd_kernel(
    start,
    index,
    order,
    values,
    x,
    bias,
    y,
    tokens,
    scale,
    HAS_ORDER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """y = A x + bias for one row of A, in compressed rows, and BLOCK_T tokens."""
    row = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    first, last = tl.load(start + row), tl.load(start + row + 1)
    # Summed over the nonzeros only once, at the end: a sum inside the loop would cross warps every time.
    total = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    for p0 in range(first, last, BLOCK_N):
        p = p0 + tl.arange(0, BLOCK_N)
        live = p < last
        i = tl.load(index + p, mask=live, other=0).to(tl.int64)
        at = tl.load(order + p, mask=live, other=0) if HAS_ORDER else p
        v = tl.load(values + at, mask=live, other=0.0).to(tl.float32)
        inside = live[:, None] & (t < tokens)[None, :]
        total += v[:, None] * tl.load(x + i[:, None] * tokens + t[None, :], mask=inside, other=0.0).to(
            tl.float32
        )
    result = tl.sum(total, axis=0)
    if HAS_BIAS:
        result += tl.load(bias + row).to(tl.float32)
    tl.store(y + row * tokens + t, result, mask=t < tokens)


@triton.jit
@no_type_check
def sddmm_fwd_kernel(start, index, x, dy, out, tokens, scale, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr):
    """out[p] = x[row] . dy[index[p]] for the nonzeros p of one row."""
    row = tl.program_id(0).to(tl.int64)
    first, last = tl.load(start + row), tl.load(start + row + 1)
    for p0 in range(first, last, BLOCK_N):
        p = p0 + tl.arange(0, BLOCK_N)
        live = p < last
        j = tl.load(index + p, mask=live, other=0).to(tl.int64)
        total = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
        for t0 in range(0, tokens, BLOCK_T):
            t = t0 + tl.arange(0, BLOCK_T)
            here = tl.load(x + row * tokens + t, mask=t < tokens, other=0.0).to(tl.float32)
            inside = live[:, None] & (t < tokens)[None, :]
            there = tl.load(dy + j[:, None] * tokens + t[None, :], mask=inside, other=0.0).to(tl.float32)
            total += here[None, :] * there
        tl.store(out + p, tl.sum(total, axis=1), mask=live)


@triton.jit
@no_type_check
def _key(x, LOW: tl.constexpr):
    """The integer that ranks an entry by magnitude; all NaNs alike, above infinity. Bits below LOW are zero."""
    bits = x.to(tl.float32).to(tl.uint32, bitcast=True) & MAGNITUDE
    return tl.minimum(bits, INFINITY + (1 << LOW)).to(tl.uint32)


@triton.jit
@no_type_check
def _kth_keys(
    x, base, s, slices, n, entry_stride, k, LOW: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr
):
    """The k-th largest key of each of BLOCK_S slices.

    Built two bits at a time from the top: of the four continuations, the largest that still has k keys at or above
    it. Counts are summed over a slice only once per pass, since that sum crosses threads.
    """
    t = tl.zeros([BLOCK_S], tl.uint32)
    step = tl.full([BLOCK_S], 1 << 30, tl.uint32)
    for _ in range(0, (32 - LOW) // 2):
        n1 = tl.zeros([BLOCK_S, BLOCK_N], tl.int32)
        n2 = tl.zeros([BLOCK_S, BLOCK_N], tl.int32)
        n3 = tl.zeros([BLOCK_S, BLOCK_N], tl.int32)
        for j0 in range(0, n, BLOCK_N):
            j = j0 + tl.arange(0, BLOCK_N)
            inside = (s < slices)[:, None] & (j < n)[None, :]
            m = _key(tl.load(x + base + j[None, :].to(tl.int64) * entry_stride, mask=inside, other=0.0), LOW)
            n1 += (m >= (t + step)[:, None]).to(tl.int32)
            n2 += (m >= (t + 2 * step)[:, None]).to(tl.int32)
            n3 += (m >= (t + 3 * step)[:, None]).to(tl.int32)
        digit = (tl.sum(n1, axis=1) >= k).to(tl.uint32) + (tl.sum(n2, axis=1) >= k).to(tl.uint32)
        t += step * (digit + (tl.sum(n3, axis=1) >= k).to(tl.uint32))
        step = step >> 2
    return t


@triton.jit
@no_type_check
def abs_topk_fwd_kernel(
    x,
    y,
    identity,
    slices,
    n,
    slice_stride,
    entry_stride,
    batch_stride,
    k,
    scale,
    AS_MASK: tl.constexpr,
    LOW: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The k largest magnitudes of BLOCK_S slices: their values, or ones (AS_MASK); equals by lowest index."""
    blocks = tl.cdiv(slices, BLOCK_S)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    s = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    base = batch * batch_stride + s[:, None] * slice_stride
    t = _kth_keys(x, base, s, slices, n, entry_stride, k, LOW, BLOCK_S, BLOCK_N)
    # Here and not last: what this store needs would hold registers, or be spilled, through the loops below.
    if not AS_MASK:
        tl.store(identity + batch * slices + s, (t == 0).to(tl.uint8), mask=s < slices)
    above = tl.zeros([BLOCK_S, BLOCK_N], tl.int32)
    tied = tl.zeros([BLOCK_S, BLOCK_N], tl.int32)
    for j0 in range(0, n, BLOCK_N):
        j = j0 + tl.arange(0, BLOCK_N)
        inside = (s < slices)[:, None] & (j < n)[None, :]
        m = _key(tl.load(x + base + j[None, :].to(tl.int64) * entry_stride, mask=inside, other=0.0), LOW)
        above += (m > t[:, None]).to(tl.int32)
        tied += ((m == t[:, None]) & inside).to(tl.int32)
    left = k - tl.sum(above, axis=1)
    # Which of several zeros is kept shows in a mask only.
    surplus = tl.where((t > 0) | AS_MASK, tl.sum(tied, axis=1) - left, 0)
    ties = tl.max(surplus, axis=0) > 0
    for j0 in range(0, n, BLOCK_N):
        j = j0 + tl.arange(0, BLOCK_N)
        inside = (s < slices)[:, None] & (j < n)[None, :]
        here = base + j[None, :].to(tl.int64) * entry_stride
        v = tl.load(x + here, mask=inside, other=0.0)
        m = _key(v, LOW)
        keep = m >= t[:, None]
        if ties:
            equal = (m == t[:, None]).to(tl.int32)  # those beyond the end are counted last
            keep = (m > t[:, None]) | ((equal != 0) & (tl.cumsum(equal, axis=1) <= left[:, None]))
            left -= tl.sum(equal, axis=1)
        tl.store(y + here, keep.to(tl.uint8) if AS_MASK else tl.where(keep, v, 0.0), mask=inside)


@triton.jit
@no_type_check
def abs_topk_bwd_kernel(dy, y, identity, dx, size, batch_stride, inner, BLOCK: tl.constexpr):
    """dx = dy where y is nonzero, and everywhere in slices that were left unchanged."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    unchanged = tl.load(identity + i // batch_stride * inner + i % inner, mask=inside, other=0)
    passes = (tl.load(y + i, mask=inside, other=0.0) != 0.0) | (unchanged != 0)
    tl.store(dx + i, tl.where(passes, tl.load(dy + i, mask=inside, other=0.0), 0.0), mask=inside)


# `scale`, an argument no kernel reads, is the size of the problem rounded up to a power of two: tuning is repeated
# for each scale, not for each size.
CONFIGS = {
    "spmm_fwd_kernel": PRODUCT,
    "sddmm_fwd_kernel": SAMPLED,
    "abs_topk_fwd_kernel rows": ROWS,
    "abs_topk_fwd_kernel columns": COLUMNS,
}
"""Search space of each kernel that is tuned."""
