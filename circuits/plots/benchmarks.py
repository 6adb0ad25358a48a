"""The benchmark as one picture: how much faster each operation is, over width, one line for each density."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from circuits.plots.shown import Picture
from circuits.plots.style import BAND, FAINT, INK, NEGATIVE, POSITIVE, base_layout

__all__ = ["bench_figure"]

TIMES = [value * 10**power for power in range(-2, 4) for value in (1, 2, 5)]
"""Ratios that have a tick."""
GAP = 0.035
"""Between panels, as a share of the figure's width."""

Row = Mapping[str, Any]


def bench_figure(rows: Sequence[Row], *, title: str = "Sparse against dense") -> go.Figure:
    """Ratio of plain PyTorch's time to ours, a panel for each operation, on logarithmic axes.

    `rows` are those of bench.json; bars are quartiles over the rounds. A row whose parity fails has no ratio
    and is not drawn. Raises ValueError when no row is left.

    Examples:
        >>> row = {"name": "spmm", "d_model": 128, "density": 0.01, "parity": True}
        >>> figure = circuits.plots.bench_figure([{**row, "ratio_plain": 3.0, "ratio_plain_spread": [2.8, 3.1]}])
    """
    drawn = [row for row in rows if row["parity"] and row.get("ratio_plain")]
    if not drawn:
        raise ValueError("rows: got none with a ratio; expected at least one. Did every parity check fail?")
    names = list(dict.fromkeys(row["name"] for row in drawn))
    densities = sorted({row["density"] for row in drawn}, reverse=True)
    shades = sample_colorscale(
        [[0, NEGATIVE], [1, POSITIVE]], [i / max(1, len(densities) - 1) for i in range(len(densities))]
    )
    figure = Picture()
    for panel, name in enumerate(names):
        for density, colour in zip(densities, shades, strict=True):
            line = [row for row in drawn if row["name"] == name and row["density"] == density]
            if line:
                figure.add_trace(_line(line, panel, colour))
    left_out = len(rows) - len(drawn)
    said = "time of plain PyTorch over ours; above 1, ours is faster"
    said += f" · {left_out} without parity left out" if left_out else ""
    figure.update_layout(**base_layout(title=title, subtitle=said, height=380))
    _panels(figure, names, sorted({row["d_model"] for row in drawn}))
    return figure


def _line(rows: Sequence[Row], panel: int, colour: str) -> go.Scatter:
    rows = sorted(rows, key=lambda row: row["d_model"])
    density = rows[0]["density"]
    ratios = [row["ratio_plain"] for row in rows]
    return go.Scatter(
        x=[row["d_model"] for row in rows],
        y=ratios,
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [row["ratio_plain_spread"][1] - r for row, r in zip(rows, ratios, strict=True)],
            "arrayminus": [r - row["ratio_plain_spread"][0] for row, r in zip(rows, ratios, strict=True)],
            "thickness": 1,
            "width": 3,
        },
        mode="lines+markers",
        line={"color": colour, "width": 1.75},
        marker={"size": 6},
        name=f"density {density:.2g}",
        legendgroup=f"{density}",
        showlegend=panel == 0,
        xaxis=f"x{panel + 1 if panel else ''}",
        yaxis=f"y{panel + 1 if panel else ''}",
        hovertemplate=f"{rows[0]['name']}, d_model %{{x:,}}, density {density:.2g}: %{{y:.2f}}x<extra></extra>",
    )


def _panels(figure: go.Figure, names: Sequence[str], widths: Sequence[int]) -> None:
    share = (1 - GAP * (len(names) - 1)) / len(names)
    grid = {"gridcolor": BAND, "zeroline": False, "linecolor": FAINT, "ticks": "outside", "tickcolor": FAINT}
    for i, name in enumerate(names):
        number, left = i + 1 if i else "", i * (share + GAP)
        ticks = {"tickvals": list(widths), "ticktext": [str(width) for width in widths], "tickangle": 45}
        label = {"title": {"text": "d_model", "font": {"size": 11}, "standoff": 4}}
        x = {"type": "log", "domain": [left, left + share], "anchor": f"y{number}", **label, **ticks, **grid}
        times = {"tickvals": TIMES, "ticktext": [f"{value:g}" for value in TIMES]}
        y = {"type": "log", "anchor": f"x{number}", **times, "showticklabels": i == 0, **grid}
        figure.update_layout({f"xaxis{number}": x, f"yaxis{number}": y | ({"matches": "y"} if i else {})})
        figure.add_shape(
            type="line", xref=f"x{number} domain", yref=f"y{number}", x0=0, x1=1, y0=1, y1=1,
            line={"color": FAINT, "width": 1, "dash": "dot"}, layer="below",
        )  # fmt: skip
        figure.add_annotation(
            text=name, x=left, y=1, xref="paper", yref="paper", xanchor="left", yanchor="bottom", yshift=3,
            showarrow=False, font={"size": 12, "color": INK},
        )  # fmt: skip
    figure.update_layout(
        margin={"l": 56, "r": 24, "t": 128, "b": 78},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.1, "yanchor": "bottom"},
        meta={"min_width": 900},
    )
