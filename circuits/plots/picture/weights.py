"""Where the weight of a line is written on it, so that numbers and signs survive print."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import hypot
from typing import Any

from circuits.plots.picture.frame import CHARACTER_PX, Frame, curve
from circuits.plots.picture.labels import short_label
from circuits.plots.picture.layout import Layout, Link, Point
from circuits.plots.picture.marks import FIXED_WIDTHS
from circuits.plots.picture.ranks import Key
from circuits.plots.style import MINUS, NEGATIVE_TEXT, PAPER, POSITIVE

MAX_WEIGHTS = 40
"""Lines up to which weights are written at all."""
TRIES = (0.5, 0.4, 0.6, 0.3, 0.7, 0.22, 0.78)
"""Where along the line to write, in order of preference."""
HALF_WIDTH, HALF_HEIGHT = 15.0, 6.5
"""Of a written weight, in pixels, with room around it."""

Rect = tuple[float, float, float, float]
"""Left, right, bottom, top in pixels."""


def weight_labels(layout: Layout, frame: Frame, diameters: Mapping[Key, float]) -> list[dict[str, Any]]:
    """Annotations with the weights of lines; a weight with no free place is left to the hover text."""
    weighty = [i for i, (link, _) in enumerate(layout.lines) if link.kind not in FIXED_WIDTHS]
    if len(weighty) > MAX_WEIGHTS:
        return []
    points = [_dense(_pixels(curve(line), frame)) for _, line in layout.lines]
    taken = [rect for key, size in diameters.items() for rect in _node_rects(key, size, layout, frame)]
    texts = []
    # Straight lines first: they have fewest places where they are apart from others.
    for i in sorted(weighty, key=lambda i: abs(layout.lines[i][1][0][1] - layout.lines[i][1][-1][1]) > 0.5):
        link, line = layout.lines[i]
        others = [point for j, other in enumerate(points) if j != i for point in other]
        free = [spot for t in TRIES for spot in [_at(line, t)] if _is_free(spot, frame, others, taken)]
        if free:
            taken.append(_around(_pixels([free[0]], frame)[0], HALF_WIDTH, HALF_HEIGHT))
            texts.append(_text(link, frame, free[0]))
    return texts


def _node_rects(key: Key, diameter: float, layout: Layout, frame: Frame) -> list[Rect]:
    """What a mark and its label cover."""
    x, y = _pixels([layout.place[key]], frame)[0]
    reach, width = diameter / 2, CHARACTER_PX * len(short_label(key))
    if frame.is_horizontal:
        label = (x - width / 2, x + width / 2, y - reach - 16, y - reach)
    else:
        label = (x + reach, x + reach + width, y - HALF_HEIGHT, y + HALF_HEIGHT)
    return [_around((x, y), reach, reach), label]


def _is_free(spot: Point, frame: Frame, points: Sequence[Point], taken: Sequence[Rect]) -> bool:
    """Whether a weight written there covers no other line, mark or weight."""
    left, right, bottom, top = _around(_pixels([spot], frame)[0], HALF_WIDTH, HALF_HEIGHT)
    if any(left < x < right and bottom < y < top for x, y in points):
        return False
    return all(right < other[0] or other[1] < left or top < other[2] or other[3] < bottom for other in taken)


def _around(point: Point, half_width: float, half_height: float) -> Rect:
    return point[0] - half_width, point[0] + half_width, point[1] - half_height, point[1] + half_height


def _pixels(points: Sequence[Point], frame: Frame) -> list[Point]:
    scale = (frame.column_px, frame.row_px)
    x_scale, y_scale = scale if frame.is_horizontal else scale[::-1]
    return [(x * x_scale, y * y_scale) for x, y in (frame.xy(*point) for point in points)]


def _dense(points: Sequence[Point]) -> list[Point]:
    """Points at most a few pixels apart along the same line."""
    filled = [points[0]]
    for (x0, y0), (x1, y1) in pairwise(points):
        n = 1 + int(hypot(x1 - x0, y1 - y0) / HALF_HEIGHT)
        filled += [(x0 + (x1 - x0) * i / n, y0 + (y1 - y0) * i / n) for i in range(1, n + 1)]
    return filled


def _at(line: Sequence[Point], t: float) -> Point:
    """The point at the share `t` of the way along."""
    points = curve(line)
    goal = points[0][0] + t * (points[-1][0] - points[0][0])
    for (a0, c0), (a1, c1) in pairwise(points):
        if a0 <= goal <= a1 and a1 > a0:
            return goal, c0 + (c1 - c0) * (goal - a0) / (a1 - a0)
    return points[len(points) // 2]


def short_weight(weight: float) -> str:
    """A weight in few characters, which is zero only where the weight is."""
    places = "+.0f" if abs(weight) >= 100 else "+.2f" if abs(weight) >= 0.005 else "+.1g"
    return f"{weight:{places}}".replace("-", MINUS)


def _text(link: Link, frame: Frame, spot: Point) -> dict[str, Any]:
    x, y = frame.xy(*spot)
    return {
        "text": short_weight(link.weight),
        "font": {"size": 9, "color": POSITIVE if link.weight >= 0 else NEGATIVE_TEXT},
        "bgcolor": PAPER,
        "borderpad": 1,
        "opacity": 0.92,
        "x": x,
        "y": y,
    }
