"""Induction: a random sequence begins a second time; what followed its last letter before follows again."""

import random
from dataclasses import dataclass, field

from tasks.base import Batch, Corpus, Pair, Split, corpus_of_lines, draw_pairs, encode_pairs, split_of
from tasks.tokenizer import LETTERS, WordTokenizer

MIN_LENGTH, MAX_LENGTH = 4, 12
INDUCTION_WORDS = WordTokenizer(name="induction-words", words=("\n", *LETTERS))


@dataclass(frozen=True, kw_only=True)
class Induction:
    """`c q a x c q` goes on with `a`; where the first part was `c q m x`, with `m`.

    Sequences are of 4 to 12 different letters, so that no fixed distance finds the answer.
    """

    tokenizer: WordTokenizer = field(default=INDUCTION_WORDS)
    """One token to a letter."""
    name: str = "induction"
    """The key under which `load_task` finds it."""

    @property
    def n_ctx(self) -> int:
        """Length of the longest prompt, in tokens."""
        return 2 * MAX_LENGTH - 1

    def batch(self, n: int, *, split: Split, seed: int) -> Batch:
        """`n` pairs that differ in one letter of the first run, the one asked for."""
        return encode_pairs(draw_pairs(_draw, name=self.name, n=n, split=split, seed=seed), self.tokenizer)

    def solve(self, text: str) -> str:
        """What followed the last letter where it stood before."""
        *earlier, last = text.split()
        return earlier[earlier.index(last) + 1]


def induction_corpus(seed: int = 0, *, n_train_lines: int = 30_000, n_val_lines: int = 2_000) -> Corpus:
    """Lines of one sequence each, written twice; windows begin where a line does."""

    def lines(split: Split, n: int) -> list[str]:
        rng = random.Random(f"induction/{split}/{seed}")
        found: list[str] = []
        while len(found) < n:
            letters = _draw_letters(rng)
            if split_of(_key(letters)) == split:
                found.append(" ".join(letters * 2))
        return found

    return corpus_of_lines(
        "induction", INDUCTION_WORDS, lines("train", n_train_lines), lines("val", n_val_lines)
    )


def _draw(rng: random.Random) -> Pair:
    letters = _draw_letters(rng)
    asked = 2 + int(rng.random() * (len(letters) - 2))
    other = rng.choice([letter for letter in LETTERS if letter not in letters])
    again = letters[:asked]
    return Pair(
        clean=" ".join([*letters, *again]),
        corrupt=" ".join([*again, other, *letters[asked + 1 :], *again]),
        answer=letters[asked],
        foil=other,
        key=_key(letters),
    )


def _draw_letters(rng: random.Random) -> list[str]:
    return rng.sample(LETTERS, MIN_LENGTH + int(rng.random() * (MAX_LENGTH - MIN_LENGTH + 1)))


def _key(letters: list[str]) -> str:
    # The first two letters are never asked for. Dividing by them divides prompts and training lines alike.
    return " ".join(letters[:2])
