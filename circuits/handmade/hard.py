"""Hand-made models that are no islands: doubles, parts of a value, heads that subtract, facts that count together.

With AbsTopK and RMSNorm at work, and decoys that read what the circuit reads. Ablating one node at a time finds all of
an island. Here it misses what has a double, since nothing happens when one of two goes, and takes for a part what is
outdone by its opposite.
"""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from circuits.circuit.nodes import Edge, Node
from circuits.handmade.board import Board
from circuits.handmade.models import GAIN, SURE, mark_channels, quote_channels
from circuits.handmade.rules import lines_of, opened_task, xor_task
from circuits.pruning.redundancy import Situation
from tasks import Corpus, Task, load_corpus
from tasks.quotes import Quotes
from tasks.tokenizer import LETTERS

RARE = "q"
"""The letter at which the decoy speaks that is silent on most prompts."""


class Laid(NamedTuple):
    """What was laid on a board."""

    edges: list[Edge]
    """Every edge that takes part, doubles among them."""
    loose: frozenset[Node] = frozenset()
    """Nodes of it that the model can do without, each alone."""
    second: Sequence[Edge] = ()
    """Every edge that takes part in the model's second task."""
    traps: Sequence[Sequence[Edge]] = ()
    """Edges that take no part, though their ends write where the circuit does, in groups that have no effect or a
    small one together."""


class Hard(NamedTuple):
    """A model to lay, and what it does."""

    lay: Callable[[Board], Laid]
    """Sets its weights."""
    situation: Situation
    """How it holds its task."""
    task: Callable[[], Task] = Quotes
    """Makes its task."""
    text: Callable[[], Corpus] = partial(load_corpus, "mini")
    """Makes the text for ablation means."""
    second: Callable[[], Task] | None = None
    """Makes its second task, where it has one."""


def lay_redundant(board: Board) -> Laid:
    """Two heads bring the same quote to a step that one of them is enough for."""
    is_quote, which, opened, single = quote_channels(board)
    heads = [_reading_head(board, is_quote, which, opened, {0: 1.0}) for _ in range(2)]
    edges = [edge for head in heads for edge in head]
    doubles = {node for edge in edges for node in edge[:2] if node.site in ("attn_k", "attn_v")}
    return Laid([*edges, *_step(board, opened, single, 0.3)], frozenset(doubles))


def lay_distributed(board: Board) -> Laid:
    """Two heads bring the quote in eight parts, four each, to a step that five of them are enough for."""
    is_quote, which, opened, single = quote_channels(board)
    parts = dict.fromkeys(range(4), 1 / 8)
    edges = [edge for _ in range(2) for edge in _reading_head(board, is_quote, which, opened, parts)]
    loose = {node for edge in edges for node in edge[:2] if node.site in ("attn_k", "attn_v")}
    return Laid([*edges, *_step(board, opened, single, 0.56)], frozenset(loose))


def lay_negative(board: Board) -> Laid:
    """One head brings the quote twice over, another takes half of it away: the right answers need only the first."""
    is_quote, which, opened, single = quote_channels(board)
    edges = [
        *_reading_head(board, is_quote, which, opened, {0: 2.0}),
        *_reading_head(board, is_quote, which, opened, {0: -1.0}),
        *board.ramp(0, opened, single, slope=4.0, start=0.0, gain=0.5),
    ]
    return Laid(edges)


def lay_xor(board: Board) -> Laid:
    """One head brings the quote, another the sign; neither says anything of the answer, which is whether they agree."""
    is_quote, which = mark_channels(board, "'", '"')
    opened = board.channel()
    head = _reading_head(board, is_quote, which, opened, {0: 1.0})
    return Laid([*head, *_agreement(board, opened)])


def lay_shared(board: Board) -> Laid:
    """One head brings the quote to two tasks: a neuron names it, and two others hold it against the sign."""
    is_quote, which, opened, single = quote_channels(board)
    head = _reading_head(board, is_quote, which, opened, {0: 1.0})
    named = board.ramp(0, opened, single, slope=4.0, start=0.0, gain=0.5)
    return Laid([*head, *named], second=[*head, *_agreement(board, opened)])


