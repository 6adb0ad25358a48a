"""Rankings side by side: how much of the task each one's best parts carry, CPR and CMD."""

from collections.abc import Sequence

import plotly.graph_objects as go

from circuits.plots.shown import Picture
from circuits.plots.style import BAND, FAINT, INK, NEGATIVE, POSITIVE, RESIDUAL, SCORE, base_layout, number
from circuits.ranking import Curve

__all__ = ["rankings_figure"]

COLOURS = (POSITIVE, NEGATIVE, SCORE, INK, FAINT, RESIDUAL)
"""Of methods, in their order; after the last the first comes again, dashed."""
DASHES = ("solid", "dash", "dot")


def rankings_figure(curves: Sequence[Curve], *, title: str = "Rankings") -> go.Figure:
    """A line for each method: the share of the model's margin that its best parts recover, over circuit sizes.

    Beside it, in the legend, CPR (area under the line; 1 is best) and CMD (area between it and 1; 0 is best). Nodes
    and edges share the axis, each as a share of its own number. Raises ValueError without curves.

    Examples:
        >>> found = circuits.load("quotes-handmade")
        >>> curves = circuits.ranking.curves(found.model, found.task, ["random"], n_pairs=8)
        >>> figure = circuits.plots.rankings_figure(curves)
    """
    if not curves:
        raise ValueError("curves: got none; expected what circuits.ranking.curves returns.")
    figure = Picture()
    for i, one in enumerate(sorted(curves, key=lambda c: -c.cpr if c.cpr == c.cpr else 1.0)):
        said = f"{one.method} ({one.kind})  CPR {number(one.cpr)}, CMD {number(one.cmd)}"
        line = {
            "color": COLOURS[i % len(COLOURS)],
            "width": 2,
            "dash": DASHES[i // len(COLOURS) % len(DASHES)],
        }
        figure.add_scatter(
            x=[100 * share for share in one.shares],
            y=list(one.faithfulness),
            mode="lines+markers",
            name=said,
            line=line,
            hovertemplate=f"{one.method}: %{{y:.2f}} of the margin with %{{x:g}} % of the {one.kind}<extra></extra>",
        )
    figure.add_hline(y=1, line={"color": FAINT, "width": 1, "dash": "dot"})
    grid = {"gridcolor": BAND, "linecolor": FAINT}
    figure.update_layout(
        **base_layout(title=title, subtitle="Share of the model's margin, by parts kept", height=460),
        xaxis={"type": "log", "title": {"text": "parts kept (%)"}, **grid},
        yaxis={"title": {"text": "share of the margin"}, "zerolinecolor": BAND, **grid},
        legend={"y": 1, "yanchor": "top", "x": 1.02},
        margin={"l": 72, "r": 24, "t": 84, "b": 56},
    )
    return figure
