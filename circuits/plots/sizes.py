"""Sizes of circuits: sparse against dense task by task, and over width at a fixed number of nonzeros."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from circuits.plots.shown import Picture
from circuits.plots.style import BAND, BOX, FAINT, INK, NEGATIVE, POSITIVE, base_layout

__all__ = ["frontier_figure", "sparse_vs_dense_figure"]


def sparse_vs_dense_figure(report: Mapping[str, Any]) -> go.Figure:
    """A row for each task: edges of the sparse and of the dense circuit (medians over seeds), and their ratio.

    report: the content of docs/results/sparse_vs_dense.json. Raises ValueError when no task could be compared.

    Examples:
        >>> sizes = {"sparse_n_edges": 9, "dense_n_edges": 90}
        >>> report = {"tasks": {"quotes": 10.0}, "sizes": {"quotes": sizes}, "geomean_edge_ratio": 10.0}
        >>> figure = circuits.plots.sparse_vs_dense_figure(report)
    """
    tasks = sorted(report["tasks"], key=lambda name: report["tasks"][name])
    if not tasks:
        raise ValueError("report: no task was solved by both models; expected at least one.")
    ends = {side: [report["sizes"][t][f"{side}_n_edges"] for t in tasks] for side in ("sparse", "dense")}
    lines_x = [x for a, b in zip(ends["sparse"], ends["dense"], strict=True) for x in (a, b, None)]
    lines_y = [y for task in tasks for y in (task, task, None)]
    figure = Picture(
        go.Scatter(x=lines_x, y=lines_y, mode="lines", line={"color": BOX, "width": 3}, hoverinfo="skip")
    )
    for side, colour in (("sparse", POSITIVE), ("dense", NEGATIVE)):
        figure.add_scatter(
            x=ends[side],
            y=tasks,
            mode="markers",
            name=side,
            marker={"size": 12, "color": colour},
            hovertemplate=f"{side}, %{{y}}: %{{x:g}} edges<extra></extra>",
        )
    for task in tasks:
        figure.add_annotation(
            x=1.02,
            xref="paper",
            y=task,
            text=f"{report['tasks'][task]:.1f} to 1",
            showarrow=False,
            xanchor="left",
        )
    said = f"Geometric mean of the ratio: {report['geomean_edge_ratio']:.1f}; both models have the same validation loss"
    figure.update_layout(
        **base_layout(
            title="Edges of a circuit, sparse against dense", subtitle=said, height=190 + 38 * len(tasks)
        ),
        xaxis={"type": "log", "title": {"text": "edges"}, "gridcolor": BAND, "dtick": 1, "linecolor": FAINT},
        yaxis={"type": "category", "showgrid": False, "automargin": True},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        margin={"l": 120, "r": 104, "t": 112, "b": 56},
    )
    figure.data[0].showlegend = False
    return figure


def frontier_figure(report: Mapping[str, Any]) -> go.Figure:
    """Validation loss against circuit size: a mark for the mean of each width, a small one for each seed.

    report: the content of docs/results/frontier.json. Widths without any circuit are left out.

    Examples:
        >>> run = {"width": 64, "val_loss": 2.0, "circuits": {"quotes": {"solved": True, "n_edges": 9}}}
        >>> report = {"widths": [64], "n_edges": [9.0], "val_loss": [2.0], "n_nonzero": [3000], "runs": [run]}
        >>> figure = circuits.plots.frontier_figure(report)
    """
    rows = zip(report["widths"], report["n_edges"], report["val_loss"], strict=True)
    known = [row for row in rows if row[1] is not None]
    seeds = [
        (one["circuits"][task]["n_edges"], one["val_loss"], one["width"])
        for one in report["runs"]
        for task in one["circuits"]
        if one["circuits"][task]["solved"]
    ]
    figure = Picture(
        go.Scatter(
            x=[edges for edges, _, _ in seeds],
            y=[loss for _, loss, _ in seeds],
            mode="markers",
            marker={"size": 7, "color": FAINT, "opacity": 0.5},
            hovertext=[f"width {width}" for *_, width in seeds],
            hovertemplate="%{hovertext}: %{x} edges, %{y:.3f} nats<extra></extra>",
        )
    )
    figure.add_scatter(
        x=[edges for _, edges, _ in known],
        y=[loss for *_, loss in known],
        mode="markers+text",
        text=[f" {width} wide" for width, _, _ in known],
        textposition="middle right",
        textfont={"size": 13, "color": INK},
        marker={"size": 12, "color": POSITIVE},
        hovertemplate="%{text}: %{x:.1f} edges, %{y:.3f} nats<extra></extra>",
    )
    nonzero = sum(report["n_nonzero"]) / len(report["n_nonzero"])
    said = f"Every width has about {nonzero:,.0f} nonzero weights; blue: means; grey: single circuits"
    figure.update_layout(
        **base_layout(title="Width at a fixed number of nonzeros", subtitle=said, height=430),
        xaxis={"title": {"text": "edges of the circuit"}, "gridcolor": BAND, "rangemode": "tozero"},
        yaxis={"title": {"text": "validation loss (nats)"}, "gridcolor": BAND},
        margin={"l": 80, "r": 90, "t": 92, "b": 60},
        showlegend=False,
    )
    return figure
