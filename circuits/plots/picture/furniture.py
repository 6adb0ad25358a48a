"""What stands around the marks and lines: layer bands, head boxes, column heads, every text."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from circuits.circuit.nodes import Node
from circuits.model.sites import ROWS
from circuits.plots.picture.frame import CHARACTER_PX, Frame, widened
from circuits.plots.picture.labels import GLOSS, short_label
from circuits.plots.picture.layout import HEAD_STEP, Column, HeadBox, Layout, Point
from circuits.plots.picture.ranks import Key, is_input, is_token
from circuits.plots.picture.weights import weight_labels
from circuits.plots.style import BAND, BOX, FAINT, INK, MONO, PAPER

BAND_PAD = 0.44
BOX_PAD = 0.52
"""How far layer bands and head boxes reach beyond the marks in them, in steps and rows."""
TWO_LINES_PX = 48
"""From row to row, at least, where two lines below a mark leave the next one free."""


def shapes(layout: Layout, frame: Frame) -> list[dict[str, Any]]:
    """Layer bands and head boxes, drawn below everything else."""
    reach = frame.heads_px / frame.plot_px
    reach = 1 + reach if frame.is_horizontal else -reach
    bands = [
        {**_band(frame, columns, reach), "fillcolor": BAND, "line": {"width": 0}, "layer": "below"}
        for columns in _layers(layout)
    ]
    boxes = [
        {
            "type": "rect",
            **frame.box(widened(box.along, 0.31), widened(box.across, BOX_PAD)),
            "fillcolor": BOX,
            "line": {"width": 0},
            "layer": "below",
        }
        for box in layout.boxes
    ]
    return bands + boxes


def _layers(layout: Layout) -> list[list[Column]]:
    in_layers = [column for column in layout.columns if column.layer is not None]
    return [
        list(columns) for _, columns in groupby(in_layers, key=lambda column: (column.stack, column.layer))
    ]


def _band(frame: Frame, columns: list[Column], reach: float) -> dict[str, Any]:
    ends = (columns[0].along - BAND_PAD, columns[-1].along + BAND_PAD)
    if frame.is_horizontal:
        return {"type": "rect", "x0": ends[0], "x1": ends[1], "yref": "paper", "y0": 0, "y1": reach}
    return {"type": "rect", "y0": ends[0], "y1": ends[1], "xref": "paper", "x0": reach, "x1": 1}


def annotations(layout: Layout, frame: Frame, diameters: Mapping[Key, float]) -> list[dict[str, Any]]:
    """All the texts of the picture: layers, column heads, heads, tokens and, where there is room, nodes."""
    texts = [_layer_label(frame, columns) for columns in _layers(layout)]
    texts += _column_heads(layout, frame)
    texts += [text for box in layout.boxes for text in _head_label(frame, box)]
    texts += [_chip(key, frame, place) for key, place in layout.place.items() if isinstance(key, str)]
    if frame.has_labels:
        unfed = without_input(layout)
        constant = "<br><i>constant</i>" if frame.row_px >= TWO_LINES_PX else " = constant"
        texts += [
            _node_label(
                short_label(key) + (constant if key in unfed else ""), frame, layout.place[key], diameter
            )
            for key, diameter in diameters.items()
        ]
        texts += weight_labels(layout, frame, diameters)
    return [{"showarrow": False, **text} for text in texts]


def without_input(layout: Layout) -> set[Key]:
    """Nodes that nothing but a bias reaches; what the residual stream feeds counts once a circuit tells all of it."""
    links = [link for link, _ in layout.lines]
    if any(link.kind == "effect" for link in links):
        return set()  # faint effects are not drawn: nothing is known of what has none
    fed = {link.target for link in links if link.kind not in ("score", "gate")}
    tells_all = any(link.kind in ("shared", "position", "several") for link in links)
    nodes = [key for key in layout.place if isinstance(key, Node) and key not in fed]
    return {node for node in nodes if tells_all or ROWS[node.site].stream != "reads"}


def _layer_label(frame: Frame, columns: list[Column]) -> dict[str, Any]:
    start, end = columns[0].along - BAND_PAD, columns[-1].along + BAND_PAD
    word = "encoder " if columns[0].stack == "encoder" else "decoder " if frame.has_encoder else "layer "
    is_narrow = (end - start) * frame.column_px < (len(word) + 3) * CHARACTER_PX
    word = "" if is_narrow else word
    text = {"text": f"<b>{word}{columns[0].layer}</b>", "font": {"size": 12, "color": INK}}
    if frame.is_horizontal:
        place = {
            "x": start,
            "xanchor": "left",
            "xshift": 6,
            "yref": "paper",
            "y": 1,
            "yshift": frame.heads_px - 10,
        }
        return {**text, **place}
    place = {
        "xref": "paper",
        "x": 0,
        "xanchor": "center",
        "xshift": 14 - frame.heads_px,
        "y": (start + end) / 2,
    }
    return {**text, **place, "textangle": -90}


def _column_heads(layout: Layout, frame: Frame) -> list[dict[str, Any]]:
    """Site names; upright where they would run into one another, left out where even that is too dense."""
    if frame.column_px * HEAD_STEP < 10:
        return []
    heads = []
    for column in layout.columns:
        small = f"<span style='color:{FAINT};font-size:10px'><i>{GLOSS[column.name]}</i></span>"
        gloss = "" if frame.is_tight else f"<br>{small}"
        text = {"text": column.name + gloss, "font": {"size": 11, "color": INK}}
        if frame.is_horizontal:
            turn = {"textangle": -90, "font": {"size": 10, "color": INK}} if frame.is_tight else {}
            heads.append({**text, **turn, "x": column.along, "yref": "paper", "y": 1, "yanchor": "bottom"})
        else:
            place = {"xref": "paper", "x": 0, "xanchor": "right", "xshift": -6, "align": "right"}
            heads.append({**text, **place, "y": column.along})
    return heads


def _head_label(frame: Frame, box: HeadBox) -> list[dict[str, Any]]:
    height = (box.across[1] - box.across[0] + 2 * BOX_PAD) * frame.row_px
    if min(height, frame.row_px) < 20 or frame.column_px < 40:
        return []
    x, y = frame.xy(box.along[0] - 0.31, box.across[0] - BOX_PAD)
    if not frame.is_horizontal:
        x, y = frame.xy(box.along[1] + 0.31, box.across[0] - BOX_PAD)
    return [
        {
            "text": f"head {box.head}",
            "hovertext": _CHOOSES[box.is_cross],
            "font": {"size": 10, "color": FAINT},
            "x": x,
            "y": y,
            "xanchor": "left",
            "yanchor": "bottom" if frame.is_horizontal else "top",
        }
    ]


_CHOOSES = {
    False: "q·k chooses earlier positions;<br>v is what is carried from there",
    True: "q·k chooses positions of the source;<br>v is what is carried from there",
}
"""What a head does, by whether it looks at an encoder."""


def _chip(key: str, frame: Frame, place: Point) -> dict[str, Any]:
    """A token in a small frame, outside the line that starts or ends at it."""
    x, y = frame.xy(*place)
    if frame.is_horizontal:
        anchor = {"xanchor": "right" if is_input(key) else "left"}
    else:
        anchor = {"yanchor": "top" if is_input(key) else "bottom"}
    return {
        "text": short_label(key),
        "font": {"family": MONO, "size": 13, "color": INK} if is_token(key) else {"size": 11, "color": FAINT},
        "bgcolor": PAPER,
        "bordercolor": FAINT,
        "borderwidth": 1,
        "borderpad": 4,
        "x": x,
        "y": y,
        **anchor,
    }


def _node_label(label: str, frame: Frame, place: Point, diameter: float) -> dict[str, Any]:
    x, y = frame.xy(*place)
    reach = diameter / 2 + 2
    shift = (
        {"yshift": -reach, "yanchor": "top"} if frame.is_horizontal else {"xshift": reach, "xanchor": "left"}
    )
    ground = {"bgcolor": "rgba(255,255,255,0.55)", "borderpad": 0}
    return {"text": label, "font": {"size": 11, "color": INK}, "x": x, "y": y, **ground, **shift}
