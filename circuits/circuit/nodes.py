"""What a circuit is made of: nodes, edges, and the masks that keep some of them."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

from circuits.model.sites import (
    BY_SITES,
    GATED,
    ORDER,
    PAIRS,
    ROWS,
    Site,
    SiteName,
    Stack,
    WeightAt,
    prefix,
    read_stack,
    split_stack,
    weights_among,
)

Ablation = Literal["mean", "zero", "position", "resample", "stochastic", "adversarial"]
"""What is left out is replaced by: its mean over batch and positions; zero; its mean at that position; its value at
that position in another text, the next of a few in turn for each prompt; some way from its mean to its own value, at
random; or as far that way as hurts most (`circuits.circuit.adversary`)."""
HOSTILE = ("stochastic", "adversarial")
"""Ablations that choose values anew each time they judge; what stands still beside them is the mean."""
Widths = Mapping[Site, int]
"""Number of coordinates of each site that there is."""


@dataclass(frozen=True, order=True, slots=True)
class Node:
    """One coordinate of one site."""

    layer: int
    site: SiteName
    index: int
    stack: Stack = "decoder"

    @property
    def at(self) -> Site:
        """The site that this node is a coordinate of."""
        return Site(self.layer, self.site, self.stack)

    @classmethod
    def of(cls, site: Site, index: int) -> "Node":
        """A coordinate of a site."""
        return cls(site.layer, site.name, index, site.stack)

    def __str__(self) -> str:
        return f"{prefix(self.stack)}{self.layer}.{self.site}.{self.index}"

    @classmethod
    def parse(cls, text: str) -> "Node":
        """Read `layer.site.index` back. Raises ValueError on anything else."""
        stack, (layer, site, index) = split_stack(text, 3)
        if site not in ROWS or not layer.isdecimal() or not index.isdecimal():
            raise ValueError(f"node: got {text!r}; expected 'layer.site.index' with a site out of {ORDER}.")
        return cls(int(layer), site, int(index), stack)


class Edge(NamedTuple):
    """A nonzero weight between two kept nodes.

    A q-channel and the k-channel that it is multiplied with are an edge too (source k, target q); its weight
    is the 1/sqrt(d_head) that their product enters the attention score with. So are an expert and a neuron of it,
    which the expert's share multiplies; its weight is 1.
    """

    source: Node
    target: Node
    weight: float


class Effect(NamedTuple):
    """What one node does to another on the direct path between them: measured on prompts, and no weight.

    By how many logits the margin falls, to first order, when this path alone carries what the source says on the
    corrupted prompt. Nothing is cut by it, and no edge is counted for it. See `circuits.circuit.effects`.
    """

    source: Node | None
    """None: the embedded tokens."""
    target: Node | None
    """None: the margin itself, answer over foil."""
    size: float
    """In logits; positive: the path speaks for the answer."""


class IOEdge(NamedTuple):
    """Nonzeros of the embedding, of the position table or of the unembedding that tie text to a node."""

    kind: Literal["embed", "shared", "position", "several", "unembed"]
    """`embed`: a token in which clean and corrupted prompts differ; `shared`: any other token; `position`: a place in
    the text; `several`: many of the last two in one; `unembed`: an answer or a foil."""
    token: str
    """Its text; `position 3` (counted from 0), `12 positions`, `40 other tokens`."""
    node: Node
    weight: float
    """Of several, the greatest in size."""


def io_end(io: IOEdge) -> str:
    """What is drawn at the other end: `token:...`, `position:...`, `logit:...`, or several of one channel's own."""
    prefix = {
        "position": "position",
        "several": f"several:{io.node.stack}.{io.node.index}",
        "unembed": "logit",
    }.get(io.kind, "token")
    return f"{prefix}:{io.token}"


STREAM = {"embed": "reads", "shared": "reads", "position": "reads", "several": "reads", "unembed": "writes"}
"""What the node of an `IOEdge` does with the residual stream, by the kind of the edge."""


