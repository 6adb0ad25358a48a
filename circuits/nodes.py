"""What a circuit is made of: sites, weights, nodes, edges, and the masks that keep some of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from jaxtyping import Shaped
from torch import Tensor

SiteName = Literal["attn_in", "attn_q", "attn_k", "attn_v", "attn_out", "mlp_in", "mlp_neuron", "mlp_out"]
SITES: tuple[SiteName, ...] = get_args(SiteName)
"""The eight sites of a layer, in the order in which the forward pass meets them."""

WEIGHTS: dict[str, tuple[SiteName, SiteName]] = {
    "W_Q": ("attn_in", "attn_q"),
    "W_K": ("attn_in", "attn_k"),
    "W_V": ("attn_in", "attn_v"),
    "W_O": ("attn_v", "attn_out"),
    "W_in": ("mlp_in", "mlp_neuron"),
    "W_out": ("mlp_neuron", "mlp_out"),
}
"""Each weight matrix of a layer, with the site it reads (its rows) and the site it writes (its columns)."""


Ablation = Literal["mean", "zero", "position", "resample"]
"""What is left out is replaced by: its mean over batch and positions; zero; its mean at that position; its value at
that position in another text, the next of a few in turn for each prompt."""


class Site(NamedTuple):
    """A named activation of one layer."""

    layer: int
    name: SiteName

    def __str__(self) -> str:
        return f"{self.layer}.{self.name}"


@dataclass(frozen=True, order=True, slots=True)
class Node:
    """One coordinate of one site."""

    layer: int
    site: SiteName
    index: int

    @property
    def at(self) -> Site:
        """The site that this node is a coordinate of."""
        return Site(self.layer, self.site)

    def __str__(self) -> str:
        return f"{self.layer}.{self.site}.{self.index}"

    @classmethod
    def parse(cls, text: str) -> "Node":
        """Read `layer.site.index` back. Raises ValueError on anything else."""
        layer, _, rest = text.partition(".")
        site, _, index = rest.partition(".")
        if site not in SITES or not layer.isdecimal() or not index.isdecimal():
            raise ValueError(f"node: got {text!r}; expected 'layer.site.index' with a site out of {SITES}.")
        return cls(int(layer), site, int(index))


class Edge(NamedTuple):
    """A nonzero weight between two kept nodes.

    A q-channel and the k-channel that it is multiplied with are an edge too (source k, target q); its weight
    is the 1/sqrt(d_head) that their product enters the attention score with.
    """

    source: Node
    target: Node
    weight: float


class IOEdge(NamedTuple):
    """A nonzero of the embedding or of the unembedding that ties a token of the task to a node."""

    kind: Literal["embed", "unembed"]
    token: str
    node: Node
    weight: float


class NodeFacts(NamedTuple):
    """What was measured about one node of a circuit."""

    mean: float
    """Its value when ablated: the mean over the training distribution."""
    effect: float
    """Rise of the circuit's task loss, in nats, when this node alone is ablated too."""


def all_sites(n_layers: int) -> list[Site]:
    """Every site of a model of `n_layers` layers, in forward order."""
    return [Site(layer, name) for layer in range(n_layers) for name in SITES]


def node_masks(
    nodes: Iterable[Node], widths: Mapping[SiteName, int], n_layers: int, like: Tensor
) -> dict[Site, Shaped[Tensor, " width"]]:
    """A mask for each site, of the type and on the device of `like`: 1 (or True) at these nodes."""
    masks = {site: like.new_zeros(widths[site.name]) for site in all_sites(n_layers)}
    for node in nodes:
        masks[node.at][node.index] = 1
    return masks


def edge_masks(
    edges: Iterable[Edge], widths: Mapping[SiteName, int], n_layers: int, like: Tensor
) -> dict[tuple[int, str], Shaped[Tensor, "d_in d_out"]]:
    """A mask for each weight matrix, keyed by (layer, weight name): 1 at these edges. Q-k pairs are not weights."""
    masks = {
        (layer, name): like.new_zeros(widths[source], widths[target])
        for layer in range(n_layers)
        for name, (source, target) in WEIGHTS.items()
    }
    by_sites = {sites: name for name, sites in WEIGHTS.items()}
    for edge in edges:
        name = by_sites.get((edge.source.site, edge.target.site))
        if name is not None:
            masks[edge.source.layer, name][edge.source.index, edge.target.index] = 1
    return masks


def residual_links(nodes: Iterable[Node]) -> list[tuple[Node, Node]]:
    """Pairs of kept nodes that meet in one residual channel: one writes it, a later sublayer reads it."""
    order = {"attn_in": 0, "attn_out": 1, "mlp_in": 2, "mlp_out": 3}
    on_stream = [node for node in sorted(nodes) if node.site in order]
    return [
        (writer, reader)
        for writer in on_stream
        for reader in on_stream
        if writer.site.endswith("_out")
        and reader.site.endswith("_in")
        and writer.index == reader.index
        and (writer.layer, order[writer.site]) < (reader.layer, order[reader.site])
    ]
