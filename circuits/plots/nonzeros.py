"""Where a model has its weights: how dense each matrix is, and how many nonzeros each head got."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import plotly.graph_objects as go
from torch import Tensor

from circuits.model.kinds import of_ours
from circuits.model.sites import ALL_WEIGHTS, ROWS
from circuits.model.transformer import SparseTransformer
from circuits.plots import plot
from circuits.plots.grids import heat, limit_of
from circuits.plots.shown import Picture
from circuits.plots.style import BAND, BOX, FAINT, INK, POSITIVE, RESIDUAL, base_layout

__all__ = ["nonzeros_figure"]

ROW_PX, CROWDED_PX, CROWD = 27, 17, 40
"""Height of a matrix in pixels, and its height where there are more of them than `CROWD`."""
LEFT_PX, RIGHT_PX = 124, 28
BARS, HEADS = (0.0, 0.42), (0.5, 1.0)
"""The two panels, as shares of the width between the margins."""
LEAST_WIDTH = 640
DIGIT_PX = 6.5
"""Width of a digit in the cell of a head; cells that are too narrow for their numbers are left without."""


class _Row(NamedTuple):
    """One matrix: its layer (none: embeddings), its name there, and its nonzeros."""

    layer: str
    name: str
    n_nonzero: int
    n_entries: int
    heads: tuple[int, ...] = ()
    """Nonzeros of each head; empty where a matrix does not belong to heads."""
    units: str = ""
    """How many of its units (channels of heads, neurons) have a weight at all."""

    @property
    def density(self) -> float:
        """Share of the entries that are not zero."""
        return self.n_nonzero / self.n_entries

    @property
    def said(self) -> str:
        """What pointing at it tells."""
        where = f"{self.name} of layer {self.layer}" if self.layer else self.name
        lines = [where, f"{self.n_nonzero:,} of {self.n_entries:,} nonzero ({self.density:.2%})", self.units]
        return "<br>".join(line for line in lines if line)


@of_ours
@plot.register
def nonzeros_figure(model: SparseTransformer, *, title: str = "Weights") -> go.Figure:
    """Density of every weight matrix as a bar, layer by layer, and beside it the nonzeros of each head.

    Counted is what `model.matrices()` counts: the rows add up to `model.n_nonzero()`, biases in a row of their own.

    Examples:
        >>> figure = circuits.plots.nonzeros_figure(circuits.load("quotes-128").model)
    """
    rows = _rows(model)
    row_px = ROW_PX if len(rows) <= CROWD else CROWDED_PX
    total, entries = sum(row.n_nonzero for row in rows), sum(row.n_entries for row in rows)
    said = f"{total:,} of {entries:,} entries nonzero ({total / entries:.2%}), without bigram table and sinks"
    figure = Picture([_bars(rows), _cells(rows)])
    figure.update_layout(**base_layout(title=title, subtitle=said, height=158 + row_px * len(rows)))
    figure.update_layout(
        **_axes(rows),
        margin={"l": LEFT_PX, "r": RIGHT_PX, "t": 104, "b": 54},
        showlegend=False,
        bargap=0.35,
        shapes=_rules(rows),
        annotations=[*_layers(rows), *_units(rows), *_panel_titles(bool(_n_heads(rows)))],
        meta={"min_width": LEAST_WIDTH},
    )
    return figure


def _rows(model: SparseTransformer) -> list[_Row]:
    """Every matrix in forward order, and all biases together."""
    weights = [matrix for matrix in model.matrices() if matrix.parameter.ndim > 1]
    biases = [matrix.parameter for matrix in model.matrices() if matrix.parameter.ndim == 1]
    rows = []
    for (layer, name), group in groupby(weights, key=lambda matrix: _split(matrix.name)):
        parameters = [matrix.parameter.detach() for matrix in group]
        told = _by_unit(name, parameters[0], model.config.d_head) if name in ALL_WEIGHTS else ()
        rows.append(_Row(layer, name, *_count(parameters), *told))
    return [*rows, _Row("", "biases", *_count(biases))]


def _split(name: str) -> tuple[str, str]:
    """Layer (with its stack, if that is named) and what stands there: `0`, `W_Q`; no layer for embeddings."""
    parts = name.split(".")
    end = next((i + 1 for i, part in enumerate(parts) if part.isdecimal()), 0)
    return (".".join(parts[:end]), parts[end]) if end else ("", name)


def _count(parameters: Sequence[Tensor]) -> tuple[int, int]:
    return sum(int(p.count_nonzero()) for p in parameters), sum(p.numel() for p in parameters)


def _by_unit(name: str, matrix: Tensor, d_head: int) -> tuple[tuple[int, ...], str]:
    """Nonzeros of each head (if its units are channels of heads), and how many units have any."""
    weight = ALL_WEIGHTS[name]
    unit = ROWS[weight.sites[weight.unit_axis]]
    counts = matrix.count_nonzero(dim=1 - weight.unit_axis)
    heads = counts.unflatten(0, (-1, d_head)).sum(1).tolist() if unit.per_head else ()
    kind = f"{unit.label} channels" if unit.per_head else f"{unit.label}s"
    return tuple(heads), f"{int(counts.count_nonzero()):,} of {len(counts):,} {kind} have a weight"


def _n_heads(rows: Sequence[_Row]) -> int:
    return max(len(row.heads) for row in rows)


def _bars(rows: Sequence[_Row]) -> go.Bar:
    return go.Bar(
        x=[row.density for row in rows],
        y=list(range(len(rows))),
        orientation="h",
        marker={"color": [POSITIVE if row.layer else RESIDUAL for row in rows]},
        text=[f"{row.n_nonzero:,}" for row in rows],
        textposition="outside",
        textfont={"size": 11, "color": INK},
        cliponaxis=False,
        hovertext=[row.said for row in rows],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _cells(rows: Sequence[_Row]) -> go.Heatmap:
    n_heads = _n_heads(rows)
    counts = [[*map(float, row.heads), *[None] * (n_heads - len(row.heads))] for row in rows]
    hover = [
        [f"head {head}: {n:,} nonzero<br>of {row.said}" for head, n in enumerate(row.heads)] for row in rows
    ]
    limit = limit_of([[n for row in rows for n in row.heads]])
    labels = [str(head) for head in range(n_heads)]
    cells = heat(counts, labels, [row.name for row in rows], limit=limit, diverging=False, hover=hover)
    cell_px = (HEADS[1] - HEADS[0]) * (LEAST_WIDTH - LEFT_PX - RIGHT_PX) / max(n_heads, 1)
    fits = len(f"{limit:,.0f}") * DIGIT_PX <= cell_px
    return cells.update(
        xaxis="x2", xgap=2, ygap=2, texttemplate="%{z:,}" if fits else None, textfont={"size": 10}
    )


def _axes(rows: Sequence[_Row]) -> dict[str, Any]:
    n_heads = _n_heads(rows)
    # Room for the number at the end of the longest bar.
    top = 1.3 * max(max(row.density for row in rows), 1e-6)
    head_step = max(1, -(-n_heads // 24))
    plain = {"zeroline": False, "showgrid": False, "ticks": "", "tickfont": {"size": 11, "color": FAINT}}
    return {
        "xaxis": {**plain, "domain": BARS, "range": [0, top], "tickformat": "~%", "nticks": 5}
        | {"showgrid": True, "gridcolor": BAND, "layer": "below traces"},
        "xaxis2": {**plain, "domain": HEADS, "range": [-0.5, max(n_heads, 1) - 0.5], "visible": n_heads > 0}
        | {"tickmode": "array", "tickvals": list(range(0, n_heads, head_step)), "anchor": "y"},
        "yaxis": {**plain, "range": [len(rows) - 0.5, -0.5], "tickmode": "array", "fixedrange": True}
        | {"tickvals": list(range(len(rows))), "ticktext": [row.name for row in rows], "ticklabelstandoff": 6}
        | {"tickfont": {"size": 12 if len(rows) <= CROWD else 10, "color": INK}},
    }


def _spans(rows: Sequence[_Row]) -> list[tuple[str, int, int]]:
    """Layers with their first row and the row after their last."""
    spans, start = [], 0
    for layer, members in groupby(rows, key=lambda row: row.layer):
        end = start + len(list(members))
        spans.append((layer, start, end))
        start = end
    return [span for span in spans if span[0]]


def _rules(rows: Sequence[_Row]) -> list[dict[str, Any]]:
    """Rules between layers."""
    edges = {edge for _, start, end in _spans(rows) for edge in (start, end)}
    rule = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "line": {"color": BOX, "width": 1.5}}
    return [{**rule, "y0": edge - 0.5, "y1": edge - 0.5} for edge in sorted(edges)]


def _layers(rows: Sequence[_Row]) -> list[dict[str, Any]]:
    place = {"xref": "paper", "x": 0, "xanchor": "left", "xshift": 20 - LEFT_PX, "showarrow": False}
    return [
        {**place, "text": f"<b>layer {layer}</b>", "y": start, "font": {"size": 12, "color": INK}}
        for layer, start, _ in _spans(rows)
    ]


def _units(rows: Sequence[_Row]) -> list[dict[str, Any]]:
    """What is said of units where there are no heads."""
    place = {
        "xref": "paper",
        "x": HEADS[0],
        "xanchor": "left",
        "showarrow": False,
        "font": {"size": 11, "color": FAINT},
    }
    return [{**place, "text": row.units, "y": i} for i, row in enumerate(rows) if row.units and not row.heads]


def _panel_titles(has_heads: bool) -> list[dict[str, Any]]:
    place = {"xref": "paper", "yref": "paper", "xanchor": "left", "showarrow": False}
    place |= {"font": {"size": 12, "color": FAINT}}
    above = {**place, "y": 1, "yanchor": "bottom", "yshift": 6}
    below = {**place, "y": 0, "yanchor": "top", "yshift": -24}
    bars = [
        {**above, "x": BARS[0], "text": "nonzeros"},
        {**below, "x": BARS[0], "text": "share of the matrix"},
    ]
    heads = [
        {**above, "x": HEADS[0], "text": "nonzeros of each head"},
        {**below, "x": HEADS[0], "text": "head"},
    ]
    return [*bars, *(heads if has_heads else [])]
