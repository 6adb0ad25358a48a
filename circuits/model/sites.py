"""The one table of sites and weights: what a layer's activations and matrices are called, and where they are found.

Whatever depends on which sites there are reads it: the model, masks, circuits, plots, decompiled source. Adding a
site takes a row here and its hook point in the model.
"""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

Stack = Literal["decoder", "encoder"]
"""The stack of layers that a site belongs to; the decoder is meant where none is named."""
STACKS: tuple[Stack, ...] = get_args(Stack)
OwnName = Literal["attn_in", "attn_q", "attn_k", "attn_v", "attn_out", "mlp_in", "mlp_neuron", "mlp_out"]
CrossName = Literal["cross_in", "cross_memory", "cross_q", "cross_k", "cross_v", "cross_out"]
RoutedName = Literal["router"]
HeadName = Literal["attn_head"]
FactorName = Literal["factor_q", "factor_k", "factor_v", "factor_o", "factor_in", "factor_out"]
SiteName = Literal[OwnName, CrossName, RoutedName, HeadName, FactorName]


class SiteRow(NamedTuple):
    """What is true of a site in every layer."""

    name: SiteName
    width: Literal["d_model", "d_attn", "d_mlp", "experts", "n_heads", "factor_attn", "factor_mlp"]
    """The property of `ModelConfig` that says how many coordinates it has."""
    hook: str
    """Its hook point, inside its layer."""
    stream: Literal["reads", "writes"] | None
    """Whether its coordinates are channels of the residual stream, read from it or written to it."""
    per_head: bool
    """Whether its coordinates are the channels of heads, head after head."""
    label: str
    """What it is called in pictures."""
    like: SiteName | None = None
    """For a site of cross-attention, the site of self-attention whose AbsTopK it shares."""
    reads: Stack | None = None
    """The stack whose residual stream it reads, where that is not its own."""


class WeightRow(NamedTuple):
    """What is true of a weight matrix in every layer."""

    source: SiteName
    """The site that it reads: its rows."""
    target: SiteName
    """The site that it writes: its columns."""
    path: str
    """The affine map that holds it, inside its layer."""
    unit_axis: Literal[0, 1]
    """The axis of the units that keep a minimum of weights each: columns (q, k, v, neurons), rows of W_O and W_out."""
    whole: str | None = None
    """Of a factor, the weight that it is one of the two factors of, and stands in the place of."""

    @property
    def sites(self) -> tuple[SiteName, SiteName]:
        """Source and target."""
        return self.source, self.target


TABLE: tuple[SiteRow, ...] = (
    SiteRow("attn_in", "d_model", "attn.hook_in", "reads", False, "in"),
    SiteRow("attn_q", "d_attn", "attn.hook_q", None, True, "q"),
    SiteRow("attn_k", "d_attn", "attn.hook_k", None, True, "k"),
    SiteRow("attn_v", "d_attn", "attn.hook_v", None, True, "v"),
    SiteRow("attn_out", "d_model", "hook_attn_out", "writes", False, "out"),
    SiteRow("mlp_in", "d_model", "mlp.hook_in", "reads", False, "mlp in"),
    SiteRow("mlp_neuron", "d_mlp", "mlp.hook_post", None, False, "neuron"),
    SiteRow("mlp_out", "d_model", "hook_mlp_out", "writes", False, "mlp out"),
)
"""The sites of a layer, in the order in which the forward pass meets them."""
CROSS_TABLE: tuple[SiteRow, ...] = (
    SiteRow("cross_in", "d_model", "cross.hook_in", "reads", False, "cross in", "attn_in"),
    SiteRow("cross_memory", "d_model", "cross.hook_memory", "reads", False, "memory", "attn_in", "encoder"),
    SiteRow("cross_q", "d_attn", "cross.hook_q", None, True, "cross q", "attn_q"),
    SiteRow("cross_k", "d_attn", "cross.hook_k", None, True, "cross k", "attn_k"),
    SiteRow("cross_v", "d_attn", "cross.hook_v", None, True, "cross v", "attn_v"),
    SiteRow("cross_out", "d_model", "hook_cross_out", "writes", False, "cross out", "attn_out"),
)
"""The further sites of a layer that looks at an encoder, between attention and MLP. `cross_memory`, `cross_k` and
`cross_v` have the positions of the source."""
OF_SOURCE: tuple[SiteName, ...] = ("cross_memory", "cross_k", "cross_v")
"""Sites of the decoder whose values are those of source positions."""
ROUTED_TABLE: tuple[SiteRow, ...] = (
    SiteRow("router", "experts", "mlp.router.hook_share", None, False, "expert"),
)
"""The further site of a layer with experts, before its neurons: the share of each expert, 0 where it is not chosen."""
HEAD_TABLE: tuple[SiteRow, ...] = (SiteRow("attn_head", "n_heads", "attn.hook_z", None, False, "head"),)
"""The further site of a wrapped model: its node is a whole head, all channels of what it carries over at once."""
FACTOR_TABLE: tuple[SiteRow, ...] = (
    SiteRow("factor_q", "factor_attn", "attn.q.hook_inner", None, False, "q factor"),
    SiteRow("factor_k", "factor_attn", "attn.k.hook_inner", None, False, "k factor"),
    SiteRow("factor_v", "factor_attn", "attn.v.hook_inner", None, False, "v factor"),
    SiteRow("factor_o", "factor_attn", "attn.o.hook_inner", None, False, "o factor"),
    SiteRow("factor_in", "factor_mlp", "mlp.up.hook_inner", None, False, "in factor"),
    SiteRow("factor_out", "factor_mlp", "mlp.down.hook_inner", None, False, "out factor"),
)
"""The further sites of a layer whose weight matrices are products of two factors: the coordinates between the two."""
WHOLE_HEADS: tuple[SiteName, ...] = tuple(row.name for row in HEAD_TABLE)
"""Sites whose nodes are heads; their values have a number for each channel."""
SITES: tuple[SiteName, ...] = tuple(row.name for row in TABLE)
"""Names of the sites of every layer, in forward order."""