class NodeFacts(NamedTuple):
    """What was measured about one node of a circuit."""

    mean: float
    """Its value when ablated: the mean over the training distribution."""
    effect: float
    """Rise of the circuit's loss, in the unit of its criterion, when this node alone is ablated too."""
    model_loss: float = math.nan
    """The whole model's loss, in that unit, when this node alone is ablated; nan: not measured."""


def check_parts(nodes: Iterable[Node], edges: Sequence[Edge], io_edges: Sequence[IOEdge]) -> None:
    """Raise ValueError for edges of a circuit that hang on no node, run where no weight does, or count twice."""
    kept = set(nodes)
    seen: dict[tuple[Node, Node], float] = {}
    for edge in edges:
        _check_edge(edge, kept)
        source, target, weight = edge
        if (source, target) in seen:
            raise ValueError(
                f"edges: {source} -> {target} is there twice, with weights {seen[source, target]} and {weight}; "
                "expected it once. Keep the one that the model has."
            )
        seen[source, target] = weight
    for io in io_edges:
        if io.kind not in STREAM or ROWS[io.node.site].stream != STREAM[io.kind]:
            raise ValueError(
                f"io_edges: got {io.kind!r} of token {io.token!r} at {io.node}; expected 'unembed' at a node "
                "that writes the residual stream, or 'embed', 'shared', 'position' or 'several' at one that reads it."
            )
        # The same token may be there twice: tokens may share a text.
        _check_weight("io_edges", f"{io.kind} of {io.token!r} at {io.node}", io.weight)


def _check_edge(edge: Edge, kept: set[Node]) -> None:
    for end in (edge.source, edge.target):
        if end not in kept:
            raise ValueError(f"edges: {edge.source} -> {edge.target}, but {end} is no node; add it to nodes.")
    sites, ends = (edge.source.site, edge.target.site), (edge.source, edge.target)
    if len({(end.layer, end.stack) for end in ends}) > 1 or sites not in {*BY_SITES, *PAIRS}:
        raise ValueError(
            f"edges: no weight runs from {edge.source} to {edge.target}; expected both in one layer, and one "
            f"of {[*BY_SITES, *PAIRS]}."
        )
    _check_weight("edges", f"{edge.source} -> {edge.target}", edge.weight)


def _check_weight(field: str, name: str, weight: float) -> None:
    if not math.isfinite(weight) or weight == 0:
        raise ValueError(f"{field}: {name} has weight {weight}; expected a finite number other than 0.")


def check_effects(effects: Iterable[Effect], nodes: Iterable[Node]) -> None:
    """Raise ValueError for effects of or on what is no node, that run backwards, or of no finite size."""
    kept = set(nodes)
    for effect in effects:
        source, target, size = effect
        for end in (source, target):
            if end is not None and end not in kept:
                raise ValueError(f"effects: one is at {end}, which is no node; add it to nodes.")
        if source is not None and target is not None and _place(source) >= _place(target):
            raise ValueError(f"effects: {source} does not come before {target}; expected a later target.")
        _check_weight("effects", f"{source or 'tokens'} -> {target or 'margin'}", size)


class AllBut(Sequence[Node]):
    """Every node there is, site after site, less some: a list that is not written out, however many there are."""

    def __init__(self, widths: Widths, gone: Iterable[Node] = ()) -> None:
        self.widths, self.gone = widths, frozenset(gone)

    def __len__(self) -> int:
        return sum(self.widths.values()) - len(self.gone)

    def __iter__(self) -> Iterator[Node]:
        every = (Node.of(site, i) for site, width in self.widths.items() for i in range(width))
        return (node for node in every if node not in self.gone) if self.gone else every

    def __contains__(self, node: object) -> bool:
        known = isinstance(node, Node) and 0 <= node.index < self.widths.get(node.at, 0)
        return known and node not in self.gone

    def __getitem__(self, place: Any) -> Any:
        return list(self)[place]


class NodesOf(Sequence[Node]):
    """The nodes of one site, each made when it is asked for."""

    def __init__(self, site: Site, width: int) -> None:
        self.site, self.width = site, width

    def __len__(self) -> int:
        return self.width

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [Node.of(self.site, i) for i in range(self.width)[place]]
        return Node.of(self.site, range(self.width)[place])


