"""Heat maps that share their style: one or several panels side by side, diverging or sequential."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from circuits.plots.shown import Picture
from circuits.plots.style import FAINT, INK, NEGATIVE, PAPER, POSITIVE, base_layout, escaped
from tasks.tokenizer import printable

DIVERGING = [[0.0, NEGATIVE], [0.5, PAPER], [1.0, POSITIVE]]
SEQUENTIAL = [[0.0, PAPER], [0.5, "#8fb3d9"], [1.0, POSITIVE]]
MISSING = "#e9ecf0"
"""Behind cells without a value."""
CHARACTERS = 100
"""Of labels side by side that fit below a whole figure."""
TITLE_PX, BOTTOM_PX = 96, 64

Grid = Sequence[Sequence[float | None]] | np.ndarray


def heat(
    values: Grid,
    columns: Sequence[str],
    rows: Sequence[str],
    *,
    limit: float,
    diverging: bool,
    hover: Sequence[Sequence[str]] | None = None,
    bar: str | None = None,
) -> go.Heatmap:
    """One panel; first row on top. `limit` is the value of full colour; `bar` names a colour bar, if any."""
    return go.Heatmap(
        z=[[None if v is None or v != v else float(v) for v in row] for row in values],
        x=list(range(len(columns))),
        y=list(range(len(rows))),
        zmin=-limit if diverging else 0,
        zmax=limit,
        colorscale=DIVERGING if diverging else SEQUENTIAL,
        showscale=bar is not None,
        colorbar=None if bar is None else _bar(bar),
        xgap=1,
        ygap=1,
        text=hover,
        hovertemplate="%{text}<extra></extra>" if hover is not None else "%{z:.3g}<extra></extra>",
        hoverongaps=False,
    )


def panels(
    traces: Sequence[Sequence[go.Heatmap | go.Scatter]],
    columns: Sequence[Sequence[str]],
    rows: Sequence[Sequence[str]],
    names: Sequence[str],
    *,
    title: str,
    subtitle: str,
    per_row: int,
    height: int,
    x_title: str = "",
    y_title: str = "",
    widths: Sequence[float] | None = None,
) -> go.Figure:
    """Panels in reading order, `per_row` in a row; each is a list of traces with its own axis labels."""
    figure = Picture()
    n_rows = -(-len(traces) // per_row)
    # Row labels need room between panels, long ones more.
    longest = max((len(label) for group in rows for label in group), default=1)
    gap_x = min(0.11, 0.02 + 0.009 * longest)
    gap_y = 58 / max(1, height - TITLE_PX - BOTTOM_PX)
    spans = _spans(widths or [1.0] * per_row, gap_x)
    tall = (1 - gap_y * (n_rows - 1)) / n_rows
    layout: dict[str, Any] = {}
    for i, group in enumerate(traces):
        key = "" if i == 0 else str(i + 1)
        left, right = spans[i % per_row]
        top = 1 - (i // per_row) * (tall + gap_y)
        for trace in group:
            figure.add_trace(trace.update(xaxis=f"x{key}", yaxis=f"y{key}"))
        layout[f"xaxis{key}"] = _axis(
            columns[i], [left, right], f"y{key}", x_title, upright=_are_long(columns[i], right - left)
        )
        layout[f"yaxis{key}"] = _axis(
            rows[i], [max(0.0, top - tall), top], f"x{key}", y_title if i % per_row == 0 else ""
        )
        layout[f"yaxis{key}"]["range"] = [len(rows[i]) - 0.5, -0.5]
        figure.add_annotation(
            text=names[i],
            x=left,
            y=top,
            xref="paper",
            yref="paper",
            xanchor="left",
            yanchor="bottom",
            showarrow=False,
            font={"size": 13, "color": INK},
        )
    figure.update_layout(**base_layout(title=title, subtitle=subtitle, height=height), **layout)
    figure.update_layout(
        plot_bgcolor=MISSING, showlegend=False, margin={"l": 76, "r": 96, "t": TITLE_PX, "b": BOTTOM_PX}
    )
    return figure


def limit_of(*grids: Any) -> float:
    """Largest finite magnitude in any of the grids, and 1 where there is none."""
    values = np.concatenate([np.asarray(grid, dtype=float).ravel() for grid in grids])
    values = np.abs(values[np.isfinite(values)])
    return float(values.max()) if values.size and values.max() > 0 else 1.0


def token_labels(tokens: Sequence[str]) -> list[str]:
    """Tokens as one can read them; equal ones stay apart because axes count positions."""
    return [printable(str(token)) for token in tokens]


def _spans(widths: Sequence[float], gap: float) -> list[tuple[float, float]]:
    room, at, out = 1 - gap * (len(widths) - 1), 0.0, []
    for width in widths:
        size = room * width / sum(widths)
        out.append((at, min(1.0, at + size)))
        at += size + gap
    return out


def _are_long(labels: Sequence[str], share: float) -> bool:
    """Whether labels would run into one another on this share of a figure's width."""
    return len(labels) * (max(map(len, labels), default=1) + 1) > CHARACTERS * share


def _axis(
    labels: Sequence[str], domain: Sequence[float], anchor: str, title: str, *, upright: bool = False
) -> dict[str, Any]:
    # At most about forty labels are legible; the others are in the hover text.
    step = max(1, -(-len(labels) // 40))
    shown = list(range(0, len(labels), step))
    return {
        "domain": list(domain),
        "anchor": anchor,
        "range": [-0.5, len(labels) - 0.5],
        "tickmode": "array",
        "tickvals": shown,
        "ticktext": [escaped(labels[i]) for i in shown],
        "tickangle": -90 if upright else 0,
        "tickfont": {"size": 11 if len(labels) <= 24 else 9},
        "title": {"text": title, "font": {"size": 12, "color": FAINT}, "standoff": 6},
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
    }


def _bar(name: str) -> dict[str, Any]:
    return {
        "title": {"text": name, "side": "top", "font": {"size": 12, "color": FAINT}},
        "thickness": 12,
        "outlinewidth": 0,
        "len": 0.9,
        "x": 1.02,
        "tickfont": {"size": 11},
    }