def layer_rows(
    *, crossed: bool = False, routed: bool = False, headed: bool = False, factored: bool = False
) -> tuple[SiteRow, ...]:
    """The sites of a layer in forward order.

    crossed: it looks at an encoder; routed: its MLP has experts; headed: whole heads are nodes of a site of their own;
    factored: its weight matrices are products of two factors.
    """
    inner = FACTOR_TABLE if factored else ()
    before: dict[SiteName, tuple[SiteRow, ...]] = {
        "attn_q": inner[:3],
        "attn_out": (*(HEAD_TABLE if headed else ()), *inner[3:4]),
        "mlp_in": CROSS_TABLE if crossed else (),
        "mlp_neuron": (*(ROUTED_TABLE if routed else ()), *inner[4:5]),
        "mlp_out": inner[5:],
    }
    return tuple(found for row in TABLE for found in (*before.get(row.name, ()), row))


ROWS: dict[SiteName, SiteRow] = {
    row.name: row for row in layer_rows(crossed=True, routed=True, headed=True, factored=True)
}
"""Every site by name, in forward order."""
ORDER: tuple[SiteName, ...] = tuple(ROWS)
"""Names of all sites, in forward order."""
WEIGHTS: dict[str, WeightRow] = {
    "W_Q": WeightRow("attn_in", "attn_q", "attn.q", 1),
    "W_K": WeightRow("attn_in", "attn_k", "attn.k", 1),
    "W_V": WeightRow("attn_in", "attn_v", "attn.v", 1),
    "W_O": WeightRow("attn_v", "attn_out", "attn.o", 0),
    "W_in": WeightRow("mlp_in", "mlp_neuron", "mlp.up", 1),
    "W_out": WeightRow("mlp_neuron", "mlp_out", "mlp.down", 0),
}
"""The weight matrices of a layer, by name, in forward order."""
CROSS_WEIGHTS: dict[str, WeightRow] = {
    "W_CQ": WeightRow("cross_in", "cross_q", "cross.q", 1),
    "W_CK": WeightRow("cross_memory", "cross_k", "cross.k", 1),
    "W_CV": WeightRow("cross_memory", "cross_v", "cross.v", 1),
    "W_CO": WeightRow("cross_v", "cross_out", "cross.o", 0),
}
"""The further weight matrices of a layer that looks at an encoder."""
ROUTED_WEIGHTS: dict[str, WeightRow] = {"W_R": WeightRow("mlp_in", "router", "mlp.router.map", 1)}
"""The further weight matrix of a layer with experts: what the router reads."""
FACTOR_WEIGHTS: dict[str, WeightRow] = {
    f"{name}_{factor}": row
    for (name, whole), inner in zip(WEIGHTS.items(), FACTOR_TABLE, strict=True)
    for factor, row in (
        ("A", WeightRow(whole.source, inner.name, f"{whole.path}.first", 1, name)),
        ("B", WeightRow(inner.name, whole.target, f"{whole.path}.second", 0, name)),
    )
}
"""The two factors of each weight matrix of a factored layer, `W_Q = W_Q_A W_Q_B`; units are the inner coordinates."""
ALL_WEIGHTS: dict[str, WeightRow] = {**WEIGHTS, **CROSS_WEIGHTS, **ROUTED_WEIGHTS, **FACTOR_WEIGHTS}
"""Every weight matrix by name."""
BY_SITES: dict[tuple[SiteName, SiteName], str] = {row.sites: name for name, row in ALL_WEIGHTS.items()}
"""The name of the weight that leads from one site to another."""
SCORE: tuple[SiteName, SiteName] = ("attn_k", "attn_q")
"""Source and target of a q-k pair: a product, not a weight."""
SCORES: tuple[tuple[SiteName, SiteName], ...] = (SCORE, ("cross_k", "cross_q"))
"""The same, of self-attention and of cross-attention."""
GATED: tuple[SiteName, SiteName] = ("router", "mlp_neuron")
"""Source and target of an expert and one of its neurons, which is multiplied by its share: a product, not a weight."""
PAIRS: tuple[tuple[SiteName, SiteName], ...] = (*SCORES, GATED)
"""Sources and targets of all products that are edges without a weight of their own."""


