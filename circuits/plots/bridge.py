"""Bridges: errors and recovered loss by location, passes that cross twice, steering and dilution curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from circuits.bridges import BridgeSet
from circuits.bridges.dilution import Dilution
from circuits.bridges.steering import Steering
from circuits.plots import plot
from circuits.plots.shown import Picture
from circuits.plots.style import BAND, FAINT, INK, MINUS, NEGATIVE, POSITIVE, RESIDUAL, SCORE, base_layout

__all__ = ["bridge_figure", "chain_figure", "dilution_figure", "steering_figure"]

GRID: Mapping[str, Any] = {
    "gridcolor": BAND,
    "zeroline": False,
    "linecolor": FAINT,
    "ticks": "outside",
    "tickcolor": FAINT,
}
LEGEND: Mapping[str, Any] = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}
ENCODE, DECODE = POSITIVE, NEGATIVE
"""Dense to sparse, and sparse to dense."""


def bridge_figure(rows: Sequence[Mapping[str, Any]], *, title: str = "Bridges") -> go.Figure:
    """Recovered loss and NMSE of each location, both ways.

    `rows` is `BridgeSet.metrics["locations"]`: mappings with location, nmse_encode, nmse_decode,
    recovered_dense_to_sparse and recovered_sparse_to_dense (None: nothing to recover there). Raises ValueError when it
    is empty.

    Examples:
        >>> metrics = circuits.load("mini-python-sparse").bridges.metrics
        >>> figure = circuits.plots.bridge_figure(metrics["locations"])
    """
    if not rows:
        raise ValueError("rows: got none; expected the metrics of at least one location. Fit bridges first.")
    names = [row["location"] for row in rows]
    traces = [
        _points(names, [row[key] for row in rows], label, colour, panel)
        for key, label, colour, panel in (
            ("recovered_dense_to_sparse", "dense → sparse", ENCODE, 1),
            ("recovered_sparse_to_dense", "sparse → dense", DECODE, 1),
            ("nmse_encode", "dense → sparse", ENCODE, 2),
            ("nmse_decode", "sparse → dense", DECODE, 2),
        )
    ]
    both = [row[f"recovered_{way}"] for row in rows for way in ("dense_to_sparse", "sparse_to_dense")]
    shares = [share for share in both if share is not None]
    worst, best = min(shares, default=0.0), max(shares, default=1.0)
    largest = max(max(row["nmse_encode"], row["nmse_decode"]) for row in rows)
    recovered = _two_places(worst) if shares else "nothing to recover"
    said = f"worst location: recovered {recovered}, NMSE {largest:.2f}"
    if 0 < len(shares) < len(both):
        said += f"; {len(both) - len(shares)} of {len(both)} with nothing to recover are left out"
    figure = Picture(traces, base_layout(title=title, subtitle=said, height=520))
    figure.update_layout(
        xaxis={**GRID, "anchor": "y2", "title": {"text": "location", "standoff": 6}, "type": "category"},
        yaxis={**GRID, "domain": [0.57, 1.0], "range": [min(-0.05, worst - 0.05), max(1.08, best + 0.05)]},
        yaxis2={**GRID, "domain": [0.0, 0.43], "rangemode": "tozero"},
        legend=LEGEND,
        margin={"l": 64, "r": 104, "t": 104, "b": 52},
    )
    _rule(figure, 1.0, "no bridge", "y")
    _rule(figure, 0.0, "mean ablation", "y")
    _panel_title(figure, "loss recovered by the hybrid", 1.0)
    _panel_title(figure, "NMSE of the map", 0.43)
    return figure


@plot.register
def _of_bridges(bridges: BridgeSet, *, title: str = "Bridges") -> go.Figure:
    """`bridge_figure` of the metrics of bridges."""
    return bridge_figure(bridges.metrics["locations"], title=title)


def chain_figure(
    losses: Sequence[Sequence[float]],
    names: Sequence[str],
    *,
    plain: float | None = None,
    title: str = "Passes that cross twice",
) -> go.Figure:
    """Heatmap of the loss in nats of passes out at the row's location and back at the column's.

    `losses` is `chain_losses(...)` as nested lists, NaN where a pass cannot be. plain: loss without a crossing,
    for the subtitle. Raises ValueError when the matrix does not have a row and a column for each name.

    Examples:
        >>> figure = circuits.plots.chain_figure([[0.1, 0.3], [0.2, 0.4]], ["embed", "0.attn"], plain=0.1)
    """
    if len(losses) != len(names) or any(len(row) != len(names) for row in losses):
        raise ValueError(
            f"losses: got {len(losses)} rows; expected {len(names)} rows and columns, one a name."
        )
    shown = [["" if value != value else f"{value:.2f}" for value in row] for row in losses]
    cells = [[None if value != value else float(value) for value in row] for row in losses]
    known = [value for row in cells for value in row if value is not None]
    heat = go.Heatmap(
        z=cells,
        x=list(names),
        y=list(names),
        text=shown,
        texttemplate="%{text}",
        xgap=2,
        ygap=2,
        hoverongaps=False,
        colorscale=[[0, "#eef4fa"], [1, "#6fa3d0"]],
        zmin=min([plain or min(known), *known]),
        colorbar={"title": {"text": "nats"}, "thickness": 12, "outlinewidth": 0},
        hovertemplate="out at %{y}, back at %{x}: %{z:.3f} nats<extra></extra>",
    )
    said = f"loss on held-out text{'' if plain is None else f'; {plain:.2f} nats without a crossing'}"
    height = 190 + 52 * len(names)
    figure = Picture(heat, base_layout(title=title, subtitle=said, height=height))
    figure.update_layout(
        xaxis={"title": {"text": "back at", "standoff": 8}, "type": "category", "showgrid": False},
        yaxis={
            "title": {"text": "out at", "standoff": 8},
            "type": "category",
            "autorange": "reversed",
            "showgrid": False,
        },
        margin={"l": 84, "r": 28, "t": 96, "b": 64},
    )
    return figure


def steering_figure(steering: Mapping[str, Any], *, title: str = "Steering the dense model") -> go.Figure:
    """Share of the foil between answer and foil against strength, with both controls.

    `steering` is `Steering.to_json()`, or a run of a results file. Thin lines are single draws of the
    random-channel control.

    Examples:
        >>> bridges = circuits.load("mini-python-sparse").bridges
        >>> prompts = tasks.load_task("quotes").batch(8, split="test", seed=0)
        >>> steering = circuits.steer(bridges, prompts, "embed", [0], strengths=(0.0, 1.0), n_controls=1)
        >>> figure = circuits.plots.steering_figure(steering.to_json())
    """
    strengths, draws = steering["strengths"], steering["random_channel_draws"]
    traces = [
        _curve(strengths, draw, "random channel, each draw", RESIDUAL, width=0.75, shown=i == 0)
        for i, draw in enumerate(draws)
    ]
    for of, label, colour, dash in (
        ("random_channel", "random channel, mean", FAINT, "solid"),
        ("random_direction", "random direction, mean", SCORE, "dot"),
        ("sparse", "sparse model, its own channels", NEGATIVE, "dash"),
        ("steered", "dense model, steered", POSITIVE, "solid"),
    ):
        width = 3.0 if of == "steered" else 1.75
        line = _curve(strengths, steering["curves"][of], label, colour, width=width)
        traces.append(line.update(line={"dash": dash}))
    moved = steering["channels"]
    channels = ", ".join(map(str, moved[:6])) + (" …" if len(moved) > 6 else "")
    said = (
        f"{'channels' if len(moved) > 1 else 'channel'} {channels} at {steering['location']} · "
        f"{steering['p_foil_before']:.2f} to {steering['p_foil_after']:.2f} at strength {steering['strength']:g} · "
        f"control moves by {steering['control_change']:.2f}"
    )
    figure = Picture(traces, base_layout(title=title, subtitle=said, height=460))
    figure.update_layout(
        xaxis={**GRID, "title": {"text": "strength (1: the counterfactual value)", "standoff": 6}},
        yaxis={**GRID, "title": {"text": "P(foil) / (P(answer) + P(foil))"}, "range": [-0.02, 1.02]},
        legend={"y": 0.98, "yanchor": "top", "x": 1.02, "xanchor": "left"},
        margin={"l": 72, "r": 28, "t": 84, "b": 56},
    )
    return figure


@plot.register
def _of_steering(steering: Steering, *, title: str = "Steering the dense model") -> go.Figure:
    """`steering_figure` of a sweep."""
    return steering_figure(steering.to_json(), title=title)


def dilution_figure(dilution: Mapping[str, Any], *, title: str = "Context dilution") -> go.Figure:
    """Error rates on deep lists of the dense and the sparse model against list length, and the depth margin below.

    `dilution` is `Dilution.to_json()`, or a run of a results file; more distractors are drawn paler.

    Examples:
        >>> cell = {"length": 4, "distractors": 0, "dense_error": 0.1, "sparse_error": 0.0, "circuit_error": 0.0}
        >>> figure = circuits.plots.dilution_figure({"cells": [{**cell, "depth_margin": 1.0}], "spearman": 0.9})
    """
    counts = sorted({cell["distractors"] for cell in dilution["cells"]})
    traces = []
    for i, count in enumerate(counts):
        cells = sorted((c for c in dilution["cells"] if c["distractors"] == count), key=lambda c: c["length"])
        opacity = 1 - 0.65 * i / max(1, len(counts) - 1) if len(counts) > 1 else 1.0
        group = {
            "legendgroup": f"{count}",
            "legendgrouptitle": {"text": _before(count) if len(counts) > 1 else ""},
        }
        for key, label, colour, dash, panel in (
            ("dense_error", "dense model", POSITIVE, "solid", 1),
            ("sparse_error", "sparse model", NEGATIVE, "solid", 1),
            ("circuit_error", "sparse circuit", NEGATIVE, "dot", 1),
            ("depth_margin", "depth margin", INK, "solid", 2),
        ):
            line = _curve([c["length"] for c in cells], [c[key] for c in cells], label, colour, panel=panel)
            traces.append(line.update(opacity=opacity, line={"dash": dash}, showlegend=panel == 1, **group))
    found, n = dilution["spearman"], len(dilution["cells"])
    said = f"rank correlation of falling margin and dense errors: {found:.2f}, {n} cells"
    figure = Picture(traces, base_layout(title=title, subtitle=said, height=560))
    figure.update_layout(
        xaxis={**GRID, "anchor": "y2", "title": {"text": "elements in the list", "standoff": 6}},
        yaxis={**GRID, "domain": [0.5, 1.0], "rangemode": "tozero", "tickformat": ".0%"},
        yaxis2={**GRID, "domain": [0.0, 0.38]},
        legend={"y": 1.0, "yanchor": "top", "x": 1.02, "xanchor": "left"},
        margin={"l": 64, "r": 28, "t": 104, "b": 52},
    )
    _panel_title(figure, "closes a deep list as if it were shallow", 1.0)
    _panel_title(figure, "depth margin of the sparse circuit (nats)", 0.38)
    _rule(figure, 0.0, "", "y2")
    return figure


@plot.register
def _of_dilution(dilution: Dilution, *, title: str = "Context dilution") -> go.Figure:
    """`dilution_figure` of a sweep."""
    return dilution_figure(dilution.to_json(), title=title)


def _points(x: Sequence[Any], y: Sequence[float | None], name: str, colour: str, panel: int) -> go.Scatter:
    return _curve(x, y, name, colour, panel=panel).update(showlegend=panel == 1)


def _curve(
    x: Sequence[Any],
    y: Sequence[float | None],
    name: str,
    colour: str,
    *,
    width: float = 2.0,
    panel: int = 1,
    shown: bool = True,
) -> go.Scatter:
    return go.Scatter(
        x=list(x),
        y=list(y),
        mode="lines" if width < 1 else "lines+markers",
        name=name,
        line={"color": colour, "width": width},
        marker={"size": 6, "color": colour},
        yaxis="y" if panel == 1 else f"y{panel}",
        showlegend=shown,
        hovertemplate="%{x}: %{y:.3f}<extra>%{fullData.name}</extra>",
    )


def _rule(figure: go.Figure, y: float, text: str, axis: str) -> None:
    figure.add_shape(
        type="line",
        xref="paper",
        x0=0,
        x1=1,
        yref=axis,
        y0=y,
        y1=y,
        line={"color": FAINT, "width": 1, "dash": "dot"},
    )
    if text:
        figure.add_annotation(
            text=text,
            xref="paper",
            x=1,
            xanchor="left",
            xshift=6,
            yref=axis,
            y=y,
            yanchor="middle",
            showarrow=False,
            font={"size": 11, "color": FAINT},
        )


def _panel_title(figure: go.Figure, text: str, y: float) -> None:
    figure.add_annotation(
        text=text,
        x=0,
        xref="paper",
        xanchor="left",
        y=y,
        yref="paper",
        yanchor="bottom",
        yshift=3,
        showarrow=False,
        font={"size": 12, "color": INK},
    )


def _before(count: int) -> str:
    return "no list before" if count == 0 else f"{count} closed list{'s' if count > 1 else ''} before"


def _two_places(value: float) -> str:
    return f"{value:.2f}".replace("-", MINUS)
