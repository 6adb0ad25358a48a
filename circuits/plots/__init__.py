"""Figures and pages: data in, a plotly Figure or one self-contained HTML file out. Nothing is shown."""

from circuits.plots.benchmarks import bench_figure
from circuits.plots.bridge import bridge_figure, chain_figure, dilution_figure, steering_figure
from circuits.plots.circuit_page import demo_page
from circuits.plots.composition import composition_figure, composition_maps_figure, head_graph_figure
from circuits.plots.heads import head_report_figure, pattern_figure, token_map_figure
from circuits.plots.history import history_figure, pruning_figure
from circuits.plots.page import Html, heading, headline, table, write_page
from circuits.plots.picture.circuit import circuit_figure
from circuits.plots.recovery import controls_figure, ground_truth_figure, transplant_figure
from circuits.plots.sizes import frontier_figure, sparse_vs_dense_figure
from circuits.plots.snapshot import figure_to_png
from circuits.plots.trust import faithfulness_figure, trust_page

__all__ = [
    "Html",
    "bench_figure",
    "bridge_figure",
    "chain_figure",
    "circuit_figure",
    "composition_figure",
    "composition_maps_figure",
    "controls_figure",
    "demo_page",
    "dilution_figure",
    "faithfulness_figure",
    "figure_to_png",
    "frontier_figure",
    "ground_truth_figure",
    "head_graph_figure",
    "head_report_figure",
    "heading",
    "headline",
    "history_figure",
    "pattern_figure",
    "pruning_figure",
    "sparse_vs_dense_figure",
    "steering_figure",
    "table",
    "token_map_figure",
    "transplant_figure",
    "trust_page",
    "write_page",
]
