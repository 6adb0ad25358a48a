"""Numbers in few bits: the exponential of a table, INT8 tiles, and stored keys and values of 4 or 2 bits.

FlashQ, stage 1: a tile of tokens of one head shares one scale, `x1 = round(x / s)`, `s = max|x| / 119`. Stage 2, for
storage: in each tile a channel takes the whole numbers `low + step * code` nearest to its x1, with codes of b bits.
Everything is a whole number between, so products of tiles can be summed exactly.

Source: Kang et al. 2024, "TurboAttention" (arXiv 2412.08585). What the paper leaves open is chosen here; see
docs/explanation/turbo.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

LIMIT = 119
"""Largest whole number of stage 1: a stored value of 4 bits is at most 8 away from it, and 127 is what int8 holds."""
POLY = (-0.1025, 0.4626, -0.9922, 0.9996)
"""The cubic that stands for e^-f on [0, 1), highest power first."""
TILE = 64
"""Tokens that share a scale (published)."""


def sas(x: Float[Tensor, "*shape"], n_r: int = -6) -> Float[Tensor, "*shape"]:
    """e^x for x <= 0: a table for the whole part, a cubic for the fraction, exactly 0 below `n_r`.

    At most 1.1e-3 off, relative to e^x, on [n_r, 0]. Source: TurboAttention, section 4 (SAS).
    """
    y = -x
    whole = y.floor()
    f = y - whole
    table = (-torch.arange(1 - n_r, dtype=x.dtype, device=x.device)).exp()
    cubic = ((POLY[0] * f + POLY[1]) * f + POLY[2]) * f + POLY[3]
    value = table[whole.nan_to_num(0.0).clamp(0, -n_r).long()] * cubic
    return torch.where(x < n_r, torch.zeros_like(x), value)


def tiled(
    x: Float[Tensor, "batch pos head d_head"], tile: int
) -> Float[Tensor, "batch tiles tile head d_head"]:
    """Tokens by tiles; the last token fills the last tile up, which changes neither its largest nor its least."""
    missing = -x.shape[1] % tile
    if missing:
        x = torch.cat([x, x[:, -1:].expand(-1, missing, -1, -1)], dim=1)
    return x.unflatten(1, (-1, tile))


def int8_scale(x: Float[Tensor, "batch tiles tile head d_head"]) -> Float[Tensor, "batch tiles head"]:
    """What a step of 1 is worth in each tile of each head: `max|x| / 119`."""
    return x.abs().amax((2, 4)) / LIMIT


def to_int8(x: Float[Tensor, "*shape"], scale: Float[Tensor, "*#shape"]) -> Int8[Tensor, "*shape"]:
    """`round(x / scale)`, halves to even, held within 119; 0 where the scale is 0."""
    steps = (x / scale.masked_fill(scale == 0, 1.0)).round()
    return steps.clamp(-LIMIT, LIMIT).to(torch.int8)


def fake_int8(
    x: Float[Tensor, "batch pos head d_head"], tile: int = TILE
) -> Float[Tensor, "batch pos head d_head"]:
    """What stage 1 leaves of x, as floats."""
    tiles = tiled(x, tile)
    scale = int8_scale(tiles)[:, :, None, :, None]
    return (to_int8(tiles, scale) * scale).flatten(1, 2)[:, : x.shape[1]]


def head_priority(x: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, " head"]:
    """Which heads need their bits: the range of all entries times the deviation of the channels' ranges.

    Source: TurboAttention, section 3 (head-wise mixed precision).
    """
    most, least = x.amax((0, 1)), x.amin((0, 1))
    gap = most.amax(-1) - least.amin(-1)
    return gap * (most - least).std(-1, correction=0)


def bits_of_heads(x: Float[Tensor, "batch pos head d_head"], n_low: int) -> tuple[int, ...]:
    """2 for the `n_low` heads of lowest priority (the first of equals), 4 for the others."""
    order = head_priority(x).argsort(stable=True).tolist()
    low = set(order[:n_low])
    return tuple(2 if head in low else 4 for head in range(x.shape[2]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """Keys, or values, of whole tiles, packed into bytes. Each head has its own number of bits.

    Row r of a tile's bytes holds the tokens r, r + rows, r + 2 rows, ... of the tile, lowest bits first.
    """

    codes: UInt8[Tensor, "batch tiles bytes"]
    "All heads of a tile, one after the other, [rows, d_head] each, rows = tile * bits / 8."
    step: UInt8[Tensor, "batch tiles head d_head"]
    low: Int8[Tensor, "batch tiles head d_head"]
    scale: Float[Tensor, "batch tiles head"]
    "What 1 is worth: float32."
    bits: tuple[int, ...]
    "Of each head: 4 or 2."
    tile: int
    "Tokens of a tile."

    @property
    def starts(self) -> tuple[int, ...]:
        """The first byte of each head in a tile."""
        sizes = [self.tile * bits // 8 * self.low.shape[-1] for bits in self.bits]
        return tuple(sum(sizes[:head]) for head in range(len(sizes)))

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """The tensors that it holds."""
        return self.codes, self.step, self.low, self.scale

    def levels(self) -> Int8[Tensor, "batch pos head d_head"]:
        """`low + step * code`: what stage 2 made of the whole numbers of stage 1."""
        heads = [self._codes_of(head) for head in range(len(self.bits))]
        codes = torch.stack(heads, dim=3).to(torch.int16)
        return (self.low[:, :, None] + self.step[:, :, None] * codes).to(torch.int8).flatten(1, 2)

    def unpack(self) -> Float[Tensor, "batch pos head d_head"]:
        """The keys or values as floats."""
        return self.levels() * self.scale.repeat_interleave(self.tile, 1)[..., None]

    def _codes_of(self, head: int) -> UInt8[Tensor, "batch tiles tile d_head"]:
        bits, d_head = self.bits[head], self.low.shape[-1]
        start = self.starts[head]
        packed = self.codes[:, :, start : start + self.tile * bits // 8 * d_head].unflatten(-1, (-1, d_head))
        return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], dim=2)

    def joined(self, later: "Packed") -> "Packed":
        """These tokens, and then those."""
        pairs = zip(self.buffers, later.buffers, strict=True)
        return self._with([torch.cat(pair, dim=1) for pair in pairs])

    def of_rows(self, rows: Tensor) -> "Packed":
        """These rows of the batch, in this order."""
        return self._with([buffer[rows] for buffer in self.buffers])

    def _with(self, buffers: Sequence[Tensor]) -> "Packed":
        codes, step, low, scale = buffers
        return replace(self, codes=codes, step=step, low=low, scale=scale)


def pack(
    x1: Int8[Tensor, "batch tiles tile head d_head"],
    scale: Float[Tensor, "batch tiles head"],
    bits: tuple[int, ...],
) -> Packed:
    """Stage 2: channel by channel, the least whole number of a tile, a step, and codes of b bits.

    `step = max(1, ceil((max - min) / (2^b - 1)))`, `low = min`, `code = round((x1 - low) / step)`.
    """
    x1 = x1.to(torch.int16)
    low, most = x1.amin(2), x1.amax(2)
    top = torch.tensor([2**b - 1 for b in bits], device=x1.device)[:, None]
    step = ((most - low) / top).ceil().clamp_min(1)
    codes = ((x1 - low[:, :, None]) / step[:, :, None]).round().to(torch.uint8)
    packed = [_bytes(codes[:, :, :, head], b) for head, b in enumerate(bits)]
    return Packed(
        codes=torch.cat(packed, dim=-1),
        step=step.to(torch.uint8),
        low=low.to(torch.int8),
        scale=scale.float(),
        bits=bits,
        tile=x1.shape[2],
    )


def _bytes(codes: UInt8[Tensor, "batch tiles tile d_head"], bits: int) -> UInt8[Tensor, "batch tiles bytes"]:
    parts = codes.unflatten(2, (8 // bits, -1))
    total = torch.zeros_like(parts[:, :, 0])
    for i in range(8 // bits):
        total = total | (parts[:, :, i] << (bits * i))
    return total.flatten(2)


def fake_stored(
    x: Float[Tensor, "batch pos head d_head"], bits: tuple[int, ...], tile: int = TILE
) -> Float[Tensor, "batch pos head d_head"]:
    """What both stages leave of x, as floats."""
    tiles = tiled(x, tile)
    scale = int8_scale(tiles)
    packed = pack(to_int8(tiles, scale[:, :, None, :, None]), scale, bits)
    return packed.unpack()[:, : x.shape[1]].to(x.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """The keys and values of one layer: whole tiles packed, the latest tokens in INT8."""

    keys: Packed
    values: Packed
    recent_keys: Int8[Tensor, "batch head tile d_head"]
    recent_values: Int8[Tensor, "batch head tile d_head"]
    key_scale: Float[Tensor, "batch head"]
    "What 1 is worth in `recent_keys`; float32."
    value_scale: Float[Tensor, "batch head"]
    n_recent: int
    "Tokens in the recent buffers, from their start."

    @property
    def n_bytes(self) -> int:
        """Bytes of all buffers, scales and room for recent tokens included."""
        own = (self.recent_keys, self.recent_values, self.key_scale, self.value_scale)
        return sum(b.numel() * b.element_size() for b in (*self.keys.buffers, *self.values.buffers, *own))

    @property
    def n_tokens(self) -> int:
        """Tokens it holds."""
        return self.keys.codes.shape[1] * self.keys.tile + self.n_recent

    def unpacked(self) -> tuple[Tensor, Tensor]:
        """Keys and values [batch, pos, head, d_head] as float32."""
        return (
            _whole(self.keys, self.recent_keys[:, :, : self.n_recent], self.key_scale),
            _whole(self.values, self.recent_values[:, :, : self.n_recent], self.value_scale),
        )


def _whole(packed: Packed, recent: Tensor, scale: Tensor) -> Tensor:
    late = (recent * scale[..., None, None]).transpose(1, 2)
    return torch.cat([packed.unpack(), late], dim=1)
