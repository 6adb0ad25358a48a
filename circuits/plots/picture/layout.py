"""Where each mark and each line of a circuit goes.

Coordinates are abstract: *along* runs with the forward pass, *across* at right angles to it. Each site is a
rank of a layered drawing (see `order`), with two things particular to circuits. The q, k and v nodes of one
head form one rigid body, a row each, so that a box can be drawn around them; and the nodes on one residual
channel are strung on one wire.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Literal, NamedTuple

from circuits.circuit.circuit import Circuit
from circuits.circuit.nodes import Effect, Node, io_end, kind_of, residual_links
from circuits.model.sites import ORDER, Stack
from circuits.plots.picture.order import Joint, order, straighten
from circuits.plots.picture.ranks import (
    HEAD_SITES,
    MARGIN,
    PROMPT,
    Key,
    first_order,
    head_of,
    in_head,
    rank_of,
    site_of,
)

Kind = Literal[
    "weight", "score", "gate", "residual", "embed", "shared", "position", "several", "unembed", "effect"
]
Point = tuple[float, float]


STEP = 1.0
"""Distance along between neighbouring columns; less inside a head, more between layers."""
HEAD_STEP = 0.62
LAYER_STEP = 1.22


class Link(NamedTuple):
    """A line to be drawn."""

    source: Key
    target: Key
    kind: Kind
    weight: float


class Via(NamedTuple):
    """The place where a long line passes a rank that it does not stop at."""

    line: int
    rank: int


Item = Node | str | Via
Spans = Mapping[Item, Point]
"""First and last column of the rank that an item stands in."""


class Column(NamedTuple):
    """A site (or the tokens, or the logits) and where it stands along the forward pass."""

    layer: int | None
    name: str
    along: float
    stack: Stack = "decoder"


class HeadBox(NamedTuple):
    """The rectangle around the q, k and v nodes of one head."""

    layer: int
    head: int
    along: Point
    across: Point
    is_cross: bool = False
    """Whether it is a head that looks at an encoder."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Positions of everything that is drawn."""

    place: Mapping[Key, Point]
    "(along, across) of each node, token and logit."
    lines: tuple[tuple[Link, tuple[Point, ...]], ...]
    "Each link with the points that it runs through, both ends included."
    columns: tuple[Column, ...]
    "Sites that hold nodes, in forward order."
    boxes: tuple[HeadBox, ...]
    "One for each head that holds nodes."
    n_crossings: int
    "Crossings that are left between lines of neighbouring ranks."

    @property
    def along(self) -> Point:
        """First and last column."""
        return (self.columns[0].along, self.columns[-1].along) if self.columns else (0.0, 0.0)

    @property
    def across(self) -> Point:
        """Least and greatest place at right angles to the forward pass."""
        values = [point[1] for _, line in self.lines for point in line] or [0.0]
        values += [point[1] for point in self.place.values()]
        values += [edge for box in self.boxes for edge in box.across]
        return min(values), max(values)


def circuit_layout(circuit: Circuit, *, d_head: int, logits: Sequence[str] = ()) -> Layout:
    """Lay a circuit out. `d_head` is the number of q (k, v) channels in a head.

    logits: texts of tokens whose logits are drawn even where no weight leads to them.
    """
    links = circuit_links(circuit)
    ends = [end for link in links for end in (link.source, link.target)]
    ends += [f"logit:{text}" for text in logits]
    ranks, chains = _ranks_and_chains(sorted({*circuit.nodes, *ends}, key=first_order), links)
    joints = _joints(links, chains)

    def body(item: Item) -> Hashable:
        return head_of(item, d_head) if in_head(item) else item

    ranks, n_crossings = order(ranks, joints, body)
    across = straighten(ranks, joints, body, lambda a, b: _gap(a, b, body(a) == body(b)))
    columns = _columns(ranks)
    along = {(column.stack, column.layer, column.name): column.along for column in columns}
    place = {
        key: (along[site_of(key)], across[key]) for rank in ranks for key in rank if not isinstance(key, Via)
    }
    spans = {item: span for rank in ranks for span in [_span(rank, place)] for item in rank}
    lanes = _lanes(links, place)
    return Layout(
        place=place,
        lines=tuple(
            (link, _run(link, chain, place, across, spans, lane))
            for link, chain, lane in zip(links, chains, lanes, strict=True)
        ),
        columns=columns,
        boxes=_boxes(circuit.nodes, place, spans, d_head),
        n_crossings=n_crossings,
    )


def circuit_links(circuit: Circuit) -> list[Link]:
    """Every line of the picture: weights, score pairs, residual wires, effects, and what ties text to nodes."""
    links = [Link(e.source, e.target, kind_of(e), e.weight) for e in circuit.edges]
    links += [Link(source, target, "residual", 1.0) for source, target in residual_wires(circuit.nodes)]
    for io in circuit.io_edges:
        source, target = (io.node, io_end(io)) if io.kind == "unembed" else (io_end(io), io.node)
        links.append(Link(source, target, io.kind, io.weight))
    return links + [_effect_link(effect) for effect in circuit.effects]


