"""What pruning, trust, plots and bridges ask of a model, whoever made it.

`SparseTransformer` answers for itself; `circuits.interop.lens.LensSubject` answers for a model that TransformerLens
wraps.
"""

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor

from circuits.model.layers import Linear
from circuits.model.sites import Site, Stack, WeightAt


@runtime_checkable
class Subject(Protocol):
    """A model with named activations that can be looked at and replaced. Called on token ids [batch, pos]: logits."""

    tokenizer: Any
    """What made the token ids, or None."""

    @property
    def widths(self) -> Mapping[Site, int]:
        """Number of coordinates of every site, in forward order."""

    @property
    def d_vocab(self) -> int:
        """Number of tokens, and of logits."""

    @property
    def n_ctx(self) -> int:
        """Longest sequence, in tokens."""

    @property
    def like(self) -> Shaped[Tensor, "..."]:
        """A tensor of the type of the model's weights, where they are."""

    def sites(self) -> list[Site]:
        """Every site, in forward order."""

    def hook_name(self, site: Site) -> str:
        """The hook point of a site; its values are [batch, pos, ...], `widths[site]` numbers at each position."""

    def hooks(self, fwd_hooks: list[Any]) -> AbstractContextManager[Any]:
        """Run with hooks: pairs of a hook point's name and a function (value, hook) -> new value or None."""

    def fingerprint(self) -> str:
        """A hash of what decides the model: 16 hexadecimal digits."""

    def __call__(self, tokens: Tensor) -> Any:
        """Logits [batch, pos, d_vocab] of token ids [batch, pos]."""


@runtime_checkable
class SparseSubject(Subject, Protocol):
    """A subject whose weights lead from site to site, so that its circuits have edges and not nodes alone."""

    def linear(self, layer: int, weight: str, stack: Stack = "decoder") -> Linear:
        """The affine map of a layer by the name of its weight."""

    def weights_among(self, sites: Iterable[Site]) -> list[WeightAt]:
        """The weight matrices that lead from one of these sites to another."""


def hash_of_weights(weights: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of named tensors, bit by bit: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights, key=lambda named: named[0]):
        digest.update(name.encode())
        digest.update(bits_of(weight))
    return digest.hexdigest()[:16]


def bits_of(weight: Shaped[Tensor, "..."]) -> bytes:
    """The bytes of a tensor in row-major order, of any type: NumPy knows no bfloat16."""
    return weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
