"""Layered graph drawing: an order in each rank with few crossings, then positions with straight lines.

The method of Sugiyama, Tagawa and Toda (1981). Items of one rank that share a *body* stay next to one another
and move together. Nothing here knows about circuits, and nothing is random. Inside, an item is its number.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
from scipy.optimize import isotonic_regression

SWEEPS = 16
"""Barycentre passes, alternately forwards and backwards."""
SWAP_LIMIT = 120
"""Items in the drawing above which neighbours are no longer swapped one pair at a time."""
RELAXATIONS = 80
LARGE = 4_000
"""Items from which sweeps and relaxations become fewer, in proportion: the time stays near linear."""
REST = 0.05
"""How hard an item is held where it is: one that nothing pulls stays about there."""


T = TypeVar("T", bound=Hashable)
"""Whatever is drawn: unique, hashable."""
Ranks = list[list[T]]
Joint = tuple[T, T, float]
"""A stretch of line between items of neighbouring ranks (lower first), and how hard it pulls straight."""
BodyOf = Callable[[T], Hashable]
Numbers = np.ndarray
"""Numbers of items, bodies or joints."""


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """What is drawn, in numbers."""

    ranks: list[Numbers]
    "Items of each rank, in order."
    body: Numbers
    "Of each item."
    ends: tuple[Numbers, Numbers]
    "Lower and upper item of each joint."
    pull: np.ndarray
    "Of each joint."
    at: tuple[list[Numbers], list[Numbers]]
    "For each rank the joints whose lower end, and those whose upper end, stands in it."

    @classmethod
    def of(cls, ranks: Ranks[T], joints: Sequence[Joint[T]], body: BodyOf[T]) -> "_Graph":
        """Items numbered as they come, rank after rank."""
        number = {item: i for i, item in enumerate(item for rank in ranks for item in rank)}
        bodies: dict[Hashable, int] = {}
        rank_of = np.repeat(np.arange(len(ranks)), [len(rank) for rank in ranks])
        lower = np.array([number[a] for a, _, _ in joints], dtype=int)
        upper = np.array([number[b] for _, b, _ in joints], dtype=int)
        below, above = (_groups(rank_of[end], len(ranks)) for end in (lower, upper))
        return cls(
            ranks=_groups(rank_of, len(ranks)),
            body=np.array([bodies.setdefault(body(item), len(bodies)) for item in number], int),
            ends=(lower, upper),
            pull=np.array([joint[2] for joint in joints], float),
            at=(below, above),
        )

    def index(self, ranks: Sequence[Numbers]) -> Numbers:
        """How many stand before each item in its rank."""
        index = np.empty(len(self.body), int)
        for rank in ranks:
            index[rank] = np.arange(len(rank))
        return index


def _groups(of: Numbers, n: int) -> list[Numbers]:
    """Where each of n groups has its members, in order."""
    starts = np.searchsorted(np.sort(of), np.arange(1, n))
    return np.split(np.argsort(of, kind="stable"), starts)[:n]


def order(ranks: Ranks[T], joints: Sequence[Joint[T]], body: BodyOf[T]) -> tuple[Ranks[T], int]:
    """Reorder the items of each rank. Returns the ranks and the number of crossings that are left.

    The order inside a body is kept as given; `ranks` is not changed.
    """
    best, fewest = _ordered(_Graph.of(ranks, joints, body))
    items = [item for rank in ranks for item in rank]
    return [[items[i] for i in rank] for rank in best], fewest


def _ordered(graph: _Graph) -> tuple[list[Numbers], int]:
    best = [_by_body(graph, rank, np.zeros(len(rank))) for rank in graph.ranks]
    fewest = _n_crossings(graph, best)
    current = best
    for sweep in range(_fewer(SWEEPS, graph)):
        current = _sweep(graph, current, forward=sweep % 2 == 0)
        count = _n_crossings(graph, current)
        if count < fewest:
            best, fewest = current, count
    if fewest and len(graph.body) <= SWAP_LIMIT:
        best, fewest = _swap_neighbours(graph, best, fewest)
    return best, fewest


def _fewer(rounds: int, graph: _Graph) -> int:
    """As many rounds as a drawing of this size is given, at least four."""
    return max(4, rounds * LARGE // max(LARGE, len(graph.body)))


def n_crossings(ranks: Ranks[T], joints: Sequence[Joint[T]]) -> int:
    """Pairs of joints that cross."""
    graph = _Graph.of(ranks, joints, lambda item: item)
    return _n_crossings(graph, graph.ranks)


def _n_crossings(graph: _Graph, ranks: Sequence[Numbers]) -> int:
    index, (lower, upper) = graph.index(ranks), graph.ends
    ends = np.stack([index[lower], index[upper]], axis=1)
    return sum(_crossings_in_gap(ends[gap]) for gap in graph.at[0] if len(gap) > 1)


def _crossings_in_gap(ends: np.ndarray) -> int:
    """Pairs of lines whose ends stand in opposite orders; lines that share an end do not cross."""
    return _inversions(ends[np.lexsort((ends[:, 1], ends[:, 0])), 1])


def _inversions(values: Numbers) -> int:
    """Pairs that stand in falling order, by halves: about n log n steps."""
    half = len(values) // 2
    if half < 32:
        return int(np.triu(values[:, None] > values[None], 1).sum())
    left, right = values[:half], values[half:]
    no_larger = int(np.searchsorted(np.sort(left), right, side="right").sum())
    return _inversions(left) + _inversions(right) + half * len(right) - no_larger


def _sweep(graph: _Graph, ranks: Sequence[Numbers], *, forward: bool) -> list[Numbers]:
    """Sort every rank by the mean place of each item's neighbours in the rank just sorted."""
    behind, here = graph.ends if forward else graph.ends[::-1]
    place, n = np.zeros(len(graph.body)), len(graph.body)
    done = list(ranks)
    for r in range(len(ranks))[:: 1 if forward else -1]:
        rank, joints = ranks[r], graph.at[forward][r]
        of = np.bincount(here[joints], minlength=n)[rank]
        total = np.bincount(here[joints], weights=place[behind[joints]], minlength=n)[rank]
        done[r] = _by_body(graph, rank, np.where(of > 0, total / np.maximum(of, 1), _even(rank)))
        place[done[r]] = _even(rank)
    return done