class Site(NamedTuple):
    """A named activation of one layer."""

    layer: int
    name: SiteName
    stack: Stack = "decoder"

    @property
    def row(self) -> SiteRow:
        """Its row of the table."""
        return ROWS[self.name]

    def __str__(self) -> str:
        return f"{prefix(self.stack)}{self.layer}.{self.name}"

    @classmethod
    def parse(cls, text: str) -> "Site":
        """The inverse of `str`. Raises ValueError on anything else."""
        stack, (layer, name) = split_stack(text, 2)
        if name not in ROWS or not layer.isdecimal():
            raise ValueError(f"site: got {text!r}; expected 'layer.site' with a site out of {ORDER}.")
        return cls(int(layer), ROWS[name].name, stack)


class WeightAt(NamedTuple):
    """A weight matrix of one layer."""

    layer: int
    name: str
    stack: Stack = "decoder"

    @property
    def source(self) -> Site:
        """The site that it reads."""
        return Site(self.layer, ALL_WEIGHTS[self.name].source, self.stack)

    @property
    def target(self) -> Site:
        """The site that it writes."""
        return Site(self.layer, ALL_WEIGHTS[self.name].target, self.stack)

    def __str__(self) -> str:
        return f"{prefix(self.stack)}{self.layer}.{self.name}"


def all_sites(
    n_layers: int,
    stack: Stack = "decoder",
    *,
    crossed: bool = False,
    routed: bool = False,
    headed: bool = False,
    factored: bool = False,
) -> list[Site]:
    """Every site of a stack of `n_layers` layers, in forward order; the options are those of `layer_rows`.

    Examples:
        >>> [site.name for site in circuits.model.all_sites(1)][:4]
        ['attn_in', 'attn_q', 'attn_k', 'attn_v']
    """
    rows = layer_rows(crossed=crossed, routed=routed, headed=headed, factored=factored)
    return [Site(layer, row.name, stack) for layer in range(n_layers) for row in rows]


def layer_weights(
    *, crossed: bool = False, routed: bool = False, factored: bool = False
) -> dict[str, WeightRow]:
    """The weight matrices of a layer, by name; crossed, routed, factored: as in `layer_rows`."""
    sites = {row.name for row in layer_rows(crossed=crossed, routed=routed, factored=factored)}
    names = [name for name, row in ALL_WEIGHTS.items() if sites.issuperset(row.sites)]
    return {name: ALL_WEIGHTS[name] for name in _without_wholes(names)}


def weights_among(sites: Iterable[Site]) -> list[WeightAt]:
    """Every weight matrix that leads from one of the sites to another, layer by layer; two factors for their product.

    Of a factored layer all of whose inner coordinates are left out, the product itself, which no map holds: what has
    the model at hand leaves it out (`SparseTransformer.weights_among`).
    """
    there = set(sites)
    found = []
    for stack, layer in dict.fromkeys((site.stack, site.layer) for site in sites):
        every = (WeightAt(layer, name, stack) for name in ALL_WEIGHTS)
        names = [at.name for at in every if at.source in there and at.target in there]
        found += [WeightAt(layer, name, stack) for name in _without_wholes(names)]
    return found


def _without_wholes(names: list[str]) -> list[str]:
    """Names of weights without those whose factors are among them."""
    wholes = {ALL_WEIGHTS[name].whole for name in names}
    return [name for name in names if name not in wholes]


def read_stack(site: Site) -> Stack:
    """The stack whose residual stream a site reads, or would: its own, but the encoder's for `cross_memory`."""
    return site.row.reads or site.stack


def prefix(stack: Stack) -> str:
    """What stands before the layer in a name: nothing for the decoder, so that names say no more than they must."""
    return "" if stack == "decoder" else f"{stack}."


def split_stack(text: str, parts: int) -> tuple[Stack, list[Any]]:
    """The stack and the dotted parts of a name, as many as asked for (the missing ones empty)."""
    first, _, rest = text.partition(".")
    named = [stack for stack in STACKS if stack == first]
    split = (rest if named else text).split(".", parts - 1)
    return named[0] if named else "decoder", [*split, *[""] * (parts - len(split))]
