"""The picture of a circuit: tokens in, one mark a node, every weight a line, logits out."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import check_belongs
from circuits.circuit.nodes import STREAM, Node
from circuits.circuit.score import LOSS
from circuits.decompile.folded import answers_of
from circuits.decompile.words import sentences
from circuits.model.subject import Subject
from circuits.model.transformer import SparseTransformer
from circuits.plots import plot
from circuits.plots.picture.frame import SIDE_PX, Frame, make_frame
from circuits.plots.picture.furniture import annotations, shapes
from circuits.plots.picture.labels import key_hovers
from circuits.plots.picture.layout import Layout, Link, circuit_layout
from circuits.plots.picture.marks import (
    effect_of,
    line_hovers,
    line_style,
    line_traces,
    look_of,
    mark_diameters,
    node_trace,
    token_traces,
)
from circuits.plots.shown import Picture
from circuits.plots.style import DESIGN_WIDTH, FAINT, INK, base_layout
from tasks import Task

__all__ = ["circuit_figure", "circuit_picture"]

DEFAULT_D_HEAD = 16
MAX_ANSWERS = 8
"""Answers of a task up to which all their logits are drawn."""
LEAST_WIDTH = 860
"""Pixels below which labels would collide; a page scrolls instead (`layout.meta` tells it)."""
LEGEND = {
    "positive": "positive weight",
    "negative": "negative weight",
    "score": "q·k score pair",
    "gate": "expert's share, times a neuron",
    "residual": "same residual channel",
    "supports": "effect for the answer (measured)",
    "opposes": "effect against it (measured)",
}


@plot.register
def circuit_figure(
    circuit: Circuit,
    *,
    title: str | None = None,
    orientation: str = "horizontal",
    d_head: int | None = None,
    model: Subject | None = None,
    task: Task | None = None,
) -> go.Figure:
    """Draw a circuit with the forward pass from left to right (or `vertical`: from bottom to top).

    Marks are nodes, their area the rise of the criterion's loss when the node is ablated alone. Lines are weights,
    blue above zero and orange below, as wide as |weight| (token and logit lines have a scale of their own).
    Broken lines are effects that were measured, and no weights.
    Grey lines tie nodes on one residual channel; dotted ones pair the q and k channels that are multiplied,
    dashed ones lead from an expert to the neurons that its share multiplies.
    Pointing at a mark or a line tells the rest. `d_head` groups q, k and v channels into heads; without it,
    it is the circuit's own, and 16 where that is not known.

    The picture shows the weights that the circuit names; with `model` they are held against the model's first. With
    `task` the logits of its answers are there even where no weight leads to them; with both, a sentence about each
    node is under the pointer.

    Raises ValueError when `orientation` is unknown, when the circuit does not belong to `model`, or when there are q,
    k or v nodes and `d_head` does not divide the q channels.

    Examples:
        >>> found = circuits.load("quotes-128")
        >>> figure = circuits.plots.circuit_figure(found.circuit, model=found.model, task=found.task)
        >>> figure.write_html("circuit.html")
    """
    if orientation not in ("horizontal", "vertical"):
        raise ValueError(f"orientation: got {orientation!r}; expected 'horizontal' or 'vertical'.")
    if model is not None:
        check_belongs(model, circuit)
    width = _d_head(circuit, d_head)
    layout = circuit_picture(circuit, d_head=width, task=task)
    frame = make_frame(layout, is_horizontal=orientation == "horizontal")
    links = [link for link, _ in layout.lines]
    hovers = key_hovers(circuit, links, width, layout.place, node_words(circuit, model, task))
    diameters = mark_diameters(circuit, frame)
    traces = [
        *line_traces(layout, frame),
        line_hovers(layout, frame),
        *token_traces(layout, frame, hovers),
        node_trace(circuit, layout, frame, hovers, diameters),
        *_legend(links),
    ]
    figure = Picture(traces)
    figure.update_layout(
        **base_layout(
            title=circuit.task if title is None else title, subtitle=_subtitle(circuit), height=frame.height
        ),
        **frame.axes(),
        margin=dict(frame.margin),
        meta={"min_width": LEAST_WIDTH},
        shapes=shapes(layout, frame),
        annotations=[*annotations(layout, frame, diameters), _scales(circuit, links, frame)],
        legend={**_LEGEND_BOX, "y": 12 / frame.height},
    )
    return figure


def circuit_picture(circuit: Circuit, *, d_head: int | None = None, task: Task | None = None) -> Layout:
    """Where the picture has everything: the one layout of figure and page. Errors and arguments as `circuit_figure`.

    Examples:
        >>> layout = circuits.plots.circuit_picture(circuits.load("quotes-128").circuit)
        >>> len(layout.lines) > 0
        True
    """
    answers = [] if task is None else [task.tokenizer.token(answer) for answer in answers_of(task)]
    shown = answers if len(answers) <= MAX_ANSWERS else []
    return circuit_layout(circuit, d_head=_d_head(circuit, d_head), logits=shown)


def node_words(circuit: Circuit, model: Subject | None, task: Task | None) -> Mapping[Node, str]:
    """A sentence about each node; none without model and task, or for a model that none are made of."""
    if task is None or not isinstance(model, SparseTransformer) or model.config.arch != "decoder":
        return {}
    return sentences(model, circuit, task)


_LEGEND_BOX: Mapping[str, Any] = {
    "orientation": "h",
    "x": SIDE_PX / DESIGN_WIDTH,
    "xref": "container",
    "xanchor": "left",
    "yref": "container",
    "yanchor": "bottom",
    "font": {"size": 12, "color": INK},
    "itemsizing": "trace",
    "bgcolor": "rgba(0,0,0,0)",
}


def _d_head(circuit: Circuit, d_head: int | None) -> int:
    width = next((width for site, width in circuit.widths.items() if site.row.per_head), DEFAULT_D_HEAD)
    if d_head is None:
        d_head = circuit.d_head or min(DEFAULT_D_HEAD, width)
    is_needed = any(node.at.row.per_head for node in circuit.nodes)
    if d_head < 1 or (is_needed and width % d_head):
        raise ValueError(
            f"d_head: got {d_head}; expected a divisor of the {width} q channels of the circuit's model. "
            "Pass the d_head of its ModelConfig."
        )
    return d_head


def _subtitle(circuit: Circuit) -> str:
    loss = (
        ""
        if circuit.loss != circuit.loss
        else f" · {circuit.criterion.task_loss_said} {circuit.loss:.3f} nats"
    )
    plural = ("" if circuit.n_nodes == 1 else "s", "" if circuit.n_edges == 1 else "s")
    return (
        f"{circuit.n_nodes} node{plural[0]} · {circuit.n_edges} edge{plural[1]}{loss} · "
        f"everything else {circuit.ablation}-ablated"
    )


def _legend(links: Sequence[Link]) -> list[go.Scatter]:
    """A sample of each look that occurs; clicking one hides its lines."""
    looks = {look_of(link) for link in links}
    return [
        go.Scatter(
            x=[None],
            y=[None],
            mode="lines",
            name=LEGEND[look],
            legendgroup=look,
            showlegend=True,
            line=line_style(look, 4.0),
        )
        for look in LEGEND
        if look in looks
    ]


def _scales(circuit: Circuit, links: Sequence[Link], frame: Frame) -> dict[str, Any]:
    """One line below the picture on what widths and areas mean."""
    said = []
    for where, kinds in (("between nodes", ("weight",)), ("at tokens", STREAM)):
        weights = [abs(link.weight) for link in links if link.kind in kinds]
        said += [f"{max(weights):.2f} {where}"] if weights else []
    widths = [f"Line width: |weight|, at most {' and '.join(said)}."] if said else []
    sizes = [abs(link.weight) for link in links if link.kind == "effect"]
    widths += (
        [f"Line width: measured effect on the margin, at most {max(sizes):.2f} logits."] if sizes else []
    )
    effects = [effect for effect in (effect_of(circuit, node) for node in circuit.nodes) if effect == effect]
    asked = circuit.criterion
    area = f"Mark area: rise of the {LOSS[asked.objective]} when that node alone is ablated, at most"
    some = " White: not measured." if len(effects) < len(circuit.nodes) else ""
    areas = [f"{area} {max(effects):.2f}{asked.unit}.{some}"] if effects else []
    return {
        "text": "<br>".join(widths + areas),
        "align": "left",
        "font": {"size": 11, "color": FAINT},
        "showarrow": False,
        "xref": "paper",
        "x": 0,
        "xanchor": "left",
        "xshift": SIDE_PX - frame.margin["l"],
        "yref": "paper",
        "y": 0,
        "yanchor": "top",
        "yshift": -10,
    }
