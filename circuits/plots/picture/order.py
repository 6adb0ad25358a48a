"""Layered graph drawing: an order in each rank with few crossings, then positions with straight lines.

The method of Sugiyama, Tagawa and Toda (1981). Items of one rank that share a *body* stay next to one another
and move together. Nothing here knows about circuits, and nothing is random.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import TypeVar

import numpy as np
from scipy.optimize import isotonic_regression

from circuits.files import mean

SWEEPS = 16
"""Barycentre passes, alternately forwards and backwards."""
SWAP_LIMIT = 120
"""Items in the drawing above which neighbours are no longer swapped one pair at a time."""
RELAXATIONS = 80
LARGE = 1_000
"""Items from which sweeps and relaxations become fewer, in proportion: the time stays near linear."""


T = TypeVar("T", bound=Hashable)
"""Whatever is drawn: unique, hashable."""
Ranks = list[list[T]]
Joint = tuple[T, T, float]
"""A stretch of line between items of neighbouring ranks (lower first), and how hard it pulls straight."""
BodyOf = Callable[[T], Hashable]


def order(ranks: Ranks[T], joints: Sequence[Joint[T]], body: BodyOf[T]) -> tuple[Ranks[T], int]:
    """Reorder the items of each rank. Returns the ranks and the number of crossings that are left.

    The order inside a body is kept as given; `ranks` is not changed.
    """
    best = [_by_body(rank, {}, body) for rank in ranks]
    fewest = n_crossings(best, joints)
    current = best
    for sweep in range(_fewer(SWEEPS, ranks)):
        current = _sweep(current, joints, body, forward=sweep % 2 == 0)
        count = n_crossings(current, joints)
        if count < fewest:
            best, fewest = current, count
    if fewest and sum(map(len, ranks)) <= SWAP_LIMIT:
        best, fewest = _swap_neighbours(best, joints, body, fewest)
    return best, fewest


def _fewer(rounds: int, ranks: Ranks[T]) -> int:
    """As many rounds as a drawing of this size is given, at least four."""
    return max(4, rounds * LARGE // max(LARGE, sum(map(len, ranks))))


def n_crossings(ranks: Ranks[T], joints: Sequence[Joint[T]]) -> int:
    """Pairs of joints that cross."""
    index = {item: i for rank in ranks for i, item in enumerate(rank)}
    rank_of = {item: r for r, rank in enumerate(ranks) for item in rank}
    gaps: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for a, b, _ in joints:
        gaps[rank_of[a]].append((index[a], index[b]))
    return sum(_crossings_in_gap(np.array(ends)) for ends in gaps.values())


def _crossings_in_gap(ends: np.ndarray) -> int:
    """Pairs of lines whose ends stand in opposite orders; lines that share an end do not cross."""
    return _inversions(ends[np.lexsort((ends[:, 1], ends[:, 0])), 1])


def _inversions(values: np.ndarray) -> int:
    """Pairs that stand in falling order, by halves: about n log n steps."""
    half = len(values) // 2
    if half < 32:
        return int(np.triu(values[:, None] > values[None], 1).sum())
    left, right = values[:half], values[half:]
    no_larger = int(np.searchsorted(np.sort(left), right, side="right").sum())
    return _inversions(left) + _inversions(right) + half * len(right) - no_larger


def _sweep(ranks: Ranks[T], joints: Sequence[Joint[T]], body: BodyOf[T], *, forward: bool) -> Ranks[T]:
    """Sort every rank by the mean place of each item's neighbours in the rank just sorted."""
    behind: dict[T, list[T]] = defaultdict(list)
    for a, b, _ in joints:
        source, target = (a, b) if forward else (b, a)
        behind[target].append(source)
    place: dict[T, float] = {}
    done: Ranks = []
    for rank in ranks if forward else ranks[::-1]:
        own = {item: (i + 0.5) / len(rank) for i, item in enumerate(rank)}
        wanted = {
            item: mean([place[n] for n in behind[item]]) if behind[item] else own[item] for item in rank
        }
        done.append(_by_body(rank, wanted, body))
        place |= {item: (i + 0.5) / len(rank) for i, item in enumerate(done[-1])}
    return done if forward else done[::-1]


