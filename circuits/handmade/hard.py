"""Hand-made models that are not islands: a part that is there twice, a value spread over many, a head that subtracts.

All close quotes, as `lay_quotes` does, and end in a step or a ramp that decides. With AbsTopK and RMSNorm at work, and
decoys that read what the circuit reads. Ablating one node at a time finds all of an island; here it misses what has a
double, since nothing happens when one of two goes.
"""

from collections.abc import Callable
from typing import NamedTuple

from circuits.circuit.nodes import Edge, Node
from circuits.handmade.board import Board
from circuits.handmade.models import SURE, quote_channels
from circuits.pruning.redundancy import Situation


class Laid(NamedTuple):
    """What was laid on a board."""

    edges: list[Edge]
    """Every edge that takes part, doubles among them."""
    loose: set[Node]
    """Nodes of it that the model can do without, each alone."""


def lay_redundant(board: Board) -> Laid:
    """Two heads bring the same quote to a step that one of them is enough for."""
    is_quote, which, opened, single = quote_channels(board)
    heads = [_reading_head(board, is_quote, which, opened, {0: 1.0}) for _ in range(2)]
    edges = [edge for head in heads for edge in head]
    doubles = {node for edge in edges for node in edge[:2] if node.site in ("attn_k", "attn_v")}
    return Laid([*edges, *_step(board, opened, single, 0.3)], doubles)


def lay_distributed(board: Board) -> Laid:
    """Two heads bring the quote in eight parts, four each, to a step that five of them are enough for."""
    is_quote, which, opened, single = quote_channels(board)
    parts = dict.fromkeys(range(4), 1 / 8)
    edges = [edge for _ in range(2) for edge in _reading_head(board, is_quote, which, opened, parts)]
    loose = {node for edge in edges for node in edge[:2] if node.site in ("attn_k", "attn_v")}
    return Laid([*edges, *_step(board, opened, single, 0.56)], loose)


def lay_negative(board: Board) -> Laid:
    """One head brings the quote twice over, another takes half of it away: the right answers need only the first."""
    is_quote, which, opened, single = quote_channels(board)
    edges = [
        *_reading_head(board, is_quote, which, opened, {0: 2.0}),
        *_reading_head(board, is_quote, which, opened, {0: -1.0}),
        *board.ramp(0, opened, single, slope=4.0, start=0.0, gain=0.5),
    ]
    return Laid(edges, set())


HARD: dict[str, tuple[Callable[[Board], Laid], Situation]] = {
    "redundant": (lay_redundant, "redundant"),
    "distributed": (lay_distributed, "distributed"),
    "negative": (lay_negative, "unique"),
}
"""What lays each model, and how it holds its task."""


def _reading_head(
    board: Board, is_quote: int, which: int, opened: int, gains: dict[int, float]
) -> list[Edge]:
    """A head that looks at the quote, and brings which one it is by as many value channels as there are gains."""
    head = board.head(0)
    moved = [edge for slot, gain in gains.items() for edge in board.move(0, head, slot, which, opened, gain)]
    return [*board.attend_by(0, head, 0, {is_quote: SURE}), *moved]


def _step(board: Board, source: int, target: int, at: float) -> list[Edge]:
    """Two neurons: 0 where the channel is below -at, 2 where it is above at, so that more than enough is no more."""
    slope = 40.0
    height = 2 / (2 * at * slope)
    return [
        *board.ramp(0, source, target, slope=slope, start=-at, gain=height),
        *board.ramp(0, source, target, slope=slope, start=at, gain=-height),
    ]
