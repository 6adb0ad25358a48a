"""Modular addition: `3 + 4 =` goes on with `7`, and `50 + 8 =` modulo 53 with `5`."""

import random
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from tasks.base import Batch, Corpus, Pair, Split, corpus_of_lines, draw_pairs, encode_pairs, split_of
from tasks.tokenizer import WordTokenizer

MODULUS = 53


@dataclass(frozen=True, kw_only=True)
class Modular:
    """`a + b =` for all a and b below the modulus; every sum belongs to one split."""

    modulus: int = MODULUS
    """Numbers run from 0 to one less; 5 to 999."""
    name: str = "modular"
    """The key under which `load_task` finds it."""

    def __post_init__(self) -> None:
        if not 5 <= self.modulus <= 999:
            raise ValueError(f"modulus must be 5 to 999, got {self.modulus}")

    @cached_property
    def tokenizer(self) -> WordTokenizer:
        """One token to each number, and to `+`, `=` and the newline."""
        words = ("\n", "+", "=", *map(str, range(self.modulus)))
        return WordTokenizer(name=f"modular-words-{self.modulus}", words=words)

    @property
    def n_ctx(self) -> int:
        """Length of every prompt, in tokens."""
        return 4

    @cached_property
    def sums(self) -> dict[Split, list[tuple[int, int]]]:
        """The pairs (a, b) of each split, in order."""
        sums: dict[Split, list[tuple[int, int]]] = {"train": [], "val": [], "test": []}
        for pair, split in self._splits.items():
            sums[split].append(pair)
        return sums

    @cached_property
    def _splits(self) -> dict[tuple[int, int], Split]:
        return {(a, b): split_of(self._key(a, b)) for a, b in product(range(self.modulus), repeat=2)}

    def batch(self, n: int, *, split: Split, seed: int) -> Batch:
        """`n` pairs that differ in one of the two numbers; both prompts are of `split`."""
        return encode_pairs(
            draw_pairs(self._draw, name=self.name, n=n, split=split, seed=seed), self.tokenizer
        )

    def solve(self, text: str) -> str:
        """The sum of the last line, modulo the modulus."""
        a, _, b, _ = text.rsplit("\n")[-1].split()
        return str((int(a) + int(b)) % self.modulus)

    def _key(self, a: int, b: int) -> str:
        return f"{a} + {b} modulo {self.modulus}"

    def _draw(self, rng: random.Random) -> Pair | None:
        a, b = rng.randrange(self.modulus), rng.randrange(self.modulus)
        # Changing one number must not lead into another split, so the other sum is drawn from this one.
        near = [(a, x) for x in range(self.modulus) if x != b] + [
            (x, b) for x in range(self.modulus) if x != a
        ]
        others = [pair for pair in near if self._splits[pair] == self._splits[a, b]]
        if not others:
            return None
        c, d = rng.choice(others)
        return Pair(
            clean=f"{a} + {b} =",
            corrupt=f"{c} + {d} =",
            answer=str((a + b) % self.modulus),
            foil=str((c + d) % self.modulus),
            key=self._key(a, b),
        )


def modular_corpus(seed: int = 0, *, modulus: int = MODULUS, n_train_lines: int = 50_000) -> Corpus:
    """All sums of the train split in random order, over and over; those of val once. A line is six tokens."""
    task = Modular(modulus=modulus)
    rng = random.Random(f"modular/{seed}")

    def shuffled(split: Split) -> list[str]:
        sums = rng.sample(task.sums[split], len(task.sums[split]))
        return [f"{a} + {b} = {(a + b) % modulus}" for a, b in sums]

    train: list[str] = []
    while len(train) < n_train_lines:
        train += shuffled("train")
    return corpus_of_lines("modular", task.tokenizer, train[:n_train_lines], shuffled("val"))
