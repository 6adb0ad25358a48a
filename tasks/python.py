"""Twenty binary choices in real Python: code is cut off where one fact in it decides between two next tokens."""

import random
import re
from dataclasses import dataclass, field, replace
from functools import cached_property

from tasks.base import Batch, Pair, Split, draw_pairs, encode_pairs
from tasks.near import unknown
from tasks.python_choices import CHOICES, Choice
from tasks.stdlib import python_tokenizer
from tasks.tokenizer import BPE, DIGITS

N_CTX = 96
# fmt: off
VARIABLES = (
    "args", "buf", "cls", "code", "config", "content", "count", "data", "default", "end", "error", "files", "first",
    "flags", "handler", "header", "host", "index", "info", "item", "items", "key", "last", "length", "level", "line",
    "lines", "max", "message", "min", "mode", "module", "msg", "name", "names", "new", "node", "number", "obj",
    "offset", "old", "parser", "port", "prefix", "request", "response", "server", "size", "source", "start",
    "state", "string", "target", "text", "token", "url", "user", "value", "values", "width",
)
FUNCTIONS = (
    "apply", "build", "check", "collect", "convert", "fetch", "find", "format", "handle", "load", "merge", "parse",
    "process", "read", "render", "run", "scan", "send", "split", "update", "write",
)
WORDS = (
    "all", "and", "bad", "end", "error", "file", "found", "from", "in", "line", "name", "new", "no", "not", "of",
    "read", "the", "value",
)
MODULES = ("collections", "functools", "io", "json", "math", "os", "re", "sys", "time", "types")
# fmt: on
_SLOT = re.compile(r"<([a-z])>")


@dataclass(frozen=True, kw_only=True)
class PythonChoice:
    """One of the twenty choices of `tasks.python_choices`, behind up to two lines of unrelated code.

    Where an answer is several tokens of the BPE, such as `.add`, its first token stands for it.
    """

    name: str
    """The choice, and the key under which `load_task` finds it."""
    tokenizer: BPE = field(default_factory=python_tokenizer)
    """That of the corpus "python"."""

    def __post_init__(self) -> None:
        if self.name not in CHOICES:
            raise ValueError(unknown("name", self.name, CHOICES))
        if len(self.variables) < 10 or not self.leading_digits:
            raise ValueError(
                f"tokenizer {self.tokenizer.name!r} has single tokens for {len(self.variables)} of {len(VARIABLES)} "
                f"variable names and {len(self.leading_digits)} of 9 digits after a space; expected at least 10 "
                f"and 1, so train it on more Python"
            )

    @property
    def n_ctx(self) -> int:
        """No prompt is longer, in tokens."""
        return N_CTX

    @cached_property
    def variables(self) -> tuple[str, ...]:
        """Names that are one token with and without a space before them, so that any two are equally long."""
        encode = self.tokenizer.encode
        return tuple(name for name in VARIABLES if len(encode(name)) == len(encode(f" {name}")) == 1)

    @cached_property
    def leading_digits(self) -> tuple[str, ...]:
        """Digits but 0 that are one token together with the space before them, as an opening bracket is."""
        return tuple(digit for digit in DIGITS[1:] if len(self.tokenizer.encode(f" {digit}")) == 1)

    def batch(self, n: int, *, split: Split, seed: int) -> Batch:
        """`n` pairs that differ in the fact that decides and, where its tokens need it, in a blank line."""
        pairs = draw_pairs(self._draw, name=self.name, n=n, split=split, seed=seed)
        return encode_pairs([self._fit(pair) for pair in pairs], self.tokenizer)

    def solve(self, text: str) -> str:
        """The first token of what the choice's rule finds."""
        return self._first_token(CHOICES[self.name].rule(text))

    def _draw(self, rng: random.Random) -> Pair:
        choice = CHOICES[self.name]
        values, context = self._draw_values(rng), _draw_context(rng, self.variables)
        clean, corrupt, answer, foil = (
            _SLOT.sub(lambda slot: values[slot[1]], template)
            for template in (
                choice.frame.replace("<?>", choice.clean),
                choice.frame.replace("<?>", choice.corrupt),
                choice.answer,
                choice.foil,
            )
        )
        return Pair(
            clean=context + clean,
            corrupt=context + corrupt,
            answer=answer,
            foil=foil,
            key=f"{context}|{_shared_values(choice, values)}",
        )

    def _draw_values(self, rng: random.Random) -> dict[str, str]:
        values = dict(zip("abcd", rng.sample(self.variables, 4), strict=True))
        values |= zip("fg", rng.sample(FUNCTIONS, 2), strict=True)
        values |= zip("mnop", rng.choices(DIGITS, k=4), strict=True)
        return values | {"q": rng.choice(self.leading_digits), "w": _draw_words(rng)}

    def _fit(self, pair: Pair) -> Pair:
        """Blank lines into the shorter prompt, and answers down to one token."""
        bare = [text.replace("<pad>", "") for text in (pair.clean, pair.corrupt)]
        lengths = [len(self.tokenizer.encode(text)) for text in bare]
        clean, corrupt = (
            text.replace("<pad>", "\n" * (max(lengths) - length))
            for text, length in zip((pair.clean, pair.corrupt), lengths, strict=True)
        )
        return replace(
            pair,
            clean=clean,
            corrupt=corrupt,
            answer=self._first_token(pair.answer),
            foil=self._first_token(pair.foil),
        )

    def _first_token(self, text: str) -> str:
        return self.tokenizer.decode(self.tokenizer.encode(text)[:1])


def _draw_words(rng: random.Random) -> str:
    return " ".join(rng.sample(WORDS, 1 + int(rng.random() * 3)))


def _draw_context(rng: random.Random, variables: tuple[str, ...]) -> str:
    lines = [
        f"import {rng.choice(MODULES)}\n",
        f"{rng.choice(variables)} = {rng.choice(DIGITS)}\n",
        f"# {_draw_words(rng)}\n",
    ]
    return "".join(rng.sample(lines, int(rng.random() * 3)))


def _shared_values(choice: Choice, values: dict[str, str]) -> str:
    # A value that only one of the prompts shows must not decide the split of the other.
    shown = [set(_SLOT.findall(choice.frame.replace("<?>", own))) for own in (choice.clean, choice.corrupt)]
    return " ".join(f"{slot}={values[slot]}" for slot in sorted(shown[0] & shown[1]))