def _even(rank: Numbers) -> np.ndarray:
    """Places between 0 and 1, all the same way apart."""
    return (np.arange(len(rank)) + 0.5) / max(1, len(rank))


def _by_body(graph: _Graph, rank: Numbers, wanted: np.ndarray) -> Numbers:
    """Sort whole bodies by the mean of what their members want; ties keep their order."""
    _, first, member = np.unique(graph.body[rank], return_index=True, return_inverse=True)
    mean = np.bincount(member, weights=wanted) / np.maximum(np.bincount(member), 1)
    standing = np.empty(len(first), int)
    standing[np.lexsort((first, mean))] = np.arange(len(first))
    return rank[np.argsort(standing[member], kind="stable")]


def _swap_neighbours(graph: _Graph, ranks: list[Numbers], fewest: int) -> tuple[list[Numbers], int]:
    """Exchange neighbouring bodies as long as that removes crossings."""
    improved = True
    while improved and fewest:
        improved = False
        for r in range(len(ranks)):
            for i in range(len(_blocks(graph, ranks[r])) - 1):
                blocks = _blocks(graph, ranks[r])
                blocks[i], blocks[i + 1] = blocks[i + 1], blocks[i]
                trial = [*ranks[:r], np.concatenate(blocks), *ranks[r + 1 :]]
                count = _n_crossings(graph, trial)
                if count < fewest:
                    ranks, fewest, improved = trial, count, True
    return ranks, fewest


def _blocks(graph: _Graph, rank: Numbers) -> list[Numbers]:
    """The bodies of a rank, one after the other."""
    return np.split(rank, np.flatnonzero(np.diff(graph.body[rank])) + 1)


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
    graph = _Graph.of(ranks, joints, body)
    place = np.zeros(len(graph.body))
    settled = [_Rank.of(graph, r, _offsets(rank, gap)) for r, rank in enumerate(ranks) if rank]
    for one in settled:
        place[one.items] = one.offset - one.offset.mean()
    for step in range(_fewer(RELAXATIONS, graph)):
        for one in settled[:: 1 if step % 2 == 0 else -1]:
            place[one.items] = one.settle(place)
    return dict(zip((item for rank in ranks for item in rank), place.tolist(), strict=True))


def _offsets(rank: list[T], gap: Callable[[T, T], float]) -> np.ndarray:
    """Places of a rank packed as tightly as its gaps allow."""
    return np.cumsum([0.0, *(gap(a, b) for a, b in pairwise(rank))])


@dataclass(frozen=True, kw_only=True)
class _Rank:
    """One rank and all that pulls at it."""

    items: Numbers
    offset: np.ndarray
    "Of each item, when all are packed tightly."
    block: Numbers
    "Number of each item's body in this rank."
    pulled: Numbers
    "Place in the rank of what each pull moves."
    other: Numbers
    "Item at the other end of each pull."
    pull: np.ndarray
    total: np.ndarray
    "Pull at each body."

    @classmethod
    def of(cls, graph: _Graph, r: int, offset: np.ndarray) -> "_Rank":
        """Rank number r, whose items are held at rest as well."""
        items, (lower, upper), (below, above) = graph.ranks[r], graph.ends, (at[r] for at in graph.at)
        index = graph.index(graph.ranks)
        block = np.repeat(np.arange(n := len(_blocks(graph, items))), [*map(len, _blocks(graph, items))])
        pulled = np.concatenate([np.arange(len(items)), index[lower[below]], index[upper[above]]])
        pull = np.concatenate([np.full(len(items), REST), graph.pull[below], graph.pull[above]])
        return cls(
            items=items,
            offset=offset,
            block=block,
            pulled=pulled,
            other=np.concatenate([items, upper[below], lower[above]]),
            pull=pull,
            total=np.bincount(block[pulled], weights=pull, minlength=n),
        )

    def settle(self, place: np.ndarray) -> np.ndarray:
        """Where the lines want the bodies of this rank, as far as their gaps allow."""
        want = (place[self.other] - self.offset[self.pulled]) * self.pull
        wants = np.bincount(self.block[self.pulled], weights=want, minlength=len(self.total)) / self.total
        return self.offset + isotonic_regression(wants, weights=self.total).x[self.block]
