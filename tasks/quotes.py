"""Closing quotes: after `name = 'abc` comes `'`, after `name = "abc` comes `"`."""

import random
from dataclasses import dataclass, field

from tasks.base import Batch, Pair, Split, draw_pairs, encode_pairs
from tasks.grammar import (
    MAX_CONTENT,
    MAX_LINE_TOKENS,
    MAX_NAME,
    QUOTES,
    StringLine,
    draw_lines,
    draw_string,
    n_tokens,
)
from tasks.tokenizer import CharTokenizer

N_CTX = 64


@dataclass(frozen=True, kw_only=True)
class Quotes:
    """Close a string with the quote that opened it; names, contents and lengths as mini-Python draws them."""

    context_lines: int = 0
    """Complete lines before the prompt's own, 0 to 3, with closed strings among them that may mislead."""
    tokenizer: CharTokenizer = field(default_factory=CharTokenizer)
    """That of mini-Python."""
    name: str = "quotes"
    """The key under which `load_task` finds it."""

    def __post_init__(self) -> None:
        if not 0 <= self.context_lines <= 3:
            raise ValueError(f"context_lines must be 0 to 3 lines, got {self.context_lines}")

    @property
    def n_ctx(self) -> int:
        """Length of the longest prompt, at most 64 tokens: longer ones are drawn again."""
        return min(N_CTX, self.context_lines * MAX_LINE_TOKENS + MAX_NAME + len(" = '") + MAX_CONTENT)

    def batch(self, n: int, *, split: Split, seed: int) -> Batch:
        """`n` pairs that differ in the opening quote of the last line."""
        return encode_pairs(
            draw_pairs(self._draw, name=self.name, n=n, split=split, seed=seed), self.tokenizer
        )

    def solve(self, text: str) -> str:
        """The closing quote: the first quote of the last line."""
        return next(character for character in text.rsplit("\n")[-1] if character in QUOTES)

    def _draw(self, rng: random.Random) -> Pair | None:
        context = "".join(f"{line}\n" for line in draw_lines(rng, self.context_lines))
        line = draw_string(rng)
        prompts = {
            quote: context + StringLine(name=line.name, quote=quote, content=line.content).prompt
            for quote in QUOTES
        }
        misleading = self.context_lines == 0 or any(quote in context for quote in QUOTES)
        if not misleading or n_tokens(prompts["'"]) > self.n_ctx:
            return None
        return Pair(
            clean=prompts["'"],
            corrupt=prompts['"'],
            answer="'",
            foil='"',
            key=f"{context}{line.name} = {line.content}",
        )
