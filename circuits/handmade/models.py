"""Six circuits compiled by hand, each laid on a board: quotes, brackets, induction, copying, majority, sums.

A layer function sets the weights of one circuit and returns its edges. Every part of each is needed: without
any single node or edge the task fails. That makes the circuit the only 1-minimal one within reach.
"""

import random

from circuits.circuit.nodes import Edge
from circuits.handmade.board import Board
from circuits.handmade.rules import COPIED, NAMES, SEATS
from tasks.tokenizer import DIGITS, LETTERS

SURE = 8.0
"""Nats by which the attention score of the right key exceeds the others."""
GAIN = 6.0
"""Nats by which a logit moves for one residual unit."""


def lay_quotes(board: Board) -> list[Edge]:
    """A head looks at the quote and reads which one it is; one neuron decides.

    Letters and digits carry that same channel at random, so a head that looks elsewhere reads noise.
    """
    layer, head = 0, board.head(0)
    is_quote, which, opened, single = quote_channels(board)
    return [
        *board.attend_by(layer, head, 0, {is_quote: SURE}),
        *board.move(layer, head, 1, which, opened),
        *board.ramp(layer, opened, single, slope=4.0, start=0.0, gain=0.5),
    ]


def quote_channels(board: Board) -> tuple[int, int, int, int]:
    """Channels for: is a quote; which quote (noise at other tokens); which one was found; it was the single one."""
    is_quote, which = mark_channels(board, "'", '"')
    opened, single = board.channel(), board.channel()
    board.unembed(single, {"'": GAIN, '"': -GAIN})
    board.offset({"'": -GAIN, '"': GAIN})
    return is_quote, which, opened, single


def mark_channels(board: Board, mark: str, other: str, *, noise: int = 0) -> tuple[int, int]:
    """Channels for: is one of two marks; which of them, 1 or -1 (at other tokens noise drawn from a seed)."""
    is_mark, which = board.channel(), board.channel()
    rng = random.Random(noise)
    board.embed(is_mark, {mark: 1.0, other: 1.0})
    board.embed(which, {text: rng.choice((-1.0, 1.0)) for text in (*LETTERS, *DIGITS, " ", "=")})
    board.embed(which, {mark: 1.0, other: -1.0})
    return is_mark, which


def lay_brackets(board: Board) -> list[Edge]:
    """A head averages open brackets over the context; where the mean is high, a neuron asks for two."""
    layer, head = 0, board.head(0)
    bracket, depth, deep = (board.channel() for _ in range(3))
    board.embed(bracket, {"[": 1.0, "]": -1.0, "]]": -2.0})
    board.unembed(deep, {"]]": GAIN, "]": -GAIN})
    board.offset({"]]": -GAIN, "]": GAIN})
    return [
        *board.move(layer, head, 0, bracket, depth, gain=10.0),
        *board.ramp(layer, depth, deep, slope=20.0, start=1.15, gain=0.3),
    ]


def lay_induction(board: Board) -> list[Edge]:
    """K-composition: one head tells each value the name before it, the next finds the value by that name."""
    first, second = board.head(0), board.head(1)
    is_name, recent, value, found = (board.channel() for _ in range(4))
    name, before = ([board.channel() for _ in range(3)] for _ in range(2))
    board.embed(is_name, dict.fromkeys(NAMES, 1.0))
    board.place(recent, {i: i / 10 for i in range(board.config.n_ctx)})
    for bit in range(3):
        board.embed(name[bit], {text: _sign(i, bit) for i, text in enumerate(NAMES)})
    board.embed(value, {"(": 1.0, ")": -1.0})
    board.unembed(found, {"(": GAIN, ")": -GAIN})
    edges = board.attend_by(0, first, 0, {is_name: 30.0, recent: 40.0})
    for bit in range(3):
        edges += board.move(0, first, 1 + bit, name[bit], before[bit])
        edges += board.match(1, second, bit, name[bit], before[bit], SURE)
    return edges + board.move(1, second, 3, value, found, gain=3.0)


def lay_copy(board: Board) -> list[Edge]:
    """A head looks at position 0 and carries the two bits of the letter there."""
    layer, head = 0, board.head(0)
    is_first = board.channel()
    board.place(is_first, {0: 1.0})
    edges = board.attend_by(layer, head, 0, {is_first: SURE})
    for bit in range(2):
        read, written = board.channel(), board.channel()
        code = {text: _sign(i, bit) for i, text in enumerate(COPIED)}
        board.embed(read, code)
        board.unembed(written, {text: GAIN / 2 * sign for text, sign in code.items()})
        edges += board.move(layer, head, 1 + bit, read, written)
    return edges


def lay_majority(board: Board) -> list[Edge]:
    """Three heads look at one seat each; their votes add up in one channel."""
    vote, tally = board.channel(), board.channel()
    board.embed(vote, {"+": 1.0, "-": -1.0})
    board.unembed(tally, {"+": GAIN / 2, "-": -GAIN / 2})
    edges: list[Edge] = []
    for seat in SEATS:
        head, sits = board.head(0), board.channel()
        board.place(sits, {seat: 1.0})
        edges += board.attend_by(0, head, 0, {sits: SURE})
        edges += board.move(0, head, 1, vote, tally)
    return edges


def lay_modular(board: Board) -> list[Edge]:
    """A head averages the digits; pairs of neurons make steps at 10 and at 20 that take ten off the sum."""
    layer, head = 0, board.head(0)
    digit, total = board.channel(), board.channel()
    board.embed(digit, {text: i / 10 for i, text in enumerate(DIGITS)})
    # -(c - r)^2 is, but for a term that all c share, 2 c r - c^2.
    board.unembed(total, {text: 2 * GAIN * c * 10 for c, text in enumerate(DIGITS)})
    board.offset({text: -GAIN * c * c for c, text in enumerate(DIGITS)})
    # Six tokens and the sink, a seventh each.
    edges = board.move(layer, head, 0, digit, total, gain=7.0)
    slope, half = 120.0, 0.025
    for ten in (1, 2):
        for sign in (1, -1):
            start, gain = ten - 0.05 - sign * half, -sign / (slope * 2 * half)
            edges += board.ramp(layer, total, total, slope=slope, start=start, gain=gain)
    return edges


def _sign(code: int, bit: int) -> float:
    return 1.0 if code >> bit & 1 else -1.0
