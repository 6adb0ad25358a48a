"""The marks and lines of the circuit picture, as plotly traces."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

import plotly.graph_objects as go

from circuits.circuit.circuit import Circuit
from circuits.circuit.nodes import Node
from circuits.plots.picture.frame import Frame, curve
from circuits.plots.picture.labels import link_hover
from circuits.plots.picture.layout import Layout, Link, Point
from circuits.plots.picture.ranks import Key, is_input
from circuits.plots.style import INK, NEGATIVE, PAPER, POSITIVE, RESIDUAL, SCORE

THINNEST, WIDEST = 1.25, 7.0
"""Line widths in pixels at weight zero and at the greatest |weight|."""
WIDTH_STEP = 0.25
"""Widths are rounded to this, so that lines of one look share a trace and big circuits stay quick."""
CROWD = 90
"""Lines above which they are drawn translucent."""

COLOURS = {
    **{"positive": POSITIVE, "negative": NEGATIVE, "score": SCORE, "gate": SCORE, "residual": RESIDUAL},
    **{"supports": POSITIVE, "opposes": NEGATIVE},
}
FIXED_WIDTHS = {"score": 2.5, "gate": 2.5, "residual": 1.5}
"""Widths in pixels of lines that stand for no weight."""
DASHES = {"score": "2px,3px", "gate": "7px,4px", "supports": "5px,3px", "opposes": "5px,3px"}
"""Lines of products (a query times a key, a share times a neuron), and of what was measured and is no weight."""


def effect_of(circuit: Circuit, node: Node) -> float:
    """Ablation effect in the unit of the criterion's loss, nan where it was not measured."""
    facts = circuit.facts.get(node)
    return float(facts.effect) if facts else float("nan")


def mark_diameters(circuit: Circuit, frame: Frame) -> dict[Key, float]:
    """Of each node's mark, in pixels: area grows with the ablation effect; unmeasured ones are smallest."""
    largest = frame.largest_mark
    smallest = 0.4 * largest
    effects = {node: max(0.0, effect_of(circuit, node)) for node in circuit.nodes}
    effects = {node: 0.0 if effect != effect else effect for node, effect in effects.items()}
    top = max(effects.values(), default=0.0) or 1.0
    return {node: sqrt(smallest**2 + (largest**2 - smallest**2) * e / top) for node, e in effects.items()}


def line_style(look: str, width: float) -> dict[str, Any]:
    """Plotly's settings of a line; those without a weight have widths of their own."""
    return {
        "color": COLOURS[look],
        "width": FIXED_WIDTHS.get(look, width),
        "dash": DASHES.get(look, "solid"),
        "simplify": False,
    }


def look_of(link: Link) -> str:
    """`positive`, `negative`, `score`, `gate`, `residual`, or of an effect `supports` or `opposes`."""
    if link.kind in FIXED_WIDTHS:
        return link.kind
    if link.kind == "effect":
        return "supports" if link.weight >= 0 else "opposes"
    return "positive" if link.weight >= 0 else "negative"


def line_widths(links: Sequence[Link]) -> list[float]:
    """Width of each line in pixels, rising with |weight|; fixed for those without a weight.

    Weights between nodes are scaled by their own greatest, those at tokens and logits by theirs.
    """
    top = {True: 0.0, False: 0.0}
    for link in links:
        if link.kind not in FIXED_WIDTHS:
            top[link.kind == "weight"] = max(top[link.kind == "weight"], abs(link.weight))
    widths = []
    for link in links:
        if link.kind in FIXED_WIDTHS:
            widths.append(FIXED_WIDTHS[link.kind])
        else:
            exact = THINNEST + (WIDEST - THINNEST) * abs(link.weight) / (top[link.kind == "weight"] or 1.0)
            widths.append(round(exact / WIDTH_STEP) * WIDTH_STEP)
    return widths


