"""TurboAttention as numbers that attention computes with: what a trained model, or a circuit of it, does in few bits.

It is no other architecture. Inside `approximated(model, config)` every attention layer, composed or towards an
encoder's output too, rounds its q, k, v and weights as FlashQ does, and takes SAS for the exponential, in floats, under
the same hooks, gates and circuits. Fingerprints stay what they are, so a circuit that was found exactly can be judged
approximately. Source: Kang et al. 2024 (arXiv 2412.08585).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from circuits.kernels.naive_turbo import Exponential, tiled_pattern
from circuits.kernels.quantised import LIMIT, bits_of_heads, fake_int8, fake_stored, sas
from circuits.settings import Count, Fraction, Settings, Within, require

Quant = Literal["none", "int8", "int8+kv4", "int8+kv42"]
"""int8: q, k, v and weights by tiles. +kv4: keys and values as stored in 4 bits. +kv42: some heads' in 2 bits."""


@dataclass(frozen=True, kw_only=True)
class TurboConfig(Settings):
    """How attention computes. The defaults are the whole of TurboAttention."""

    softmax: Literal["exact", "sas"] = "sas"
    "sas: a table and a cubic for the exponential, 0 below `n_r`."
    quant: Quant = "int8+kv42"
    "What is rounded."
    n_r: Annotated[int, Within("a whole number from -20 to -1", least=-20, most=-1)] = -6
    "Weights of scores this far below the largest are 0, in nats."
    tile: Count = 64
    "Tokens that share a scale: a power of two, at least 4."
    low_share: Fraction = 0.5
    "Share of the heads, rounded down, that `int8+kv42` stores in 2 bits."

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = self.tile >= 4 and self.tile & (self.tile - 1) == 0
        require(self, "tile", whole, "a power of two, at least 4, so that tiles fill whole bytes")

    def n_low(self, n_heads: int) -> int:
        """How many heads are stored in 2 bits."""
        return int(n_heads * self.low_share) if self.quant == "int8+kv42" else 0

    @property
    def exponential(self) -> Exponential:
        """What stands for e^x."""
        return partial(sas, n_r=self.n_r) if self.softmax == "sas" else torch.exp

    def query(self, q: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos head d_head"]:
        """Queries as they take part. Raises ValueError where gradients are asked for."""
        _check_no_gradients(q)
        return q if self.quant == "none" else fake_int8(q, self.tile)

    def stored(self, x: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos head d_head"]:
        """Keys or values as they take part. Raises ValueError where gradients are asked for."""
        _check_no_gradients(x)
        if self.quant == "none":
            return x
        if self.quant == "int8":
            return fake_int8(x, self.tile)
        return fake_stored(x, bits_of_heads(x, self.n_low(x.shape[2])), self.tile)

    def pattern(
        self,
        scores: Float[Tensor, "batch head query key"],
        sink: Float[Tensor, " head"] | None,
        *,
        rounded: bool,
    ) -> Float[Tensor, "batch head query key"]:
        """Weights of masked scores; rounded: as they multiply values, where nothing comes in between."""
        int8 = rounded and self.quant != "none"
        return tiled_pattern(scores, sink, exponential=self.exponential, tile=self.tile, int8=int8)

    def composed(
        self, pattern: Float[Tensor, "batch head query key"]
    ) -> Float[Tensor, "batch head query key"]:
        """The pattern of composed heads as it multiplies values; entries may be negative."""
        return pattern if self.quant == "none" else _rounded(pattern, self.tile)


@contextmanager
def approximated(model: Any, config: TurboConfig) -> Iterator[None]:
    """Inside, the model's attention computes as `config` says, with hooks, masks and circuits as ever; no gradients.

    model: a SparseTransformer, which other threads wait for meanwhile. Raises ValueError for anything else, and, when
    it runs, for a pass that gradients are asked of.
    """
    if not hasattr(model, "given"):
        raise ValueError(
            f"model: got a {type(model).__name__}; expected a SparseTransformer, whose attention can be "
            "told how to compute."
        )
    with model.turn:
        before = model.given.turbo
        try:
            model.given.turbo = config
            yield
        finally:
            model.given.turbo = before


def _rounded(pattern: Tensor, tile: int) -> Tensor:
    n_query, n_key = pattern.shape[-2:]
    blocks = F.pad(pattern.flatten(0, 1), (0, -n_key % tile, 0, -n_query % tile))
    blocks = blocks.unflatten(-1, (-1, tile)).unflatten(1, (-1, tile))
    step = blocks.abs().amax((2, 4), keepdim=True) / LIMIT
    rounded = (blocks / step.masked_fill(step == 0, 1.0)).round() * step
    return rounded.flatten(3, 4).flatten(1, 2)[:, :n_query, :n_key].unflatten(0, pattern.shape[:2])


def _check_no_gradients(x: Tensor) -> None:
    if torch.is_grad_enabled() and x.requires_grad:
        raise ValueError(
            "model: gradients are asked of attention in few bits, and rounding has none; expected a pass under "
            "torch.no_grad(). Train and prune the exact model, and judge what was found inside approximated()."
        )
