"""Paths through several heads: virtual heads, paths ranked by strength, and the exact paths of sparse weights."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens import FactoredMatrix

from circuits.circuit.nodes import Node
from circuits.composition.parts import (
    INSTEAD,
    Port,
    Reader,
    Writer,
    divided,
    parts_of,
    product_norms,
    with_static_maps,
)
from circuits.heads.weights import head_weights
from circuits.model.kinds import of_ours
from circuits.model.options import Says
from circuits.model.sites import SiteName
from circuits.model.transformer import SparseTransformer

PATHS = Says(compose=("none", "static"), act=None, embed_scale=None, experts=None, factor_ratio=None)
"""Products of weights along one residual stream."""
ALONG = Says(compose=None, act=None, embed_scale=None, experts=None)
"""Single weights, one after the other."""


class HeadPath(NamedTuple):
    """Heads that compose one after the other: through their values, and at the last through one port."""

    writers: tuple[Writer, ...]
    reader: Reader
    strength: float
    """`||M_1 M_2 ... M_n|| / (||M_1|| ... ||M_n||)`, 0 to 1."""
    gain: float
    """Strength over its root mean square under independent random rotations, `d_model^(-(n-1)/2)`."""

    @property
    def length(self) -> int:
        """Number of heads."""
        return len(self.writers) + 1

    def __str__(self) -> str:
        return " -> ".join([*map(str, self.writers), str(self.reader)])


def virtual_head(model: Any, heads: Sequence[tuple[int, int]]) -> FactoredMatrix:
    """The OV circuit of heads in series, `W_V1 W_O1 W_V2 W_O2 ...` [d_model, d_model] in two factors.

    heads: (layer, head) from early to late. Static compositions are multiplied in. Raises ValueError when heads are not
    in forward order, and for dynamic compositions. Source: Elhage et al. 2021, "Virtual attention heads".

    Examples:
        >>> model = circuits.handmade.induction().model
        >>> circuits.composition.virtual_head(model, [(0, 0), (1, 0)]).AB.shape
        torch.Size([32, 32])
    """
    PATHS.check(model, "virtual_head", instead=INSTEAD)
    weights = with_static_maps(model, head_weights(model))
    layers = [layer for layer, _ in heads]
    if not heads or layers != sorted(set(layers)) or not set(layers) <= set(weights.layers):
        raise ValueError(
            f"heads: got {list(heads)}; expected at least one (layer, head), layers rising, out of "
            f"{list(weights.layers)}."
        )
    at = [(weights.layers.index(layer), head) for layer, head in heads]
    right = weights.W_O[at[0]]
    for place in at[1:]:
        right = right @ weights.W_V[place] @ weights.W_O[place]
    return FactoredMatrix(weights.W_V[at[0]], right)


def head_paths(
    model: Any, *, max_length: int = 3, port: Port = "K", top: int = 20, beam: int = 4096
) -> list[HeadPath]:
    """Paths of 2 to `max_length` heads into one port (Q, K or V) of the last, the `top` ones by gain.

    Every path is looked at while a length has at most `beam` beginnings; beyond that only the strongest go on.
    Raises ValueError for another port or length.

    Examples:
        >>> model = circuits.handmade.induction(decoys=0, decoy_heads=0).model
        >>> paths = circuits.composition.head_paths(model, port="K", max_length=2, top=1)
        >>> print(*paths)
        L0H0 -> L1H0.K
    """
    if port not in ("Q", "K", "V") or max_length < 2:
        raise ValueError(
            f"port, max_length: got {port!r}, {max_length}; expected Q, K or V, and at least 2 heads."
        )
    PATHS.check(model, "head_paths", instead=INSTEAD)
    parts = parts_of(model)
    layers = torch.tensor([writer.layer for writer in parts.writers])
    heads = _UnitHeads(model)
    ends = heads.read[port]
    chains: list[tuple[int, ...]] = [(i,) for i in range(len(ends))]
    state = heads.written
    found: list[HeadPath] = []
    for length in range(2, max_length + 1):
        later = layers[[chain[-1] for chain in chains]][:, None] < layers
        expected = ends.shape[-1] ** (-(length - 1) / 2)
        for chain, end, strength in _strongest(chains, _strengths(state, ends, later), top):
            path = tuple(parts.writers[i] for i in chain)
            found.append(HeadPath(path, _reader(parts.writers[end], port), strength, strength / expected))
        if length < max_length:
            grown = _strongest(chains, _strengths(state, heads.read["V"], later), beam)
            at = {chain: i for i, chain in enumerate(chains)}
            state = heads.extended(state, [(at[chain], end) for chain, end, _ in grown])
            chains = [(*chain, end) for chain, end, _ in grown]
        if not chains:
            break
    return sorted(found, key=lambda path: -path.gain)[:top]


def _reader(part: Writer, port: Port) -> Reader:
    return Reader(part.layer, part.kind, part.number, port)


class WeightPath(NamedTuple):
    """A path along nonzero weights, from a value channel or neuron to a later q, k, v channel, neuron or expert."""

    nodes: tuple[Node, ...]
    """Writer channel, residual channel as written, residual channel as read, reader channel, and so on."""
    weight: float
    """Product of the weights on the way."""

    def __str__(self) -> str:
        return " -> ".join(map(str, self.nodes)) + f" ({self.weight:+.3g})"


@of_ours
def weight_paths(
    model: SparseTransformer,
    *,
    hops: int = 1,
    source: Writer | None = None,
    target: Reader | None = None,
    limit: int = 100_000,
) -> list[WeightPath]:
    """Every path along nonzero weights with exactly `hops` passages through the residual stream, heaviest first.

    The exact form of composition in a weight-sparse model: the products of the paths between two channels add up
    to the entry of `W_O W_K` (or whichever port). source, target: only paths from this head or neuron, into this
    port. Raises ValueError when there are more than `limit`, as in a dense model.

    Examples:
        >>> model = circuits.handmade.induction(decoys=0, decoy_heads=0).model
        >>> paths = circuits.composition.weight_paths(model)
        >>> print(paths[0])
        0.attn_v.1 -> 0.attn_out.8 -> 1.attn_in.8 -> 1.attn_k.0 (+24)
    """
    if hops < 1:
        raise ValueError(f"hops: got {hops}; expected at least 1.")
    ALONG.check(model, "weight_paths", instead=INSTEAD)
    graph = _WeightGraph(model)
    found = []
    for path in graph.paths(hops, source, target):
        found.append(path)
        if len(found) > limit:
            raise ValueError(
                f"model: more than limit = {limit} paths of nonzero weights; expected a sparse model. Name a "
                "source and a target, take fewer hops, or raise the limit."
            )
    return sorted(found, key=lambda path: (-abs(path.weight), path.nodes))


class _WeightGraph:
    """Nonzero weights by the channel that they leave."""

    def __init__(self, model: SparseTransformer) -> None:
        self.d_head, self.n_layers = model.config.d_head, model.config.n_layers
        self.steps: dict[Node, list[tuple[Node, float]]] = defaultdict(list)
        for at in model.weights_among(model.sites()):
            weight = model.linear(*at).weight.detach()
            for (i, j), value in zip(weight.nonzero().tolist(), weight[weight != 0].tolist(), strict=True):
                self.steps[Node.of(at.source, i)].append((Node.of(at.target, j), value))

    def paths(self, hops: int, source: Writer | None, target: Reader | None) -> Iterator[WeightPath]:
        for node in sorted(self.steps):
            if node.site in ("attn_v", "mlp_neuron") and (source is None or self._part(node) == source):
                for path in self._from((node,), 1.0, hops):
                    if target is None or self._is_at(path.nodes[-1], target):
                        yield path

    def _from(self, nodes: tuple[Node, ...], weight: float, hops: int) -> Iterator[WeightPath]:
        for written, out in self.steps.get(nodes[-1], ()):
            for read in self._read(written):
                for end, back in self.steps.get(read, ()):
                    path = WeightPath((*nodes, written, read, end), weight * out * back)
                    if hops == 1:
                        yield path
                    elif end.site in ("attn_v", "mlp_neuron"):
                        yield from self._from(path.nodes, path.weight, hops - 1)

    def _read(self, written: Node) -> Iterator[Node]:
        """The same residual channel where later sublayers read it."""
        sites: tuple[SiteName, SiteName] = ("attn_in", "mlp_in")
        if written.site == "attn_out":
            yield Node(written.layer, "mlp_in", written.index)
        for layer in range(written.layer + 1, self.n_layers):
            for site in sites:
                yield Node(layer, site, written.index)

    def _part(self, node: Node) -> Writer:
        if node.site == "mlp_neuron":
            return Writer(node.layer, "neuron", node.index)
        return Writer(node.layer, "head", node.index // self.d_head)

    def _is_at(self, node: Node, target: Reader) -> bool:
        port = {"attn_q": "Q", "attn_k": "K", "attn_v": "V", "mlp_neuron": "in"}.get(node.site)
        return port == target.port and self._part(node) == target.part


class _UnitHeads:
    """Every head's matrices, scaled to norm 1; zeros stay zeros."""

    def __init__(self, model: Any) -> None:
        weights, parts = with_static_maps(model, head_weights(model)), parts_of(model)
        factors, n = parts.written[0].factors, len(parts.writers)
        size = factors.flatten(1).norm(dim=1).view(-1, 1, 1)
        self.written = _unit(factors)
        self.read = {
            port: _unit(part) for port, part in zip("QKV", parts.read[0].factors.split(n), strict=True)
        }
        self.V, self.out = weights.W_V.flatten(0, 1), divided(weights.W_O.flatten(0, 1), size)

    def extended(
        self, state: Float[Tensor, "chain rank d_model"], grown: Sequence[tuple[int, int]]
    ) -> Float[Tensor, "grown rank d_model"]:
        """The chains, each passed through the OV circuit of one more head."""
        chain, head = torch.tensor(grown, dtype=torch.int64).view(-1, 2).unbind(1)
        return state[chain] @ self.V[head] @ self.out[head]


def _unit(factors: Float[Tensor, "part rank d_model"]) -> Float[Tensor, "part rank d_model"]:
    return divided(factors, factors.flatten(1).norm(dim=1).view(-1, 1, 1))


def _strengths(
    state: Float[Tensor, "chain rank d_model"],
    ends: Float[Tensor, "end rank d_model"],
    later: Bool[Tensor, "chain end"],
) -> Float[Tensor, "chain end"]:
    return torch.where(later, product_norms([state], [ends]), 0.0)


def _strongest(
    chains: Sequence[tuple[int, ...]], strengths: Float[Tensor, "chain end"], n: int
) -> list[tuple[tuple[int, ...], int, float]]:
    """Chain, end and strength of the `n` largest, without zeros."""
    values, places = strengths.flatten().topk(min(n, strengths.numel()))
    width = strengths.shape[1]
    return [
        (chains[place // width], place % width, value)
        for value, place in zip(values.tolist(), places.tolist(), strict=True)
        if value > 0
    ]
