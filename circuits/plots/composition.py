"""Composition between heads: matrices with significance, the graph of heads, and maps of dynamic heads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch

from circuits.composition import Composition, CompositionEdge, CompositionMaps, Writer
from circuits.plots import plot
from circuits.plots.grids import heat, limit_of, panels, token_labels
from circuits.plots.picture.order import Joint, order, straighten
from circuits.plots.shown import Picture
from circuits.plots.style import FAINT, INK, NEGATIVE, PAPER, POSITIVE, SCORE, base_layout, escaped, number

__all__ = ["composition_figure", "composition_maps_figure", "head_graph_figure"]

PORT_COLOURS = {"Q": NEGATIVE, "K": POSITIVE, "V": SCORE, "in": FAINT, "gate": FAINT}
CHANCE_EDGES = 5
"""Pairs that a graph without a significant edge shows all the same."""
CHANCE = {"line": {"dash": "dot", "width": 1.5}, "opacity": 0.6}
"""How they are drawn."""
MAX_EDGES = 24
"""Edges between heads that a map of a prompt shows, the strongest ones."""


@plot.register
def composition_figure(
    composition: Composition, *, rate: float = 0.05, title: str = "Composition"
) -> go.Figure:
    """z-scores of every pair, a panel a port; circles mark pairs that are significant at this discovery rate.

    Writers are rows, readers columns; heads only, unless there are no more than 40 neurons.

    Examples:
        >>> found = circuits.composition.composition(circuits.handmade.induction().model, n_null=50, max_null=50)
        >>> figure = circuits.plots.composition_figure(found, rate=0.1)
    """
    ports = [p for p in PORT_COLOURS if any(reader.port == p for reader in composition.readers)]
    writers = [i for i in range(len(composition.writers)) if bool(composition.later[i].any())]
    z = composition.z
    groups: list[list[go.Heatmap | go.Scatter]] = []
    columns, rows, limit = [], [], limit_of(z[composition.later].numpy())
    limit = min(limit, 10.0)
    for n, port in enumerate(ports):
        readers = [
            j for j, reader in enumerate(composition.readers)
            if reader.port == port and bool(composition.later[writers, j].any())
        ]  # fmt: skip
        later = composition.later[writers][:, readers].numpy()
        grid = np.where(later, z[writers][:, readers].numpy(), np.nan)
        columns.append([str(composition.readers[j].part) for j in readers])
        rows.append([str(composition.writers[i]) for i in writers])
        hover = [[_told(composition, i, j) for j in readers] for i in writers]
        trace = heat(
            grid, columns[-1], rows[-1], limit=limit, diverging=True, hover=hover,
            bar="z" if n == 0 else None,
        )  # fmt: skip
        found = (composition.q[writers][:, readers].numpy() <= rate) & later
        groups.append([trace, _marks(found)])
    n_found, n_pairs = len(composition.significant(rate)), int(composition.later.sum())
    said = f"{n_found} of {n_pairs} pairs significant at {rate:.0%} false discovery · null model: {composition.null}"
    figure = panels(
        groups, columns, rows, [f"{port}-composition" if port in "QKV" else port for port in ports],
        title=title, subtitle=said, per_row=len(ports), x_title="reader", y_title="writer",
        height=round(200 + min(700, max(200, 24 * len(writers)))),
    )  # fmt: skip
    return figure


def head_graph_figure(
    composition: Composition,
    *,
    rate: float = 0.05,
    top: int = 60,
    all_heads: bool | None = None,
    title: str = "Heads that compose",
) -> go.Figure:
    """Heads by layer, and the significant edges between them: width is score over null, colour is the port.

    At most `top` edges, the most significant. all_heads: show heads without an edge too (default: up to 64). Where no
    edge is significant, the strongest few are dotted: the null model gives about as strong ones.

    Examples:
        >>> found = circuits.composition.composition(circuits.handmade.induction().model, n_null=50, max_null=50)
        >>> figure = circuits.plots.head_graph_figure(found)
    """
    found = composition.significant(rate)[:top]
    edges = found or composition.edges[:CHANCE_EDGES]
    parts = sorted({part for edge in edges for part in (edge.writer, edge.reader.part)})
    heads = [writer for writer in composition.writers if writer.kind != "neuron"]
    if all_heads or (all_heads is None and len(heads) <= 64):
        parts = sorted({*parts, *heads})
    layers = sorted({_rank(part) for part in parts})
    ranks = [[str(part) for part in parts if _rank(part) == layer] for layer in layers]
    two_stacks = any(part.stack == "encoder" for part in composition.writers)
    place = _places(ranks, edges)
    figure = Picture(
        layout=base_layout(title=title, height=round(210 + 56 * max(map(len, ranks), default=1)))
    )
    for edge in edges:
        figure.add_trace(_edge(edge, place) if found else _edge(edge, place).update(CHANCE))
    for port in dict.fromkeys(edge.reader.port for edge in edges):
        figure.add_trace(_legend(port))
    busy = {str(part) for edge in edges for part in (edge.writer, edge.reader.part)}
    figure.add_trace(_heads(place, busy))
    for x, layer in enumerate(layers):
        figure.add_annotation(
            text=_named(layer, two_stacks),
            x=x,
            y=1.0,
            yref="paper",
            yanchor="bottom",
            showarrow=False,
            font={"color": FAINT},
        )
    said = f"{_counted(found, edges, rate)} · null model: {composition.null}"
    figure.update_layout(base_layout(title=title, subtitle=said, height=figure.layout.height))
    hidden = {"visible": False}
    figure.update_layout(
        xaxis={**hidden, "range": [-0.35, len(layers) - 0.65]},
        yaxis=hidden,
        margin={"l": 30, "r": 30, "t": 116, "b": 56},
        legend={"orientation": "h", "x": 0, "y": -0.02, "yanchor": "top", "itemsizing": "constant"},
    )
    return figure


def _counted(found: Sequence[CompositionEdge], drawn: Sequence[CompositionEdge], rate: float) -> str:
    if not found:
        return f"no edge at {rate:.0%} false discovery; dotted: the {len(drawn)} strongest"
    counted = "1 edge" if len(found) == 1 else f"{len(found)} edges"
    return f"{counted} at {rate:.0%} false discovery · width: score over null"


def composition_maps_figure(
    maps: CompositionMaps, tokens: Sequence[str], *, row: int = 0, title: str | None = None
) -> go.Figure:
    """The maps of one prompt: their mean between heads, and the strongest edges at every query token.

    Shown without the identity: 0 is plain attention. Means are over the keys that a query sees. Raises ValueError
    when tokens and maps differ in length.

    Examples:
        >>> options = {"attention": "compose", "compose": "full"}
        >>> shape = circuits.ModelConfig(d_vocab=9, d_model=16, n_heads=2, d_head=4, **options)
        >>> model = circuits.SparseTransformer(shape)
        >>> maps = circuits.composition.composition_maps(model, torch.zeros(1, 2).long())
        >>> figure = circuits.plots.composition_maps_figure(maps, ["a", "b"])
    """
    n_pos, n_heads = maps.pre.shape[1], maps.pre.shape[-1]
    if len(tokens) != n_pos:
        raise ValueError(f"tokens: got {len(tokens)}; expected one for each of {n_pos} positions.")
    seen = torch.ones(n_pos, n_pos).tril()
    seen = (seen / seen.sum(1, keepdim=True))[:, :, None, None]
    eye = torch.eye(n_heads)
    added = [((m[row].cpu() - eye) * seen).sum(1) for m in (maps.pre, maps.post)]  # [query, from, to]
    heads, labels = [str(h) for h in range(n_heads)], token_labels(tokens)
    strength = sum(m.abs().mean(0) for m in added).flatten()  # type: ignore[union-attr]
    chosen = sorted(strength.topk(min(MAX_EDGES, n_heads**2)).indices.tolist())
    names = [f"{i // n_heads} → {i % n_heads}" for i in chosen]
    grids = [grid for m in added for grid in (m.mean(0).numpy(), m.flatten(1)[:, chosen].T.numpy())]
    limit = limit_of(*grids)
    columns, rows = [heads, labels] * 2, [heads, names] * 2
    traces = [
        [heat(grid, columns[i], rows[i], limit=limit, diverging=True, hover=_cells(grid, columns[i], rows[i]),
              bar="added to identity" if i == 0 else None)]
        for i, grid in enumerate(grids)
    ]  # fmt: skip
    return panels(
        traces, columns, rows,
        ["before softmax: mean", "by query token", "after softmax: mean", "by query token"],
        title=title or f"Composition maps of layer {maps.layer}",
        subtitle="what is added to each head's own value · means: from the row's head to the column's",
        per_row=2, height=round(240 + 2 * max(200, 19 * len(names))), widths=[1.0, 2.2],
    )  # fmt: skip


def _told(composition: Composition, i: int, j: int) -> str:
    values = (composition.scores, composition.null_mean, composition.z, composition.p, composition.q)
    score, null, z, p, q = (float(x[i, j]) for x in values)
    return (
        f"{composition.writers[i]} → {composition.readers[j]}<br>score {score:.3f} (null {null:.3f})<br>"
        f"z {number(z)}, p {p:.2g}, q {q:.2g}"
    )


def _marks(found: np.ndarray) -> go.Scatter:
    rows, columns = np.nonzero(found)
    return go.Scatter(
        x=columns, y=rows, mode="markers", hoverinfo="skip",
        marker={"symbol": "circle", "size": 12, "color": PAPER, "line": {"width": 2.5, "color": INK}},
    )  # fmt: skip


def _rank(part: Writer) -> tuple[bool, int, bool]:
    """The encoder's layers first; heads that look at it after the others of their layer."""
    return part.stack == "decoder", part.layer, part.kind == "cross"


