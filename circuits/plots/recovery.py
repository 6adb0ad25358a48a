"""Figures of recovery, controls and transplants: circuits that are known, that should not exist, on other tasks."""

import math
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from circuits.circuit.compare import TransplantTable
from circuits.plots import plot
from circuits.plots.shown import Picture
from circuits.plots.style import BAND, FAINT, INK, NEGATIVE, POSITIVE, SCORE, base_layout

__all__ = ["controls_figure", "ground_truth_figure", "transplant_figure"]

CHANCE = math.log(2)
TARGET = 0.15
"""Loss in nats that a circuit is asked for."""


def ground_truth_figure(table: Mapping[str, Any]) -> go.Figure:
    """A table of `circuits.handmade.proof.verify`: for each method and model, the share of true nodes it finds.

    A method that ranks nodes is given the true number n; the cell is the share of true nodes among its first n.
    Raises ValueError when the table has no models.

    Examples:
        >>> found = {"methods": {"gates": {"precision": 1.0}}}
        >>> table = {"per_model": {"quotes": found}, "recovered": 1, "total": 1}
        >>> figure = circuits.plots.ground_truth_figure(table)
    """
    models = list(table["per_model"])
    if not models:
        raise ValueError("table: it has no models; expected what circuits.handmade.verify returns.")
    methods = list(table["per_model"][models[0]]["methods"])
    cells = [[table["per_model"][m]["methods"][method]["precision"] for m in models] for method in methods]
    notes = [
        [_ground_truth_note(table["per_model"][m]["methods"][method]) for m in models] for method in methods
    ]
    said = f"{table['recovered']} of {table['total']} circuits recovered exactly, nodes and edges"
    figure = _heat_map(cells, models, methods, notes, [[f"{v:.2f}" for v in row] for row in cells])
    title = "Known circuits: share of true nodes found"
    figure.update_layout(**base_layout(title=title, subtitle=said, height=150 + 46 * len(methods)))
    return figure


def controls_figure(report: Mapping[str, Any]) -> go.Figure:
    """Loss of the true task and of each nonsense control, a row for each model and budget of gate training.

    report: the content of docs/results/controls.json. Where a control reaches the true task's side of the line, a
    circuit for that task proves nothing.

    Examples:
        >>> losses = {"true_loss": 0.01, "swapped_loss": 0.7, "unrelated_loss": 0.6, "random_model_loss": 0.7}
        >>> figure = circuits.plots.controls_figure({"cases": {"seed 0": losses}})
    """
    kinds = {
        "true_loss": ("true task", POSITIVE, "circle"),
        "swapped_loss": ("swapped answers", NEGATIVE, "diamond"),
        "unrelated_loss": ("unrelated answers", SCORE, "square"),
        "random_model_loss": ("random model", FAINT, "x-thin-open"),
    }
    cases = list(report["cases"])[::-1]
    figure = Picture()
    for key, (name, colour, symbol) in kinds.items():
        figure.add_scatter(
            x=[report["cases"][case][key] for case in cases],
            y=cases,
            mode="markers",
            name=name,
            marker={"size": 13, "color": colour, "symbol": symbol, "line": {"width": 2, "color": colour}},
            hovertemplate=f"%{{y}}, {name}: %{{x:.3f}} nats<extra></extra>",
        )
    for value, said in ((TARGET, "target"), (CHANCE, "chance")):
        figure.add_vline(x=value, line={"color": FAINT, "width": 1, "dash": "dot"})
        figure.add_annotation(
            x=value, y=1, yref="paper", text=said, showarrow=False, yanchor="bottom", font={"color": FAINT}
        )
    said = "Two-way loss that gates alone reach, in nats: nonsense should stay right of the target"
    figure.update_layout(
        **base_layout(
            title="Can gates make a circuit for nonsense?", subtitle=said, height=220 + 44 * len(cases)
        ),
        xaxis={"title": {"text": "loss (nats)"}, "gridcolor": BAND, "zeroline": False},
        yaxis={"type": "category", "showgrid": False, "automargin": True},
        legend={"orientation": "h", "x": 0, "y": -0.32, "yanchor": "top"},
        margin={"l": 130, "r": 40, "t": 104, "b": 100},
    )
    return figure


@plot.register
def transplant_figure(table: TransplantTable, *, title: str = "Circuits on each task") -> go.Figure:
    """Each circuit on each task, and the whole model in the last row: task loss in nats; dark is solved.

    Examples:
        >>> found = circuits.load("mini-python")
        >>> named = {task: tasks.load_task(task) for task in found.circuits}
        >>> table = circuits.circuit.transplant(found.model, found.circuits, named, n_pairs=16)
        >>> figure = circuits.plots.transplant_figure(table)
    """
    names = [*table.circuits, "whole model"]
    losses = [*table.loss, table.full_loss]
    solved = [[1 - min(loss, CHANCE) / CHANCE for loss in row] for row in losses]
    notes = [[f"task loss {loss:.4f} nats" for loss in row] for row in losses]
    shown = [[f"{loss:.2f}" for loss in row] for row in losses]
    figure = _heat_map(solved, list(table.tasks), names, notes, shown)
    said = f"Task loss in nats; chance is {CHANCE:.2f}, and dark cells are solved"
    figure.update_layout(**base_layout(title=title, subtitle=said, height=150 + 46 * len(names)))
    return figure


def _heat_map(
    cells: list[list[float]],
    columns: list[str],
    rows: list[str],
    notes: list[list[str]],
    shown: list[list[str]],
) -> go.Figure:
    heat = go.Heatmap(
        z=cells,
        x=columns,
        y=rows,
        zmin=0,
        zmax=1,
        colorscale=[[0, BAND], [1, POSITIVE]],
        showscale=False,
        xgap=3,
        ygap=3,
        customdata=notes,
        hovertemplate="%{y}, %{x}<br>%{customdata}<extra></extra>",
    )
    figure = Picture(heat)
    for y, row in zip(rows, range(len(rows)), strict=True):
        for x, column in zip(columns, range(len(columns)), strict=True):
            ink = "#ffffff" if cells[row][column] > 0.55 else INK
            figure.add_annotation(
                x=x, y=y, text=shown[row][column], showarrow=False, font={"color": ink, "size": 13}
            )
    figure.update_layout(
        xaxis={"side": "top", "showgrid": False, "ticks": "", "type": "category"},
        yaxis={
            "autorange": "reversed",
            "showgrid": False,
            "ticks": "",
            "type": "category",
            "automargin": True,
        },
        margin={"l": 150, "r": 28, "t": 118, "b": 20},
    )
    return figure


def _ground_truth_note(metrics: Mapping[str, float]) -> str:
    shown = {key: f"{value:.3f}" for key, value in metrics.items() if value is not None}
    return "<br>".join(f"{key} {value}" for key, value in shown.items())
