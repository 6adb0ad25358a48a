"""What attention layers are told for one pass, and what they remember from step to step: the caches of generation."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from circuits.kernels.quantised import LIMIT, Packed, Stored, bits_of_heads, int8_scale, pack, tiled, to_int8
from circuits.model.mixers.turbo import TurboConfig


class Past:
    """Keys and values that attention layers keep from step to step, by layer, as they are."""

    def __init__(self) -> None:
        self.kept: dict[nn.Module, tuple[Tensor, ...]] = {}
        self.n_tokens = 0

    def grown(self, layer: nn.Module, *new: Tensor) -> tuple[Tensor, ...]:
        """All keys and values [batch, key, head, d_head] of a layer, and what else it gives, these new ones last."""
        if layer in self.kept:
            new = tuple(torch.cat(pair, dim=1) for pair in zip(self.kept[layer], new, strict=True))
        self.kept[layer] = new
        return new

    def reorder(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        self.kept = {layer: tuple(x[rows] for x in kept) for layer, kept in self.kept.items()}

    @property
    def n_bytes(self) -> int:
        """Bytes of everything kept."""
        return sum(x.numel() * x.element_size() for kept in self.kept.values() for x in kept)


class TurboPast(Past):
    """Keys and values in few bits: whole tiles packed to 4 or 2, the latest tokens in INT8.

    The first pass decides each head's bits, and the scale that later tokens share until one lies beyond it: then it
    grows, and what the buffer holds is rounded anew. When the INT8 buffers are full they become a packed tile.
    Source: TurboAttention, sections 3 and 5; that the scale grows is chosen here.
    """

    def __init__(self, config: TurboConfig) -> None:
        super().__init__()
        self.config = config
        self.stored: dict[nn.Module, Stored] = {}

    def store(self, layer: nn.Module, k: Tensor, v: Tensor) -> Stored:
        """Add keys and values [batch, pos, head, d_head] of a layer: any number at first, then one at a time."""
        if layer not in self.stored:
            self.stored[layer] = begun(k, v, self.config)
        else:
            for i in range(k.shape[1]):
                self.stored[layer] = _after(self.stored[layer], k[:, i], v[:, i])
        return self.stored[layer]

    def reorder(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        super().reorder(rows)
        self.stored = {layer: _rows(stored, rows) for layer, stored in self.stored.items()}

    @property
    def n_bytes(self) -> int:
        """Bytes of everything kept: packed codes, steps, scales, INT8 buffers with their free room."""
        return super().n_bytes + sum(stored.n_bytes for stored in self.stored.values())


@dataclass
class Given:
    """What attention is told beside its input, for the pass that goes on. One object for all layers of a model.

    A copy of a model is told nothing: what `approximated` says of one ends with it, and would never end for its copy.
    """

    real: Bool[Tensor, "batch source"] | None = None
    "True at the source's tokens, False at its padding."
    past: Past | None = None
    "Keys and values so far; None: every pass begins anew."
    turbo: TurboConfig | None = None
    "Numbers of few bits that attention is to compute with; None: as they are."

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Given, ()


def begun(
    k: Float[Tensor, "batch pos head d_head"], v: Float[Tensor, "batch pos head d_head"], config: TurboConfig
) -> Stored:
    """The keys and values of a text: what fills tiles packed, the rest in INT8."""
    keys, recent_keys, key_scale = _side(k, config)
    values, recent_values, value_scale = _side(v, config)
    return Stored(
        keys=keys,
        values=values,
        recent_keys=recent_keys,
        recent_values=recent_values,
        key_scale=key_scale,
        value_scale=value_scale,
        n_recent=k.shape[1] % config.tile,
    )


def _side(x: Tensor, config: TurboConfig) -> tuple[Packed, Tensor, Tensor]:
    n_whole = x.shape[1] - x.shape[1] % config.tile
    tiles = tiled(x, config.tile)
    scale = int8_scale(tiles).float()
    shared = scale.amax(1)
    whole, scale = tiles[:, : n_whole // config.tile], scale[:, : n_whole // config.tile]
    packed = pack(
        to_int8(whole, scale[:, :, None, :, None]), scale, bits_of_heads(x, config.n_low(x.shape[2]))
    )
    recent = x.new_zeros(x.shape[0], x.shape[2], config.tile, x.shape[3], dtype=torch.int8)
    late = x[:, n_whole:].transpose(1, 2)
    recent[:, :, : late.shape[2]] = to_int8(late, shared[..., None, None])
    return packed, recent, shared


def _after(stored: Stored, k: Tensor, v: Tensor) -> Stored:
    """With one more token [batch, head, d_head]; full buffers are packed."""
    at = stored.n_recent
    key_scale = _taken_in(stored.recent_keys, at, k, stored.key_scale)
    value_scale = _taken_in(stored.recent_values, at, v, stored.value_scale)
    stored = replace(stored, key_scale=key_scale, value_scale=value_scale, n_recent=at + 1)
    if at + 1 < stored.keys.tile:
        return stored
    return replace(
        stored,
        keys=stored.keys.joined(_flushed(stored.recent_keys, key_scale, stored.keys.bits)),
        values=stored.values.joined(_flushed(stored.recent_values, value_scale, stored.values.bits)),
        n_recent=0,
    )


def _taken_in(recent: Tensor, at: int, new: Tensor, scale: Tensor) -> Float[Tensor, "batch head"]:
    """Put a token into a buffer [batch, head, tile, d_head]; returns the scale that all of it then has."""
    grown = torch.maximum(scale, new.abs().amax(-1) / LIMIT)
    if bool((grown > scale).any()):
        recent[:, :, :at] = to_int8(recent[:, :, :at] * scale[..., None, None], grown[..., None, None])
    recent[:, :, at] = to_int8(new, grown[..., None])
    return grown


def _flushed(recent: Tensor, scale: Tensor, bits: tuple[int, ...]) -> Packed:
    return pack(recent.transpose(1, 2)[:, None].contiguous(), scale[:, None], bits)


def _rows(stored: Stored, rows: Tensor) -> Stored:
    return replace(
        stored,
        keys=stored.keys.of_rows(rows),
        values=stored.values.of_rows(rows),
        recent_keys=stored.recent_keys[rows],
        recent_values=stored.recent_values[rows],
        key_scale=stored.key_scale[rows],
        value_scale=stored.value_scale[rows],
    )