def all_nodes(widths: Widths) -> list[Node]:
    """Every node there is, site after site.

    Examples:
        >>> model = circuits.load("quotes-128").model
        >>> nodes = circuits.circuit.all_nodes(model.widths)
        >>> len(nodes), nodes[0]
        (1408, Node(layer=0, site='attn_in', index=0, stack='decoder'))
    """
    return list(AllBut(widths))


def node_masks(nodes: Iterable[Node], widths: Widths, like: Tensor) -> dict[Site, Shaped[Tensor, " width"]]:
    """A mask for each site, of the type and on the device of `like`: 1 (or True) at these nodes."""
    rest = isinstance(nodes, AllBut)
    masks = {site: like.new_full((width,), int(rest)) for site, width in widths.items()}
    places: dict[Site, list[int]] = defaultdict(list)
    for node in nodes.gone if isinstance(nodes, AllBut) else nodes:
        places[node.at].append(node.index)
    for site, own in places.items():
        masks[site][torch.tensor(own, device=like.device)] = int(not rest)
    return masks


def numbers_of(
    values: Shaped[Tensor, "*where width"], node: Node, width: int
) -> Shaped[Tensor, "*where own"]:
    """What belongs to a node among the numbers of its site: one, or a head's channels."""
    return values.unflatten(-1, (width, -1))[..., node.index, :]


def edge_masks(
    edges: Iterable[Edge], widths: Widths, like: Tensor
) -> dict[WeightAt, Shaped[Tensor, "d_in d_out"]]:
    """A mask for each weight matrix between these sites: 1 at these edges. Q-k pairs are not weights."""
    masks = {at: like.new_zeros(widths[at.source], widths[at.target]) for at in weights_among(widths)}
    for edge in edges:
        if not is_pair(edge):
            masks[weight_of(edge)][edge.source.index, edge.target.index] = 1
    return masks


def weight_of(edge: Edge) -> WeightAt:
    """The weight matrix that an edge is an entry of."""
    source = edge.source
    return WeightAt(source.layer, BY_SITES[source.site, edge.target.site], source.stack)


def is_pair(edge: Edge) -> bool:
    """Whether an edge is a product without a weight of its own: a q-k pair, or an expert and a neuron of it."""
    return (edge.source.site, edge.target.site) in PAIRS


def kind_of(edge: Edge) -> Literal["weight", "score", "gate"]:
    """What an edge is: an entry of a matrix, a q-k pair, or an expert's share that multiplies a neuron."""
    if not is_pair(edge):
        return "weight"
    return "gate" if (edge.source.site, edge.target.site) == GATED else "score"


def among(edges: Iterable[Edge], nodes: Iterable[Node]) -> list[Edge]:
    """The edges that run between two of the nodes."""
    kept = set(nodes)
    return [edge for edge in edges if edge.source in kept and edge.target in kept]


def without(node: Node, nodes: Sequence[Node], edges: Sequence[Edge]) -> tuple[list[Node], list[Edge]]:
    """Nodes and edges that are left when one node goes."""
    rest = [n for n in nodes if n != node]
    return rest, among(edges, rest)


def residual_links(nodes: Iterable[Node]) -> list[tuple[Node, Node]]:
    """Pairs of kept nodes that meet in one residual channel: one writes it, a later sublayer reads it."""
    on_stream = [node for node in sorted(nodes) if ROWS[node.site].stream]
    readers: dict[tuple[int, Stack], list[Node]] = defaultdict(list)
    for node in on_stream:
        if ROWS[node.site].stream == "reads":
            readers[node.index, read_stack(node.at)].append(node)
    return [
        (writer, reader)
        for writer in on_stream
        if ROWS[writer.site].stream == "writes"
        for reader in readers[writer.index, writer.stack]
        if writer.stack != reader.stack or _place(writer) < _place(reader)
    ]


def _place(node: Node) -> tuple[int, int]:
    return node.layer, ORDER.index(node.site)
