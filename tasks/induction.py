"""Induction: part of a random sequence comes again; what followed its last letter before follows once more."""

import random
from dataclasses import dataclass, field

from tasks.base import Batch, Corpus, Pair, Split, corpus_of_lines, draw_pairs, encode_pairs, split_of
from tasks.tokenizer import LETTERS, WordTokenizer

MIN_LENGTH, MAX_LENGTH = 4, 12
INDUCTION_WORDS = WordTokenizer(name="induction-words", words=("\n", *LETTERS))


@dataclass(frozen=True, kw_only=True)
class Induction:
    """`k c q a x c q` goes on with `a`, and `k c q x a c q` with `x`.

    Sequences are of 4 to 12 different letters and come again from any of them, so that neither a fixed distance
    nor the first letter not yet repeated is the answer.
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
        """`n` pairs that differ in the places of two letters of the first run, one of them asked for."""
        return encode_pairs(draw_pairs(_draw, name=self.name, n=n, split=split, seed=seed), self.tokenizer)

    def solve(self, text: str) -> str:
        """What followed the last letter where it first stood in its line."""
        *earlier, last = text.rsplit("\n")[-1].split()
        return earlier[earlier.index(last) + 1]


def induction_corpus(seed: int = 0, *, n_train_lines: int = 30_000, n_val_lines: int = 2_000) -> Corpus:
    """Lines of a sequence and two stretches of it, from some letter to the end; windows begin where a line does."""

    def lines(split: Split, n: int) -> list[str]:
        rng = random.Random(f"induction/{split}/{seed}")
        found: list[str] = []
        while len(found) < n:
            letters = _draw_letters(rng)
            if split_of(_key(letters)) == split:
                starts = rng.choices(range(len(letters) - 1), k=2)
                found.append(" ".join([*letters, *letters[starts[0] :], *letters[starts[1] :]]))
        return found

    return corpus_of_lines(
        "induction", INDUCTION_WORDS, lines("train", n_train_lines), lines("val", n_val_lines)
    )


def _draw(rng: random.Random) -> Pair | None:
    letters = _draw_letters(rng)
    asked, other = rng.sample(range(2, len(letters)), 2)
    # The second run holds neither, so it may begin at the start of the first only if the other comes later.
    first = 0 if other > asked else other + 1
    if first == asked:
        return None
    again = letters[rng.randrange(first, asked) : asked]
    # Exchanged, not replaced: which letters occur must not give the answer away.
    changed = letters.copy()
    changed[asked], changed[other] = letters[other], letters[asked]
    return Pair(
        clean=" ".join([*letters, *again]),
        corrupt=" ".join([*changed, *again]),
        answer=letters[asked],
        foil=letters[other],
        key=_key(letters),
    )


def _draw_letters(rng: random.Random) -> list[str]:
    return rng.sample(LETTERS, MIN_LENGTH + int(rng.random() * (MAX_LENGTH - MIN_LENGTH + 1)))


def _key(letters: list[str]) -> str:
    # The first two letters are never asked for. Dividing by them divides prompts and training lines alike.
    return " ".join(letters[:2])