def _by_body(rank: list[T], wanted: Mapping[T, float], body: BodyOf[T]) -> list[T]:
    """Sort whole bodies by the mean of what their members want; ties keep their order."""
    bodies: dict[Hashable, list[T]] = defaultdict(list)
    for item in rank:
        bodies[body(item)].append(item)
    blocks = sorted(bodies.values(), key=lambda block: mean([wanted.get(item, 0.0) for item in block]))
    return [item for block in blocks for item in block]


def _swap_neighbours(
    ranks: Ranks[T], joints: Sequence[Joint[T]], body: BodyOf[T], fewest: int
) -> tuple[Ranks[T], int]:
    """Exchange neighbouring bodies as long as that removes crossings."""
    improved = True
    while improved and fewest:
        improved = False
        for r in range(len(ranks)):
            for i in range(len(_blocks(ranks[r], body)) - 1):
                blocks = _blocks(ranks[r], body)
                blocks[i], blocks[i + 1] = blocks[i + 1], blocks[i]
                trial = [*ranks[:r], [item for block in blocks for item in block], *ranks[r + 1 :]]
                count = n_crossings(trial, joints)
                if count < fewest:
                    ranks, fewest, improved = trial, count, True
    return ranks, fewest


def _blocks(rank: list[T], body: BodyOf[T]) -> list[list[T]]:
    return [list(block) for _, block in groupby(rank, key=body)]


def straighten(
    ranks: Ranks[T],
    joints: Sequence[Joint[T]],
    body: BodyOf[T],
    gap: Callable[[T, T], float],
) -> dict[T, float]:
    """A place for each item: lines as straight as the least `gap` between neighbours of one rank allows.

    Bodies are rigid. Alternates over ranks; in each, the least-squares places under the gaps are exact
    (isotonic regression).
    """
    neighbours: dict[T, list[tuple[T, float]]] = defaultdict(list)
    for a, b, pull in joints:
        neighbours[a].append((b, pull))
        neighbours[b].append((a, pull))
    place: dict[T, float] = {}
    offsets = [_offsets(rank, gap) for rank in ranks]
    for rank, offset in zip(ranks, offsets, strict=True):
        place |= dict(zip(rank, offset - offset.mean(), strict=True))
    for step in range(_fewer(RELAXATIONS, ranks)):
        for r in range(len(ranks))[:: 1 if step % 2 == 0 else -1]:
            _settle(ranks[r], offsets[r], neighbours, place, body)
    return place


def _offsets(rank: list[T], gap: Callable[[T, T], float]) -> np.ndarray:
    """Places of a rank packed as tightly as its gaps allow."""
    return np.cumsum([0.0, *(gap(a, b) for a, b in pairwise(rank))])


def _settle(
    rank: list[T],
    offset: np.ndarray,
    neighbours: Mapping[T, list[tuple[T, float]]],
    place: dict[T, float],
    body: BodyOf[T],
) -> None:
    """Move the bodies of one rank to where their lines want them, as far as their gaps allow."""
    blocks = _blocks(rank, body)
    starts = np.cumsum([0, *map(len, blocks)])
    wants, weights = [], []
    for block, start in zip(blocks, starts, strict=False):
        # An item that nothing pulls stays about where it is: the small weight also keeps the mean defined.
        pulls = [(place[item] - offset[start + i], 0.05) for i, item in enumerate(block)]
        for i, item in enumerate(block):
            pulls += [(place[other] - offset[start + i], pull) for other, pull in neighbours.get(item, ())]
        total = sum(pull for _, pull in pulls)
        wants.append(sum(want * pull for want, pull in pulls) / total)
        weights.append(total)
    shifts = isotonic_regression(wants, weights=weights).x if wants else []
    for block, start, shift in zip(blocks, starts, shifts, strict=False):
        place |= {item: float(offset[start + i] + shift) for i, item in enumerate(block)}
