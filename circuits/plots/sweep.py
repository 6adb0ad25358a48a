"""The runs of a sweep: any column of numbers against any other."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from circuits.plots.shown import Picture
from circuits.plots.style import BAND, INK, base_layout
from circuits.reading import is_number

__all__ = ["sweep_figure"]


def sweep_figure(rows: Sequence[Mapping[str, Any]], x: str = "n_edges", y: str = "task_loss") -> go.Figure:
    """One mark a run; two menus choose the columns. Pointing at a mark tells task, width, density and seed.

    rows: flat records. Raises ValueError when a column is none of numbers.

    Examples:
        >>> rows = [{"task": "quotes", "seed": seed, "n_edges": 9 + seed, "task_loss": 0.1} for seed in (0, 1)]
        >>> figure = circuits.plots.sweep_figure(rows)
    """
    names = number_columns(rows)
    for axis, name in (("x", x), ("y", y)):
        if name not in names:
            raise ValueError(f"{axis}: got {name!r}; expected a column of numbers: {names}.")
    tasks = sorted({row["task"] for row in rows})
    by_task = [[row for row in rows if row["task"] == task] for task in tasks]
    figure = Picture([_trace(own, task, x, y) for task, own in zip(tasks, by_task, strict=True)])
    figure.update_layout(
        **base_layout(title="Runs", subtitle="The menus choose what is drawn", height=520),
        xaxis={"title": {"text": x}, "gridcolor": BAND},
        yaxis={"title": {"text": y}, "gridcolor": BAND},
        updatemenus=[_menu("x", names, x, by_task, 0.0), _menu("y", names, y, by_task, 0.35)],
        margin={"l": 80, "r": 40, "t": 130, "b": 60},
    )
    return figure


def number_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns that hold a number in some row and nothing else in any."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if _numbers([row.get(name) for row in rows])]


def _numbers(values: Sequence[Any]) -> bool:
    held = [value for value in values if value is not None]
    return bool(held) and all(map(is_number, held))


def _trace(rows: Sequence[Mapping[str, Any]], task: str, x: str, y: str) -> go.Scatter:
    told = [
        "<br>".join(f"{name} {row.get(name)}" for name in ("task", "width", "density", "seed"))
        for row in rows
    ]
    return go.Scatter(
        x=[row.get(x) for row in rows],
        y=[row.get(y) for row in rows],
        mode="markers",
        name=task,
        showlegend=True,
        hovertext=told,
        marker={"size": 11, "opacity": 0.8},
    )


def _menu(
    axis: str, names: Sequence[str], chosen: str, by_task: Sequence[Sequence[Mapping[str, Any]]], left: float
) -> dict[str, Any]:
    buttons = [
        {
            "label": f"{axis}: {name}",
            "method": "update",
            "args": [
                {axis: [[row.get(name) for row in rows] for rows in by_task]},
                {f"{axis}axis.title.text": name},
            ],
        }
        for name in names
    ]
    at = {"x": left, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "font": {"color": INK}}
    return {"buttons": buttons, "active": list(names).index(chosen), "showactive": True, **at}
