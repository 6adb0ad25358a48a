"""Figures in notebooks: shown by the notebook's own plotly, and kept when the notebook is exported to HTML."""

import uuid
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from plotly.offline import get_plotlyjs

from circuits.progress import in_notebook

__all__ = ["Picture"]

UNASKED = "plotly_mimetype"
"""The renderer that plotly takes in a notebook where none is chosen; exports to HTML drop what it shows."""
_has_library: list[bool] = []
"""Not empty once this process has given its notebook plotly.js."""


class Picture(go.Figure):
    """A plotly Figure. Where no renderer of plotly is chosen, a notebook also gets it as HTML that works offline."""

    def _ipython_display_(self) -> None:
        if not in_notebook() or pio.renderers.default != UNASKED:
            super()._ipython_display_()
            return
        from IPython.display import display

        if not _has_library:
            display({"text/html": _library(), "text/plain": ""}, raw=True)
            _has_library.append(True)
        display({**pio.renderers[UNASKED].to_mimebundle(self.to_dict()), "text/html": _html(self)}, raw=True)


def _library() -> str:
    """plotly.js, once for a notebook: some four megabytes."""
    return (
        f"<script>window.PlotlyConfig = {{MathJaxConfig: 'local'}};</script><script>{get_plotlyjs()}</script>"
    )


def _html(figure: Any) -> str:
    """A figure as a box and the script that fills it."""
    data = figure.to_json().replace("<", "\\u003c")
    div = f"figure-{uuid.uuid4().hex}"
    call = f'Plotly.newPlot("{div}", f.data, f.layout, {{responsive: true, displaylogo: false}});'
    return (
        f'<div id="{div}" style="height:{figure.layout.height or 450}px"></div>\n'
        f"<script>(function () {{ if (window.Plotly) {{ var f = {data}; {call} }} }})();</script>"
    )