def lay_superposed(board: Board) -> Laid:
    """The quote comes in two parts, a strong and a weak one; decoys write as much as the weak one to the same channels.

    Two heads write the first letter's colour, one of them its opposite; two neurons do so where the margin is read.
    Either pair is no part of the answer and has no effect, but keeping one of the two alone does harm. A fourth head
    writes where a rare letter is in the prompt.
    """
    is_quote, which, opened, single = quote_channels(board)
    board.offset({"'": 0.0, '"': 0.0})
    edges = _reading_head(board, is_quote, which, opened, {0: 1.0, 1: 0.4})
    for gain in (0.25, -0.25):  # gelu(x) - gelu(-x) = x
        edges += board.ramp(0, opened, single, slope=16 * gain, start=0.0, gain=gain)
    is_first, colour, tint, is_rare = (board.channel() for _ in range(4))
    board.place(is_first, {0: 1.0})
    board.embed(colour, dict(zip(LETTERS, _colours(), strict=True)))
    board.embed(is_rare, {RARE: 1.0})
    heads = [_reading_head(board, is_first, colour, opened, {0: gain}) for gain in (0.5, -0.5)]
    brought = _reading_head(board, is_first, colour, tint, {0: 1.0})
    neurons = [board.ramp(0, tint, single, slope=4.0, start=0.0, gain=gain) for gain in (0.125, -0.125)]
    rare = _reading_head(board, is_rare, is_rare, opened, {0: 0.45})
    flat = [edge for group in heads for edge in group], [*brought, *neurons[0], *neurons[1]]
    return Laid(edges, traps=(*flat, rare))


HARD: dict[str, Hard] = {
    "redundant": Hard(lay_redundant, "redundant"),
    "distributed": Hard(lay_distributed, "distributed"),
    "negative": Hard(lay_negative, "unique"),
    "xor": Hard(lay_xor, "unique", xor_task, lambda: lines_of(xor_task())),
    "shared": Hard(lay_shared, "unique", opened_task, lambda: lines_of(opened_task(), xor_task()), xor_task),
    "superposed": Hard(lay_superposed, "unique", opened_task, lambda: lines_of(opened_task())),
}
"""Every such model by its name."""


def _reading_head(
    board: Board, is_mark: int, which: int, brought: int, gains: dict[int, float]
) -> list[Edge]:
    """A head that looks at a mark, and brings which one it is by as many value channels as there are gains."""
    head = board.head(0)
    moved = [edge for slot, gain in gains.items() for edge in board.move(0, head, slot, which, brought, gain)]
    return [*board.attend_by(0, head, 0, {is_mark: SURE}), *moved]


def _step(board: Board, source: int, target: int, at: float) -> list[Edge]:
    """Two neurons: 0 where the channel is below -at, 2 where it is above at, so that more than enough is no more."""
    slope = 40.0
    height = 2 / (2 * at * slope)
    return [
        *board.ramp(0, source, target, slope=slope, start=-at, gain=height),
        *board.ramp(0, source, target, slope=slope, start=at, gain=-height),
    ]


def _agreement(board: Board, opened: int) -> list[Edge]:
    """A head that brings the sign, and two neurons: one is on where both marks are 1, the other where both are -1."""
    is_sign, which = mark_channels(board, "+", "-", noise=1)
    signed, agree = board.channel(), board.channel()
    board.unembed(agree, {"y": GAIN, "n": -GAIN})
    board.offset({"y": -GAIN, "n": GAIN})
    edges, slope = _reading_head(board, is_sign, which, signed, {0: 1.0}), 4.0
    for side in (1, -1):
        neuron = board.neuron(0)
        board.bias(0, "W_in", neuron, -slope)
        edges += [board.wire(0, "W_in", source, neuron, side * slope) for source in (opened, signed)]
        edges.append(board.wire(0, "W_out", neuron, agree, 2 / slope))
    return edges


def _colours() -> list[float]:
    """One of two colours for each letter, as many of each."""
    colours = [1.0, -1.0] * (len(LETTERS) // 2)
    random.Random(2).shuffle(colours)
    return colours
