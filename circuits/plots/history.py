"""What happened during training and pruning, as stacked panels over steps."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import plotly.graph_objects as go

from circuits.plots import plot
from circuits.plots.shown import Picture
from circuits.plots.style import BAND, FAINT, INK, NEGATIVE, POSITIVE, base_layout
from circuits.reading import is_number
from circuits.training import Training

__all__ = ["history_figure", "pruning_figure"]

PANEL_GAP = 0.1
"""Between panels, as a share of the figure's height."""

Row = Mapping[str, Any]


def history_figure(history: Sequence[Row], *, title: str = "Training") -> go.Figure:
    """Loss, density and learning rate of a training run over its steps.

    `history` holds one mapping a logged step with keys step, loss (nats a token), density, lr, tokens_per_s
    and, where it was measured, val_loss. Raises ValueError when it is empty or lacks one of the first four.

    Examples:
        >>> figure = circuits.plots.history_figure(circuits.load("mini-python").training.history)
    """
    _check(history, ("step", "loss", "density", "lr"))
    steps = [row["step"] for row in history]
    validated = [row for row in history if row.get("val_loss") is not None]
    speeds = [row["tokens_per_s"] for row in history if row.get("tokens_per_s")]
    traces = [
        _line(steps, [row["loss"] for row in history], "train", FAINT, 1, "loss %{y:.3f} nats"),
        _line(steps, [row["density"] for row in history], "density", INK, 2, "density %{y:.3%}"),
        _line(steps, [row["lr"] for row in history], "learning rate", INK, 3, "learning rate %{y:.2e}"),
    ]
    if validated:
        values = [row["val_loss"] for row in validated]
        line = _line(
            [row["step"] for row in validated], values, "validation", POSITIVE, 1, "validation %{y:.3f} nats"
        )
        traces.append(
            line.update(mode="lines+markers", line={"width": 2.5}, marker={"size": 6}, cliponaxis=False)
        )
    said = [f"loss {history[-1]['loss']:.3f}", f"density {history[-1]['density']:.2%}"]
    said += [f"validation {validated[-1]['val_loss']:.3f}"] if validated else []
    said += [f"{median(speeds):,.0f} tokens/s"] if speeds else []
    figure = _panels(traces, [("loss (nats)", 0.52), ("density", 0.24), ("learning rate", 0.24)])
    figure.update_layout(**base_layout(title=title, subtitle=" · ".join(said), height=600))
    figure.update_layout(yaxis2={"type": "log", "dtick": "D2", "tickformat": ".2~%"})
    return figure


@plot.register
def _of_training(training: Training, *, title: str = "Training") -> go.Figure:
    """`history_figure` of a run's history."""
    return history_figure(training.history, title=title)


def pruning_figure(
    history: Sequence[Row], *, title: str = "Pruning", target: int | float | None = None
) -> go.Figure:
    """Loss and open gates of a pruning run over its steps.

    `history` holds one mapping a logged step with keys step, task_loss (of the run's objective) and n_open. `target`,
    where given, is drawn as the loss to stay under. Raises ValueError when the history is empty or lacks a key.

    Examples:
        >>> history = circuits.load("quotes-128").circuit.history
        >>> figure = circuits.plots.pruning_figure(history, target=0.04)
    """
    _check(history, ("step", "task_loss", "n_open"))
    steps = [row["step"] for row in history]
    traces = [
        _line(steps, [row["task_loss"] for row in history], "loss", POSITIVE, 1, "loss %{y:.3f}"),
        _line(steps, [row["n_open"] for row in history], "open gates", INK, 2, "%{y:,} open gates"),
    ]
    if target is not None:
        ends = [steps[0], steps[-1]]
        line = _line(ends, [target, target], f"target {target:g}", NEGATIVE, 1, "target %{y:.3f}")
        traces.append(line.update(line={"dash": "dash", "width": 1.5}))
    said = f"loss {history[-1]['task_loss']:.3f} · {history[-1]['n_open']:,} open gates"
    figure = _panels(traces, [("loss of the objective", 0.5), ("open gates", 0.5)])
    figure.update_layout(**base_layout(title=title, subtitle=said, height=480))
    counts = [row["n_open"] for row in history]
    if min(counts) > 0 and max(counts) > 30 * min(counts):
        figure.update_layout(yaxis2={"type": "log", "dtick": "D2", "tickformat": ","})
    return figure


def _check(history: Sequence[Row], keys: Sequence[str]) -> None:
    if not history:
        raise ValueError("history: got no rows; expected one mapping for each logged step. Was anything run?")
    for i, row in enumerate(history):
        missing = [key for key in keys if not is_number(row.get(key))]
        if missing:
            raise ValueError(
                f"history: row {i} lacks {missing}, it has {sorted(row)}; expected {list(keys)} in each, as numbers. "
                "Pass the history that the run returned."
            )


def _line(x: Sequence[Any], y: Sequence[Any], name: str, colour: str, panel: int, hover: str) -> go.Scatter:
    axis = "" if panel == 1 else str(panel)
    return go.Scatter(
        x=list(x),
        y=list(y),
        mode="lines",
        name=name,
        line={"color": colour, "width": 1.75},
        yaxis=f"y{axis}",
        hovertemplate=f"step %{{x:,}}: {hover}<extra></extra>",
        showlegend=panel == 1,
    )


def _panels(traces: Sequence[go.Scatter], panels: Sequence[tuple[str, float]]) -> go.Figure:
    """Panels from top to bottom on one axis of steps; each is (title, share of the height)."""
    figure = Picture(traces)
    top, room = 1.0, 1.0 - PANEL_GAP * (len(panels) - 1)
    grid = {"gridcolor": BAND, "zeroline": False, "linecolor": FAINT, "ticks": "outside", "tickcolor": FAINT}
    for i, (title, share) in enumerate(panels):
        bottom = max(0.0, top - room * share)
        figure.update_layout({f"yaxis{i + 1 if i else ''}": {"domain": [bottom, top], **grid}})
        figure.add_annotation(text=title, y=top, **_PANEL_TITLE)
        top = bottom - PANEL_GAP
    steps = traces[0].x
    figure.update_layout(
        xaxis={
            "title": {"text": "step", "standoff": 6},
            "anchor": f"y{len(panels)}" if len(panels) > 1 else "y",
            "tickformat": ",",
            "range": [steps[0], steps[-1]] if steps[0] < steps[-1] else None,
            **grid,
        },
        margin={"l": 64, "r": 28, "t": 104, "b": 52},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"},
    )
    return figure


_PANEL_TITLE: Mapping[str, Any] = {
    "x": 0,
    "xref": "paper",
    "xanchor": "left",
    "yref": "paper",
    "yanchor": "bottom",
    "yshift": 3,
    "showarrow": False,
    "font": {"size": 12, "color": INK},
}
