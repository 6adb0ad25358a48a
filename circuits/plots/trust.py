"""Trust in one circuit: its report as a figure and as a page."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from circuits.plots import plot
from circuits.plots.page import heading, table, write_page
from circuits.plots.shown import Picture
from circuits.plots.style import (
    BAND,
    BOX,
    FAINT,
    INK,
    MINUS,
    NEGATIVE,
    NEGATIVE_TEXT,
    POSITIVE,
    UNMEASURED,
    base_layout,
    escaped,
)
from circuits.trust.report import Entry, TrustReport

__all__ = ["trust_figure", "trust_page"]

ROW = 25
"""Pixels to an entry of the report."""
MARKS = {"pass": "✓", "fail": "✗", "note": "•", "inconclusive": "?", "not run": UNMEASURED}
COLOURS = {verdict: FAINT for verdict in MARKS} | {"pass": POSITIVE, "fail": NEGATIVE_TEXT}


@plot.register
def trust_figure(report: TrustReport, *, title: str | None = None) -> go.Figure:
    """A report of `circuits.trust.trust_report`: value against baseline for each entry, and two close-ups.

    Each row has its own scale, from 0 to the larger of value and baseline. Below: the share of the model's
    margin that the best-ranked nodes recover, and what interchanging each node does in circuit and in model.
    `title` replaces the usual one.

    Examples:
        >>> figure = circuits.plots.trust_figure(circuits.load("quotes-128").report)
    """
    entries = report.entries
    rows_height, below = ROW * len(entries), 280
    height = 120 + rows_height + below
    plot_height = height - 104 - 48
    split = 1 - rows_height / plot_height
    figure = Picture([*_entry_traces(entries), *_close_ups(entries)])
    asked = f"Is the circuit for {report.task} what the model uses?" if title is None else title
    figure.update_layout(**base_layout(title=asked, subtitle=report.verdict, height=height))
    hidden = {"showgrid": False, "zeroline": False, "showticklabels": False, "fixedrange": True}
    figure.update_layout(
        xaxis={"domain": [0.42, 0.8], "range": [-0.04, 1.04], "anchor": "y", **hidden},
        yaxis={"domain": [split, 1], "range": [len(entries) - 0.5, -0.5], **hidden},
        **_close_up_axes(split),
        margin={"l": 28, "r": 28, "t": 104, "b": 48},
        showlegend=False,
        annotations=[*_entry_labels(entries), *_close_up_titles(split)],
    )
    return figure


def trust_page(path: str | Path, report: TrustReport) -> Path:
    """One page about one report: the verdict, the figure, and a table with what each item means.

    Examples:
        >>> circuits.plots.trust_page("trust.html", circuits.load("quotes-128").report).name
        'trust.html'
    """
    rows = [
        {
            "item": e.name,
            "value": value,
            "baseline": base,
            "unit": e.unit,
            "verdict": e.verdict,
            "meaning": e.meaning,
        }
        for e in report.entries
        for value, base in [e.shown()]
    ]
    title = f"Is the circuit for {report.task} what the model uses?"
    size = f"{report.n_nodes} nodes and {report.n_edges} edges of model {report.model_hash}."
    figure = trust_figure(report, title="")
    return write_page(
        path, title=title, blocks=[f"{report.verdict} {size}", figure, heading("Every item"), table(rows)]
    )


def _entry_traces(entries: Sequence[Entry]) -> list[go.Scatter]:
    ours, bases, lines = [], [], go.Scatter(x=[], y=[], mode="lines", hoverinfo="skip")
    track_x: list[float | None] = []
    track_y: list[float | None] = []
    for i, entry in enumerate(entries):
        track_x += [0, 1, None]
        track_y += [i, i, None]
        scale = max(abs(entry.value), abs(entry.baseline), 1e-12)
        if not math.isnan(entry.value):
            top = scale if not math.isnan(entry.baseline) else max(abs(entry.value), 1e-12)
            ours.append((max(entry.value, 0) / top, i, entry))
        if not math.isnan(entry.value) and not math.isnan(entry.baseline):
            bases.append((max(entry.baseline, 0) / scale, i, entry))
    lines.update(x=track_x, y=track_y, line={"color": BOX, "width": 2})
    return [
        lines,
        go.Scatter(
            x=[x for x, _, _ in bases],
            y=[y for _, y, _ in bases],
            mode="markers",
            marker={"symbol": "line-ns-open", "size": 13, "color": FAINT, "line": {"width": 2}},
            hovertext=[f"baseline {_shown(e.baseline, e.unit)}" for _, _, e in bases],
            hovertemplate="%{hovertext}<extra></extra>",
        ),
        go.Scatter(
            x=[x for x, _, _ in ours],
            y=[y for _, y, _ in ours],
            mode="markers",
            marker={"size": 11, "color": [_dot(e) for _, _, e in ours]},
            hovertext=[_wrapped(e.meaning) for _, _, e in ours],
            hovertemplate="%{hovertext}<extra></extra>",
        ),
    ]


def _entry_labels(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    labels: list[dict[str, Any]] = []
    base = {"xref": "paper", "yref": "y", "showarrow": False, "yanchor": "middle"}
    for i, entry in enumerate(entries):
        colour = COLOURS[entry.verdict]
        labels += [
            {**base, "x": 0, "y": i, "xanchor": "left", "text": f"<b>{MARKS[entry.verdict]}</b>"}
            | {"font": {"color": colour, "size": 14}},
            {**base, "x": 0.03, "y": i, "xanchor": "left", "text": escaped(entry.name)}
            | {"font": {"color": NEGATIVE_TEXT if entry.verdict == "fail" else INK, "size": 12}},
            {
                **base,
                "x": 0.4,
                "y": i,
                "xanchor": "right",
                "text": f"<b>{_shown(entry.value, entry.unit)}</b>",
            },
            {**base, "x": 1, "y": i, "xanchor": "right", "text": _shown(entry.baseline, entry.unit)}
            | {"font": {"color": FAINT, "size": 12}},
        ]
    head = {"xref": "paper", "yref": "paper", "y": 1, "yanchor": "bottom", "yshift": 6, "showarrow": False}
    small = {"font": {"size": 11, "color": FAINT}}
    return [
        *labels,
        {**head, **small, "x": 0.4, "xanchor": "right", "text": "value"},
        {
            **head,
            **small,
            "x": 0.61,
            "xanchor": "center",
            "text": "● value   | baseline   (own scale in each row)",
        },
        {**head, **small, "x": 1, "xanchor": "right", "text": "baseline"},
    ]


def _close_ups(entries: Sequence[Entry]) -> list[go.Scatter]:
    """Curve and dots out of the details. Raises ValueError where those are not what `trust_report` puts there."""
    by_name = {entry.name: entry for entry in entries}
    try:
        return _drawn_close_ups(by_name)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"report: the details of CPR and interchange cannot be drawn ({type(error).__name__}: {str(error)[:200]}); "
            "expected those of trust_report. Run it again."
        ) from None


def _drawn_close_ups(by_name: Mapping[str, Entry]) -> list[go.Scatter]:
    traces = []
    if "CPR" in by_name:
        curve = by_name["CPR"].details
        x = [100 * share for share in curve["shares"]]
        for key, colour, name in (
            ("random", FAINT, "random ranking"),
            ("faithfulness", POSITIVE, "circuit first"),
        ):
            traces.append(
                go.Scatter(
                    x=x,
                    y=curve[key],
                    mode="lines+markers",
                    line={"color": colour, "width": 2},
                    marker={"size": 5},
                    xaxis="x2",
                    yaxis="y2",
                    hovertemplate=f"{name}: %{{x:g}} % of nodes, %{{y:.2f}} of the margin<extra></extra>",
                )
            )
    if "interchange" in by_name:
        moves = by_name["interchange"].details["margin_change"]
        ends = [v for pair in moves.values() for v in pair] + [0.0]
        low, high = min(ends), max(ends)
        diagonal = go.Scatter(x=[low, high], y=[low, high], mode="lines", xaxis="x3", yaxis="y3")
        traces.append(diagonal.update(line={"color": BOX, "width": 2}, hoverinfo="skip"))
        traces.append(
            go.Scatter(
                x=[pair[0] for pair in moves.values()],
                y=[pair[1] for pair in moves.values()],
                mode="markers",
                marker={"size": 9, "color": POSITIVE, "opacity": 0.7},
                hovertext=list(moves),
                xaxis="x3",
                yaxis="y3",
                hovertemplate="%{hovertext}: %{x:.2f} in the circuit, %{y:.2f} in the model<extra></extra>",
            )
        )
    return traces


def _close_up_axes(split: float) -> dict[str, Any]:
    grid = {"gridcolor": BAND, "zeroline": False, "linecolor": FAINT, "ticks": "outside", "tickcolor": FAINT}
    ticks = {"tickvals": [0.1, 1, 10, 100], "ticktext": ["0.1", "1", "10", "100"]}
    area = [0, max(0.05, split - 0.11)]

    def titled(text: str) -> dict[str, Any]:
        return {"title": {"text": text, "standoff": 4, "font": {"size": 11, "color": FAINT}}}

    return {
        "xaxis2": {
            "domain": [0.06, 0.46],
            "anchor": "y2",
            "type": "log",
            **ticks,
            **titled("% of nodes kept"),
            **grid,
        },
        "yaxis2": {"domain": area, "anchor": "x2", **grid},
        "xaxis3": {"domain": [0.6, 1], "anchor": "y3", **titled("in the circuit"), **grid},
        "yaxis3": {"domain": area, "anchor": "x3", **titled("in the model"), **grid},
    }


def _close_up_titles(split: float) -> list[dict[str, Any]]:
    base = {"xref": "paper", "yref": "paper", "y": max(0.05, split - 0.11), "yanchor": "bottom", "yshift": 5}
    base |= {"showarrow": False, "xanchor": "left", "font": {"size": 12, "color": INK}}
    return [
        {**base, "x": 0.0, "text": "Share of the model's margin, best nodes first (grey: random)"},
        {**base, "x": 0.545, "text": "Interchange: change of margin, a dot a node"},
    ]


def _dot(entry: Entry) -> str:
    return NEGATIVE if entry.verdict == "fail" else POSITIVE if entry.verdict == "pass" else FAINT


def _shown(value: float, unit: str) -> str:
    if math.isnan(value):
        return UNMEASURED
    text = "0" if abs(value) < 5e-4 else f"{value:.3g}"
    return f"{text.replace('-', MINUS)} {unit}".rstrip()


def _wrapped(text: str, width: int = 60) -> str:
    lines, line = [], ""
    for word in escaped(text).split():
        if len(line) + len(word) > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return "<br>".join([*lines, line])
