"""Attention in few bits on NVIDIA GPUs: the functions that the dispatcher calls."""

from typing import Any

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from circuits.kernels.quantised import Stored, int8_scale, tiled, to_int8
from circuits.kernels.triton import interpreted
from circuits.kernels.triton.turbo_kernels import turbo_decode_kernel, turbo_fwd_kernel


def warps(rows: int, d_head: int) -> int:
    """Of a program: its tiles of keys and of values lie in registers, of which few warps have more each."""
    return 4 if rows <= 16 and d_head <= 64 else 8


def turbo_attention(
    q: Float[Tensor, "batch pos head d_head"],
    k: Float[Tensor, "batch pos head d_head"],
    v: Float[Tensor, "batch pos head d_head"],
    sink: Float[Tensor, " head"] | None,
    n_r: int,
    tile: int,
) -> Float[Tensor, "batch pos head d_head"]:
    """See `circuits.kernels.turbo_attention`."""
    batch, n, n_heads, d = q.shape
    (q1, qs), (k1, ks), (v1, vs) = (_int8(x, tile) for x in (q, k, v))
    out, n_tiles = torch.empty(q.shape, device=q.device), qs.shape[1]
    if q.numel():
        arguments = (q1, k1, v1, qs, ks, vs, *_table(sink, n_r, q), out, n, n_heads, n_tiles, d**-0.5)
        _launch(turbo_fwd_kernel, (n_tiles, batch * n_heads), arguments, sink, n_r, tile, max(16, tile), d)
    return out.to(q.dtype)


def turbo_decode(
    q: Float[Tensor, "batch 1 head d_head"], stored: Stored, sink: Float[Tensor, " head"] | None, n_r: int
) -> Float[Tensor, "batch 1 head d_head"]:
    """See `circuits.kernels.turbo_decode`."""
    batch, _, n_heads, d = q.shape
    q1, q_scale = _int8(q, 1)
    keys, values = stored.keys, stored.values
    rows = [*zip(keys.starts, keys.bits, values.starts, values.bits, strict=True)]
    recent = (stored.recent_keys, stored.recent_values, stored.key_scale, stored.value_scale)
    buffers = (b.contiguous() for b in (*keys.buffers, *values.buffers, *recent))
    layout = torch.tensor(rows, dtype=torch.int32, device=q.device)
    out = torch.empty(q.shape, device=q.device)
    sizes = (keys.codes.shape[1], stored.n_recent, keys.codes.shape[2], values.codes.shape[2])
    arguments = (
        q1,
        q_scale,
        *buffers,
        layout,
        *_table(sink, n_r, q),
        out,
        n_heads,
        *sizes,
        d**-0.5,
    )
    _launch(turbo_decode_kernel, (batch * n_heads,), arguments, sink, n_r, keys.tile, 1, d)
    return out.to(q.dtype)


def _int8(x: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    tiles = tiled(x.float(), tile)
    scale = int8_scale(tiles)
    return to_int8(tiles, scale[:, :, None, :, None]).contiguous(), scale.contiguous()


def _table(sink: Tensor | None, n_r: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Sinks, if there are any, and e^0, e^-1, ..."""
    table = (-torch.arange(1 - n_r, dtype=torch.float32, device=like.device)).exp()
    return (table if sink is None else sink.float().contiguous()), table


def _launch(
    kernel: Any, grid: Any, arguments: Any, sink: Tensor | None, n_r: int, tile: int, rows: int, d: int
) -> None:
    blocks = {"d": d, "N": max(32, tile), "D": max(32, triton.next_power_of_2(d))}
    if rows > 1:
        blocks["M"] = rows
    options: dict[str, Any] = (
        {} if interpreted() else {"enable_fp_fusion": True, "num_warps": warps(rows, d), "num_stages": 1}
    )
    kernel[grid](*arguments, HAS_SINK=sink is not None, N_R=-n_r, TILE=tile, **blocks, **options)
