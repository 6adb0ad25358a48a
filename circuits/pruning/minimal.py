"""Dropping parts, nodes or edges, until no single one can go."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from circuits.circuit.nodes import Edge, Node
from circuits.circuit.score import Score

Part = TypeVar("Part", Node, Edge)
Solved = Callable[[list[Part]], Score | None]
"""The score of these parts if it meets the targets, else None."""
FINEST = 4
"""Size of the groups that ranked parts are thinned out by in the end."""


def minimal(parts: Sequence[Part], solved: Solved[Part], show: Callable[[int], None]) -> list[Part]:
    """Drop parts, cheapest first, while the rest meets the target; ends when no single one can go.

    What could not go alone seldom can after others went, so it is tried again only when nothing else is left to try.
    """
    parts = tried = sorted(parts)
    while True:
        without = {part: solved([p for p in parts if p != part]) for part in tried}
        losses = {part: score.loss for part, score in without.items() if score is not None}
        if not losses and tried == parts:
            return parts
        parts = _without_most(parts, sorted(losses, key=lambda part: (losses[part], part)), solved)
        tried = [part for part in parts if part in losses] or parts
        show(len(parts))


def thinned(ranked: Sequence[Part], solved: Solved[Part], finest: int = FINEST) -> list[Part]:
    """The parts, given best first, without most of those of low rank: groups of them, halved until they are small."""
    return _without_most(list(ranked), list(ranked)[::-1], solved, finest)


def _without_most(parts: list[Part], free: list[Part], solved: Solved[Part], finest: int = 1) -> list[Part]:
    """The parts without all of `free` if the rest meets the target, else half by half, down to `finest` parts."""
    gone = set(free)
    rest = [part for part in parts if part not in gone]
    if solved(rest):
        return rest
    if len(free) <= finest:
        return parts
    half = len(free) // 2
    parts = _without_most(parts, free[:half], solved, finest)
    return _without_most(parts, free[half:], solved, finest)
