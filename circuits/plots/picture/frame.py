"""The scale of the circuit picture: from places to plot coordinates, pixels and margins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from circuits.plots.picture.labels import GLOSS, short_label
from circuits.plots.picture.layout import Layout, Point
from circuits.plots.picture.ranks import is_input, is_token
from circuits.plots.style import DESIGN_WIDTH

ROW_PX = 64
"""Pixels from row to row where there is room; big circuits get less."""
TITLE_PX, HEADS_PX, UPRIGHT_HEADS_PX, LEGEND_PX, SIDE_PX = 78, 62, 104, 84, 22

CHARACTER_PX = 6.3
"""About the width of a character of a label."""
CURVE = 20
"""Points on the curve with which a line changes rows."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """How abstract places become plot coordinates and pixels."""

    is_horizontal: bool
    "Whether the forward pass runs left to right (else bottom to top)."
    row_px: float
    "Pixels for one unit across."
    column_px: float
    "Pixels for one unit along."
    plot_px: float
    "Extent of the plot area at right angles to the forward pass, in pixels."
    heads_px: int
    "Room for layer labels and column heads beside the plot area, in pixels."
    is_tight: bool
    "Whether column heads have to stand upright."
    height: int
    "Of the whole figure, in pixels."
    margin: Mapping[str, int]
    along: Point
    across: Point
    has_encoder: bool = False
    "Whether layers of an encoder stand beside those of a decoder."

    @property
    def largest_mark(self) -> float:
        """Diameter in pixels that still leaves neighbours apart."""
        return max(6.0, min(26.0, 0.6 * self.row_px, 0.5 * self.column_px))

    @property
    def has_labels(self) -> bool:
        """Whether there is room for a name at each mark."""
        if self.is_horizontal:
            return self.row_px >= 30 and self.column_px >= 44
        return self.row_px >= 60

    def xy(self, along: float, across: float) -> Point:
        """Plot coordinates of a place."""
        return (along, -across) if self.is_horizontal else (across, along)

    def axes(self) -> dict[str, Any]:
        """Layout settings of the two (invisible, zoomable) axes."""
        hidden = {"visible": False, "showgrid": False, "zeroline": False}
        x, y = zip(
            self.xy(self.along[0], self.across[0]), self.xy(self.along[1], self.across[1]), strict=True
        )
        return {"xaxis": {**hidden, "range": sorted(x)}, "yaxis": {**hidden, "range": sorted(y)}}

    def box(self, along: Point, across: Point) -> dict[str, float]:
        """Corners of a rectangle as plotly wants them."""
        (x0, y0), (x1, y1) = self.xy(along[0], across[0]), self.xy(along[1], across[1])
        return {"x0": min(x0, x1), "x1": max(x0, x1), "y0": min(y0, y1), "y1": max(y0, y1)}


def make_frame(layout: Layout, *, is_horizontal: bool) -> Frame:
    """Choose scale and margins for a layout."""
    return _horizontal(layout) if is_horizontal else _vertical(layout)


def _horizontal(layout: Layout) -> Frame:
    left, right = (SIDE_PX + _chip_px(layout, goes_in) for goes_in in (True, False))
    width = DESIGN_WIDTH - left - right
    along, across = widened(layout.along, 0.5), widened(layout.across, 0.75)
    rows = across[1] - across[0]
    # Up to about nine rows at full size; more rows come closer together, to a height that still fits a page.
    height = max(180.0, min(ROW_PX * rows, 300 + 30 * rows, 1100.0))
    along, across = _padded(along, width / 150), _padded(across, height / 84)
    column_px = width / (along[1] - along[0])
    is_tight = _is_tight(layout, column_px)
    heads = UPRIGHT_HEADS_PX if is_tight else HEADS_PX
    return Frame(
        is_horizontal=True,
        row_px=height / (across[1] - across[0]),
        column_px=column_px,
        plot_px=height,
        heads_px=heads,
        is_tight=is_tight,
        height=round(height) + TITLE_PX + heads + LEGEND_PX,
        margin={"l": left, "r": right, "t": TITLE_PX + heads, "b": LEGEND_PX},
        along=along,
        across=across,
        has_encoder=_has_encoder(layout),
    )


def _vertical(layout: Layout) -> Frame:
    heads = HEADS_PX + 66
    width = float(DESIGN_WIDTH - 2 * SIDE_PX - heads)
    along, across = widened(layout.along, 0.5), widened(layout.across, 0.75)
    height = min(2400.0, max(180.0, 74 * (along[1] - along[0])))
    along, across = _padded(along, height / 150), _padded(across, width / 120)
    return Frame(
        is_horizontal=False,
        row_px=width / (across[1] - across[0]),
        column_px=height / (along[1] - along[0]),
        plot_px=width,
        heads_px=heads,
        is_tight=False,
        height=round(height) + TITLE_PX + 8 + LEGEND_PX,
        margin={"l": SIDE_PX + heads, "r": SIDE_PX, "t": TITLE_PX + 8, "b": LEGEND_PX},
        along=along,
        across=across,
        has_encoder=_has_encoder(layout),
    )


def _is_tight(layout: Layout, column_px: float) -> bool:
    """Whether column heads set across would run into one another."""
    width = {
        column: CHARACTER_PX * max(len(column.name), len(GLOSS[column.name])) for column in layout.columns
    }
    return any(
        (b.along - a.along) * column_px < (width[a] + width[b]) / 2 for a, b in pairwise(layout.columns)
    )


def _has_encoder(layout: Layout) -> bool:
    """Whether columns of two stacks stand side by side."""
    return any(column.stack == "encoder" for column in layout.columns)


def widened(span: Point, pad: float) -> Point:
    """The span with `pad` more at both ends."""
    return span[0] - pad, span[1] + pad


def curve(line: Sequence[Point]) -> list[Point]:
    """The line as a smooth curve that never overshoots (monotone cubic), level at both ends."""
    points = [line[0]]
    slopes = [0.0, *(_slope(*triple) for triple in zip(line, line[1:], line[2:], strict=False)), 0.0]
    for (a0, c0), (a1, c1), s0, s1 in zip(line, line[1:], slopes, slopes[1:], strict=False):
        if a0 != a1 and abs(c0 - c1) > 1e-6:
            for i in range(1, CURVE):
                t = i / CURVE
                rise = t * t * (3 - 2 * t)
                bend = (a1 - a0) * t * (1 - t) * (s0 * (1 - t) - s1 * t)
                points.append((a0 + (a1 - a0) * t, c0 + (c1 - c0) * rise + bend))
        points.append((a1, c1))
    return points


def _slope(before: Point, here: Point, after: Point) -> float:
    """Slope at a point in between: the harmonic mean of both sides, level where they differ in sign."""
    left = (here[1] - before[1]) / (here[0] - before[0])
    right = (after[1] - here[1]) / (after[0] - here[0])
    return 2 * left * right / (left + right) if left * right > 0 else 0.0


def _padded(span: Point, least: float) -> Point:
    """The span, grown about its middle to `least` where it is shorter: few marks are not blown up."""
    return widened(span, max(0.0, least - (span[1] - span[0])) / 2)


def _chip_px(layout: Layout, goes_in: bool) -> int:
    ends = [key for key in layout.place if isinstance(key, str) and is_input(key) == goes_in]
    widths = [(7.8 if is_token(end) else 5.8) * len(short_label(end)) + 18 for end in ends]
    return round(max(widths, default=0))