def _named(rank: tuple[bool, int, bool], two_stacks: bool) -> str:
    in_decoder, layer, is_cross = rank
    stack = ("decoder " if in_decoder else "encoder ") if two_stacks else "layer "
    return f"{stack}{layer}{', to encoder' if is_cross else ''}"


def _places(ranks: list[list[str]], edges: Sequence[CompositionEdge]) -> dict[str, tuple[float, float]]:
    """Layer across, heads down in an order with few crossings; edges over several layers are left straight."""
    layer_of = {name: x for x, rank in enumerate(ranks) for name in rank}
    joints: list[Joint[str]] = [
        (str(e.writer), str(e.reader.part), 1.0)
        for e in edges
        if layer_of[str(e.reader.part)] - layer_of[str(e.writer)] == 1
    ]
    ordered, _ = order(ranks, joints, lambda name: name)
    across = straighten(ordered, joints, lambda name: name, _unit_gap)
    return {name: (float(x), -across[name]) for x, rank in enumerate(ordered) for name in rank}


def _unit_gap(a: str, b: str) -> float:
    return 1.0


def _edge(edge: CompositionEdge, place: dict[str, tuple[float, float]]) -> go.Scatter:
    (x0, y0), (x1, y1) = place[str(edge.writer)], place[str(edge.reader.part)]
    t = np.linspace(0, 1, 24)
    smooth = t * t * (3 - 2 * t)
    ratio = edge.score / edge.null_mean if edge.null_mean > 0 else 10.0
    said = f"{escaped(str(edge))}<br>score {edge.score:.3f}, {ratio:.1f} x null, q {edge.q:.2g}"
    return go.Scatter(
        x=x0 + (x1 - x0) * t, y=y0 + (y1 - y0) * smooth, mode="lines", text=[said] * len(t), hoverinfo="text",
        line={"width": min(12.0, max(1.5, 2 * ratio)), "color": PORT_COLOURS[edge.reader.port]},
        opacity=0.8, showlegend=False,
    )  # fmt: skip


def _legend(port: str) -> go.Scatter:
    name = f"{port}-composition" if port in "QKV" else f"neuron {port}"
    return go.Scatter(
        x=[None], y=[None], mode="lines", name=name, line={"width": 5, "color": PORT_COLOURS[port]}
    )


def _heads(place: dict[str, tuple[float, float]], busy: set[str]) -> go.Scatter:
    names = list(place)
    style: dict[str, Any] = {
        "size": 34,
        "color": PAPER,
        "line": {"width": 2, "color": [INK if name in busy else "#c8ced6" for name in names]},
    }
    return go.Scatter(
        x=[place[name][0] for name in names], y=[place[name][1] for name in names], text=names,
        mode="markers+text", marker=style, hoverinfo="skip", showlegend=False,
        textfont={"size": 10, "color": [INK if name in busy else FAINT for name in names]},
    )  # fmt: skip


def _cells(grid: np.ndarray, columns: Sequence[str], rows: Sequence[str]) -> list[list[str]]:
    return [
        [f"{escaped(r)} · {escaped(c)}<br>{number(float(v))}" for c, v in zip(columns, line, strict=True)]
        for r, line in zip(rows, grid, strict=True)
    ]
