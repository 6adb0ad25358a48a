"""Routing: which experts take part at each token, a panel a layer."""

import numpy as np
import plotly.graph_objects as go

from circuits.circuit.routing import Routing
from circuits.plots import plot
from circuits.plots.grids import heat, limit_of, panels, token_labels
from circuits.plots.style import POSITIVE, escaped

__all__ = ["routing_figure"]

TAKES_PART = [[0.0, "#cfe0f1"], [1.0, POSITIVE]]
"""Colours of shares above 0: the least of them still stands out from no part at all."""


@plot.register
def routing_figure(routing: Routing, *, title: str = "Routing") -> go.Figure:
    """Experts are rows, tokens columns; grey is an expert that takes no part, colour its share.

    Nine in ten shares have colours of their own, the largest all the fullest one; under the pointer stands the number.

    Examples:
        >>> from circuits.circuit.routing import routing
        >>> model = circuits.load("experts").model
        >>> figure = circuits.plots.routing_figure(routing(model, model.to_tokens("x = 'ab")[0]))
    """
    tokens = token_labels(routing.tokens)
    grids = routing.share.numpy().transpose(0, 2, 1)
    experts = [str(i) for i in range(grids.shape[1])]
    shares = grids[grids > 0]
    limit = limit_of(np.quantile(shares, 0.9) if shares.size else 1.0)
    traces = [
        [
            heat(
                np.where(grid > 0, grid, np.nan),
                tokens,
                experts,
                limit=limit,
                diverging=False,
                hover=_hover(grid, tokens),
                bar="share" if layer == 0 else None,
            ).update(colorscale=TAKES_PART)
        ]
        for layer, grid in enumerate(grids)
    ]
    active = int(routing.chosen.sum(-1).max()) if routing.chosen.numel() else 0
    return panels(
        traces,
        [tokens] * len(traces),
        [experts] * len(traces),
        [f"layer {layer}" for layer in range(len(traces))],
        title=title,
        subtitle=f"{active} of {len(experts)} experts at each token · a share of 1 leaves neurons as they are",
        per_row=1,
        height=round(170 + len(traces) * (60 + 18 * len(experts))),
        y_title="expert",
    )


def _hover(grid: np.ndarray, tokens: list[str]) -> list[list[str]]:
    return [
        [
            f"expert {expert} at {at} {escaped(token)}<br>share {share:.3g}"
            for at, (token, share) in enumerate(zip(tokens, row, strict=True))
        ]
        for expert, row in enumerate(grid)
    ]
