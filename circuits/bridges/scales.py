"""Units in which maps learn, and the least-squares start that is worked out in the values' own.

A dense model's values may be thousands at one location and hundredths at another, while Adam moves every weight by
about its learning rate. So a map learns between values divided by their spread, and what it has learned is folded
back into weights and biases at the end.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuits.bridges.maps import Maps
from circuits.model.layers import Linear, wide
from circuits.reading import demand
from circuits.settings import Positive, checked

LEAST = 1e-12
"""Spread at or below which values count as constant."""


@dataclass(frozen=True, kw_only=True)
class Scales:
    """What values are divided by while maps learn, for each pair and side: powers of two, so that no bit is lost."""

    dense: tuple[float, ...]
    "Of the dense model's location of each pair."
    sparse: tuple[float, ...]
    "Of the sparse model's; of one that trains along, whose values grow as it learns, the dense one's and at most 1."

    def encode(
        self, i: int, maps: Maps, h: Float[Tensor, "*batch d_dense"]
    ) -> Float[Tensor, "*batch d_sparse"]:
        """`Maps.encode` of pair `i`, for maps that learn in these units; values in and out are in their own."""
        return maps.encode(h.to(maps.encoder.weight) / self.dense[i]) * self.sparse[i]

    def decode(
        self, i: int, maps: Maps, h: Float[Tensor, "*batch d_sparse"]
    ) -> Float[Tensor, "*batch d_dense"]:
        """`Maps.decode` of pair `i`, likewise."""
        return maps.decode(h.to(maps.decoder.weight) / self.sparse[i]) * self.dense[i]

    def of(self, i: int, maps: Maps) -> Iterator[tuple[Linear, float, float]]:
        """Both maps of pair `i`, each with the scale of what it reads and of what it writes."""
        yield maps.encoder, self.dense[i], self.sparse[i]
        yield maps.decoder, self.sparse[i], self.dense[i]

    def folded(self, maps: nn.ModuleList) -> nn.ModuleList:
        """A copy of maps that learned in these units, as maps between values in their own."""
        own = copy.deepcopy(maps)
        with torch.no_grad():
            for i, each in enumerate(own):
                assert isinstance(each, Maps)
                for linear, read, written in self.of(i, each):
                    linear.weight.mul_(written / read)
                    linear.bias.mul_(written)
        return own


def unit_scales(n: int) -> Scales:
    """Scales of `n` pairs that change nothing."""
    return Scales(dense=(1.0,) * n, sparse=(1.0,) * n)


def scale_of(values: Float[Tensor, "batch pos d"]) -> float:
    """The power of two nearest to the root mean square about the mean (over batch and position); 1 for constants."""
    exact = values.double()
    rms = float((exact - exact.mean(dim=(0, 1))).square().mean().sqrt())
    return 2.0 ** round(math.log2(rms)) if rms > LEAST else 1.0


def stored_scales(data: Any, n: int) -> Scales:
    """The scales of an interrupted fit; those from before there were any learned in the values' own units.

    Raises UnreadableError or ValueError for what are no scales of `n` pairs.
    """
    if data is None:
        return unit_scales(n)
    demand(
        isinstance(data, dict) and data.keys() == {"dense", "sparse"}, f"scales: got {data!r}", "both sides'"
    )
    sides = {role: checked(f"scales.{role}", own, tuple[Positive, ...]) for role, own in data.items()}
    for role, own in sides.items():
        right = len(own) == n and all(math.frexp(scale)[0] == 0.5 for scale in own)
        demand(right, f"scales.{role}: got {list(own)}", f"{n} powers of two")
    return Scales(**sides)


def least_squares(
    x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"], *, ridge: float = 1e-4
) -> tuple[Float[Tensor, "d_in d_out"], Float[Tensor, " d_out"]]:
    """Weight and bias of the affine map from rows of x to rows of y, slightly damped; of half precision, in float32."""
    a, b = x.double(), y.double()
    centre, shift = a.mean(dim=0), b.mean(dim=0)
    a, b = a - centre, b - shift
    gram = a.T @ a
    damp = (
        ridge
        * gram.diagonal().mean().clamp_min(1e-12)
        * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    )
    weight = torch.linalg.solve(gram + damp, a.T @ b)
    return weight.to(wide(x)), (shift - centre @ weight).to(wide(x))
