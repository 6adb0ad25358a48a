"""Colours, type and short texts that every figure shares.

Nothing is registered with plotly: each figure is given its layout explicitly, so importing this package
leaves the user's own templates alone.
"""

import html
from typing import Any

import plotly.graph_objects as go

POSITIVE = "#0b5394"
"""Dark blue. It stays apart from `NEGATIVE` for every common colour blindness, and in grey print."""
NEGATIVE = "#ee8a2e"
NEGATIVE_TEXT = "#a8500a"
"""Dark enough to be read where the negative colour is set as text."""
MINUS = "\u2212"
UNMEASURED = "\u2013"
SCORE = "#7a3e9d"
RESIDUAL = "#9aa3ad"
INK = "#1f2933"
FAINT = "#6b7680"
BAND = "#f3f5f8"
BOX = "#dfe5ee"
PAPER = "#ffffff"

SANS = "Inter, system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"

DESIGN_WIDTH = 900
"""Pixels that a figure is laid out for; it stretches to its container."""


def base_layout(*, title: str, subtitle: str = "", height: int) -> dict[str, Any]:
    """Layout settings common to all figures. `title` and `subtitle` are escaped; `height` is in pixels."""
    small = f"<span style='font-size:13px;color:{FAINT}'>{escaped(subtitle)}</span>"
    text = "<br>".join(line for line in (escaped(title), small if subtitle else "") if line)
    return {
        "template": go.layout.Template(),
        "title": {
            "text": text,
            "font": {"size": 18, "color": INK},
            "x": 0,
            "xref": "container",
            "pad": {"l": 20},
            "y": 1 - 28 / height,
            "yref": "container",
            "yanchor": "top",
            "automargin": False,
        },
        "height": height,
        "autosize": True,
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "font": {"family": SANS, "size": 12, "color": INK},
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": PAPER,
            "bordercolor": FAINT,
            "font": {"family": SANS, "size": 12, "color": INK},
            "align": "left",
        },
    }


def escaped(text: str) -> str:
    """Text that neither a browser nor plotly reads as markup."""
    return html.escape(text, quote=False)


def number(value: int | float) -> str:
    """A short signed number, or a dash when it was not measured."""
    return UNMEASURED if value != value else f"{value:+.3g}".replace("-", MINUS)
