"""Figures and pages: data in, a plotly Figure or one self-contained HTML file out. Nothing is shown."""

from circuits.plots.bridge import bridge_figure, chain_figure, dilution_figure, steering_figure
from circuits.plots.circuit import circuit_figure
from circuits.plots.demo import demo_page
from circuits.plots.history import history_figure, pruning_figure
from circuits.plots.page import Html, heading, headline, table, write_page
from circuits.plots.snapshot import figure_to_png

__all__ = [
    "Html",
    "bridge_figure",
    "chain_figure",
    "circuit_figure",
    "demo_page",
    "dilution_figure",
    "figure_to_png",
    "heading",
    "headline",
    "history_figure",
    "pruning_figure",
    "steering_figure",
    "table",
    "write_page",
]