def _effect_link(effect: Effect) -> Link:
    """A measured effect, between nodes or from the prompt or to the margin."""
    source, target, size = effect
    return Link(PROMPT if source is None else source, MARGIN if target is None else target, "effect", size)


def residual_wires(nodes: Iterable[Node]) -> list[tuple[Node, Node]]:
    """Residual links without detours: each channel's nodes, from first writer to last reader, in a chain."""
    channels: dict[tuple[str, int], set[Node]] = defaultdict(set)
    for writer, reader in residual_links(nodes):
        channels[writer.stack, writer.index] |= {writer, reader}
    return [pair for at in sorted(channels) for pair in pairwise(sorted(channels[at], key=rank_of))]


def _ranks_and_chains(
    keys: Sequence[Key], links: Sequence[Link]
) -> tuple[list[list[Item]], list[list[Item]]]:
    """Items of each rank that holds any, and each link as a chain of items, one a rank."""
    steps = sorted({rank_of(key) for key in keys})
    number = {key: steps.index(rank_of(key)) for key in keys}
    ranks: list[list[Item]] = [[key for key in keys if number[key] == r] for r in range(len(steps))]
    chains: list[list[Item]] = []
    for line, link in enumerate(links):
        vias = [Via(line, r) for r in range(number[link.source] + 1, number[link.target])]
        chains.append([link.source, *vias, link.target])
        for via in vias:
            ranks[via.rank].append(via)
    return ranks, chains


def _joints(links: Sequence[Link], chains: Sequence[Sequence[Item]]) -> list[Joint[Item]]:
    """Stretches of line and the pull that straightens them: most on long lines, and on residual wires."""
    return [
        (a, b, (4.0 if link.kind == "residual" else 1.0) * (1, 2, 8)[isinstance(a, Via) + isinstance(b, Via)])
        for link, chain in zip(links, chains, strict=True)
        if link.kind != "score"  # both ends stand in one rank
        for a, b in pairwise(chain)
    ]


def _gap(a: Item, b: Item, same_body: bool) -> float:
    """Least distance across between two neighbours of a rank."""
    if same_body:
        return 1.0
    vias = isinstance(a, Via) + isinstance(b, Via)
    return (1.0, 0.6, 0.3)[vias] + 0.45 * (in_head(a) + in_head(b))


def _columns(ranks: Sequence[Sequence[Item]]) -> tuple[Column, ...]:
    columns: list[Column] = []
    for rank in ranks:
        keys = [item for item in rank if not isinstance(item, Via)]
        for stack, layer, name in sorted(
            {site_of(key) for key in keys}, key=lambda site: (*ORDER, *site).index(site[2])
        ):
            step = columns[-1].along + _step(columns[-1], stack, layer, name) if columns else 0.0
            columns.append(Column(layer, name, step, stack))
    return tuple(columns)


def _step(last: Column, stack: Stack, layer: int | None, name: str) -> float:
    if (last.stack, last.layer) != (stack, layer):
        return LAYER_STEP
    return HEAD_STEP if last.name in HEAD_SITES and name in HEAD_SITES else STEP


def _span(rank: Sequence[Item], place: Mapping[Key, Point]) -> Point:
    stands = [place[item][0] for item in rank if not isinstance(item, Via)]
    return min(stands), max(stands)


def _lanes(links: Sequence[Link], place: Mapping[Key, Point]) -> list[float]:
    """How far beside its target's row each line comes in, so that lines to one node stay apart."""
    arrivals: dict[Key, list[int]] = defaultdict(list)
    for i, link in enumerate(links):
        if link.kind != "score" and in_head(link.target):
            arrivals[link.target].append(i)
    lanes = [0.0] * len(links)
    for lines in arrivals.values():
        width = min(0.18, 0.7 / len(lines))
        for j, i in enumerate(sorted(lines, key=lambda i: place[links[i].source][1])):
            lanes[i] = width * (j - (len(lines) - 1) / 2)
    return lanes


def _run(
    link: Link,
    chain: Sequence[Item],
    place: Mapping[Key, Point],
    across: Mapping[Item, float],
    spans: Spans,
    lane: float,
) -> tuple[Point, ...]:
    """Points of a line: it keeps to its row inside a rank, and changes rows between ranks."""
    start, end = place[link.source], place[link.target]
    if link.kind == "score":
        return start, end
    first, *vias, last = chain
    points = [start, (spans[first][1], start[1])]
    for via in vias:
        points += [(stand, across[via]) for stand in spans[via]]
    if spans[last][0] < end[0]:
        points.append((spans[last][0], end[1] + lane))
    points.append(end)
    return tuple(point for point, _ in groupby(points))


def _boxes(
    nodes: Iterable[Node], place: Mapping[Key, Point], spans: Spans, d_head: int
) -> tuple[HeadBox, ...]:
    heads: dict[tuple[str, int, str, int], list[Node]] = defaultdict(list)
    for node in nodes:
        if in_head(node):
            heads[head_of(node, d_head)].append(node)
    rows = {head: [place[node][1] for node in members] for head, members in heads.items()}
    return tuple(
        HeadBox(
            head[1],
            head[3],
            along=spans[heads[head][0]],
            across=(min(rows[head]), max(rows[head])),
            is_cross=head[2] == "cross",
        )
        for head in sorted(heads)
    )
