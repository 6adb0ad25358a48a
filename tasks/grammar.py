"""Mini-Python: a small grammar of one-line statements in which closing quotes and brackets can be foretold.

A string ends with the quote that opened it. A list of depth 1 ends with `]`; a list of depth 2 holds its
inner list last and so ends with `]]`: at the close, depth alone decides. Everything else is there so that a
model trained on the text has more to do than these two things.
"""

import random
from dataclasses import dataclass

from tasks.tokenizer import DIGITS, LETTERS

QUOTES = ("'", '"')
FUNCTIONS = ("abs", "len", "max", "min", "pow", "sum", "print", "range", "round", "sorted")
MAX_NAME, MAX_CONTENT, MAX_ELEMENTS = 3, 8, 6
MAX_LINE_TOKENS = 37
"""No line of the grammar is longer, its newline included, while lists keep to MAX_ELEMENTS elements."""

# Cumulative shares of the line kinds: strings and lists 35 % each, the other three 10 % each.
_STRING, _LIST, _CALL, _TUPLE = 0.35, 0.70, 0.80, 0.90
_CONTENT = LETTERS * 3 + DIGITS + " " * 8
_RECENT = 3


@dataclass(frozen=True, kw_only=True)
class StringLine:
    """`name = 'content'`."""

    name: str
    """The variable assigned to."""
    quote: str
    """`'` or `"`."""
    content: str
    """1 to 8 letters, digits and spaces."""

    @property
    def prompt(self) -> str:
        """The line up to, not including, its closing quote."""
        return f"{self.name} = {self.quote}{self.content}"

    @property
    def closer(self) -> str:
        """The token that closes it."""
        return self.quote


@dataclass(frozen=True, kw_only=True)
class ListLine:
    """`name = [7, 4, 2]`, or `name = [7, [4, 2]]` where `inner` is 1."""

    name: str
    """The variable assigned to."""
    elements: tuple[str, ...]
    """Numbers, in order, of both depths."""
    inner: int | None
    """Index of the element that opens the inner list; None for a list of depth 1."""

    @property
    def prompt(self) -> str:
        """The line up to, not including, its closing bracket."""
        marked = [f"[{e}" if i == self.inner else e for i, e in enumerate(self.elements)]
        return f"{self.name} = [{', '.join(marked)}"

    @property
    def closer(self) -> str:
        """The token that closes it."""
        return "]" if self.inner is None else "]]"


def n_tokens(text: str) -> int:
    """Length of mini-Python text in tokens, without the cost of tokenizing it."""
    return len(text) - text.count("]]")


def draw_name(rng: random.Random) -> str:
    """A variable name of 1 to 3 letters."""
    return "".join(rng.choices(LETTERS, k=1 + int(rng.random() * MAX_NAME)))


def draw_number(rng: random.Random) -> str:
    """One digit in 7 of 10 cases, else two."""
    if rng.random() < 0.7:
        return DIGITS[int(rng.random() * 10)]
    return str(10 + int(rng.random() * 90))


def draw_string(rng: random.Random) -> StringLine:
    """An assignment of a string in either quote."""
    content = "".join(rng.choices(_CONTENT, k=1 + int(rng.random() * MAX_CONTENT)))
    return StringLine(name=draw_name(rng), quote=QUOTES[rng.random() < 0.5], content=content)


def draw_list(rng: random.Random, max_elements: int = MAX_ELEMENTS) -> ListLine:
    """An assignment of a list of 1 to `max_elements` numbers, of depth 1 or 2 with equal chance."""
    n = 1 + int(rng.random() * max_elements)
    elements = tuple(draw_number(rng) for _ in range(n))
    # Depth is drawn after the length, so that the number of elements tells nothing about it.
    inner = int(rng.random() * n) if rng.random() < 0.5 else None
    return ListLine(name=draw_name(rng), elements=elements, inner=inner)


def draw_lines(rng: random.Random, n: int, *, max_elements: int = MAX_ELEMENTS) -> list[str]:
    """`n` lines without their newlines; calls, tuples and sums take names from the lines just before them."""
    lines: list[str] = []
    recent: list[str] = []
    for _ in range(n):
        kind = rng.random()
        if kind < _LIST:
            line = draw_string(rng) if kind < _STRING else draw_list(rng, max_elements)
            name = line.name
            lines.append(line.prompt + line.closer)
        else:
            name = draw_name(rng)
            lines.append(f"{name} = {_draw_expression(rng, kind, recent)}")
        recent = [*recent[1 - _RECENT :], name]
    return lines


def _draw_expression(rng: random.Random, kind: float, recent: list[str]) -> str:
    if kind < _CALL:
        arguments = [_draw_atom(rng, recent) for _ in range(1 + int(rng.random() * 2))]
        return f"{rng.choice(FUNCTIONS)}({', '.join(arguments)})"
    if kind < _TUPLE:
        return f"({_draw_atom(rng, recent)}, {_draw_atom(rng, recent)})"
    operands = [_draw_operand(rng, recent) for _ in range(2 + int(rng.random() * 2))]
    text = operands[0]
    for operand in operands[1:]:
        text += f" {'+-*'[int(rng.random() * 3)]} {operand}"
    return text


def _draw_operand(rng: random.Random, recent: list[str]) -> str:
    if recent and rng.random() < 0.6:
        return recent[int(rng.random() * len(recent))]
    return draw_number(rng)


def _draw_atom(rng: random.Random, recent: list[str]) -> str:
    if rng.random() < 0.3:
        line = draw_string(rng)
        return f"{line.quote}{line.content}{line.quote}"
    return _draw_operand(rng, recent)
