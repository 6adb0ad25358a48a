"""Bracket depth: after `b = [7, [1, 4, 2` comes `]]`, after `b = [7, 31, 4, 2` comes `]`."""

import random
import re
from dataclasses import dataclass, field, replace

from tasks.base import Batch, Pair, Split, draw_pairs, encode_pairs
from tasks.grammar import (
    MAX_ELEMENTS,
    MAX_LINE_TOKENS,
    MAX_NAME,
    ListLine,
    draw_list,
    draw_name,
    draw_number,
    n_tokens,
)
from tasks.tokenizer import DIGITS, CharTokenizer

N_CTX = 64


@dataclass(frozen=True, kw_only=True)
class Brackets:
    """Close a list with `]` or, where an inner list is open too, `]]`.

    The two prompts of a pair are of equal length: where one opens the inner list, the other has a digit more.
    """

    length: int | None = None
    """Number of elements in the list, 1 to 64; None: 1 to 6, as mini-Python draws them."""
    distractors: int = 0
    """Complete lines with closed lists of either depth before the prompt's own, 0 to 8."""
    tokenizer: CharTokenizer = field(default_factory=CharTokenizer)
    """That of mini-Python."""
    name: str = "brackets"
    """The key under which `load_task` finds it."""

    def __post_init__(self) -> None:
        if self.length is not None and not 1 <= self.length <= 64:
            raise ValueError(f"length must be 1 to 64 elements or None, got {self.length}")
        if not 0 <= self.distractors <= 8:
            raise ValueError(f"distractors must be 0 to 8 lines, got {self.distractors}")

    @property
    def n_ctx(self) -> int:
        """Length of the longest prompt; at the default length at most 64: longer ones are drawn again."""
        n = MAX_ELEMENTS if self.length is None else self.length
        longest = self.distractors * MAX_LINE_TOKENS + MAX_NAME + len(" = [[") + 2 * n + len(", ") * (n - 1)
        return min(N_CTX, longest) if self.length is None else longest

    def batch(self, n: int, *, split: Split, seed: int) -> Batch:
        """`n` pairs that differ in one token, the inner opening bracket or a digit in its place."""
        return encode_pairs(
            draw_pairs(self._draw, name=self.name, n=n, split=split, seed=seed), self.tokenizer
        )

    def solve(self, text: str) -> str:
        """The closing token: as many brackets as the last line has left open."""
        line = text.rsplit("\n")[-1]
        return "]" * (line.count("[") - line.count("]"))

    def _draw(self, rng: random.Random) -> Pair | None:
        closed = [draw_list(rng) for _ in range(self.distractors)]
        context = "".join(f"{line.prompt}{line.closer}\n" for line in closed)
        n = self.length or 1 + int(rng.random() * MAX_ELEMENTS)
        numbers = [draw_number(rng) for _ in range(n)]
        inner = int(rng.random() * n)
        # The number that takes the extra digit has one digit of its own, so that it keeps to two.
        numbers[inner] = numbers[inner][-1]
        deep = ListLine(name=draw_name(rng), elements=tuple(numbers), inner=inner)
        numbers[inner] = rng.choice(DIGITS[1:]) + numbers[inner]
        shallow = replace(deep, elements=tuple(numbers), inner=None)
        if n_tokens(context + deep.prompt) > self.n_ctx:
            return None
        return Pair(
            clean=context + deep.prompt,
            corrupt=context + shallow.prompt,
            answer="]]",
            foil="]",
            key=_key(context, shallow),
        )


def _key(context: str, line: ListLine) -> str:
    # Last digits only: two pairs may share their shallow prompt yet open the inner list in different places.
    return re.sub(r"\d(?=\d)", "", f"{context}|{line.name}|{','.join(line.elements)}")