def line_traces(layout: Layout, frame: Frame) -> list[go.Scatter]:
    """One trace for all lines of one look and width; residual wires lowest, wide lines below narrow ones."""
    looks: dict[tuple[str, float], list[tuple[Point, ...]]] = defaultdict(list)
    widths = line_widths([link for link, _ in layout.lines])
    for (link, line), width in zip(layout.lines, widths, strict=True):
        looks[look_of(link), width].append(line)
    ranked = sorted(looks.items(), key=lambda item: (item[0][0] != "residual", -item[0][1], item[0][0]))
    opacity = 0.9 if len(layout.lines) <= CROWD else 0.5
    return [_line_trace(look, width, lines, frame, opacity) for (look, width), lines in ranked]


def _line_trace(
    look: str, width: float, lines: Sequence[Sequence[Point]], frame: Frame, opacity: float
) -> go.Scatter:
    x: list[float | None] = []
    y: list[float | None] = []
    for line in lines:
        points = [frame.xy(*point) for point in curve(line)]
        x += [*(point[0] for point in points), None]
        y += [*(point[1] for point in points), None]
    return go.Scatter(
        x=x,
        y=y,
        mode="lines",
        name=look,
        legendgroup=look,
        showlegend=False,
        line=line_style(look, width),
        opacity=opacity,
        hoverinfo="skip",
    )


def line_hovers(layout: Layout, frame: Frame) -> go.Scatter:
    """Invisible points on every line for the pointer to find."""
    spots, texts, colours = [], [], []
    for link, line in layout.lines:
        points = curve(line)
        for place in (points[len(points) // 4], _middle(points), points[-1 - len(points) // 4]):
            spots.append(frame.xy(*place))
            texts.append(link_hover(link))
            colours.append(COLOURS[look_of(link)])
    return go.Scatter(
        x=[x for x, _ in spots],
        y=[y for _, y in spots],
        mode="markers",
        marker={"size": 14, "opacity": 0},
        hovertext=texts,
        hoverinfo="text",
        hoverlabel={"bordercolor": colours},
        name="lines",
        showlegend=False,
    )


def _middle(points: Sequence[Point]) -> Point:
    a, b = points[(len(points) - 1) // 2], points[len(points) // 2]
    return (a[0] + b[0]) / 2, (a[1] + b[1]) / 2


def token_traces(layout: Layout, frame: Frame, hovers: Mapping[Key, str]) -> list[go.Scatter]:
    """Small dots where tokens and logits are tied in; their texts are annotations."""
    traces = []
    for name, goes_in in (("tokens", True), ("logits", False)):
        keys = [key for key in layout.place if isinstance(key, str) and is_input(key) == goes_in]
        places = [frame.xy(*layout.place[key]) for key in keys]
        traces.append(
            go.Scatter(
                x=[x for x, _ in places],
                y=[y for _, y in places],
                mode="markers",
                marker={"size": 7, "color": INK, "symbol": "square"},
                customdata=keys,
                hovertext=[hovers[key] for key in keys],
                hoverinfo="text",
                name=name,
                showlegend=False,
            )
        )
    return traces


def node_trace(
    circuit: Circuit, layout: Layout, frame: Frame, hovers: Mapping[Key, str], diameters: Mapping[Key, float]
) -> go.Scatter:
    """One mark a node; hollow where no effect was measured."""
    places = [frame.xy(*layout.place[node]) for node in circuit.nodes]
    is_measured = [effect_of(circuit, node) == effect_of(circuit, node) for node in circuit.nodes]
    return go.Scatter(
        x=[x for x, _ in places],
        y=[y for _, y in places],
        mode="markers",
        marker={
            "size": [diameters[node] for node in circuit.nodes],
            "color": [INK if measured else PAPER for measured in is_measured],
            "line": {"width": 1.5, "color": [PAPER if measured else INK for measured in is_measured]},
            "opacity": 1,
        },
        customdata=[str(node) for node in circuit.nodes],
        hovertext=[hovers[node] for node in circuit.nodes],
        hoverinfo="text",
        name="nodes",
        showlegend=False,
    )
