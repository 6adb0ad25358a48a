"""Composing heads: which item is meant (a QK rule) is crossed with what is said of it (an OV rule).

`ann o3 , bob o7 : other class ann =` asks for the class of the thing that is not Ann's. Every QK rule goes
with every OV rule, but some of these cells never occur in training text: a model that learns the two rules
apart can still answer them, one that learns each cell by itself cannot. After the synthetic data of "Improving
Transformers with Dynamically Composable Multi-Head Attention" (arXiv 2405.08553); here the rules are named by
words, not shown by examples.
"""

import random
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from tasks.base import Batch, Corpus, Pair, Split, corpus_of_lines, draw_pairs, encode_pairs, split_of
from tasks.tokenizer import WordTokenizer

Cell = tuple[str, str]
"""A QK rule and an OV rule."""
QK_RULES = ("same", "other", "odd")
OV_RULES = ("copy", "class", "use", "antonym", "successor")
CELLS: tuple[Cell, ...] = tuple(product(QK_RULES, OV_RULES))
# One cell for every OV rule, so that each is seen with two of the three QK rules.
HELD_OUT: tuple[Cell, ...] = (
    ("same", "antonym"),
    ("other", "class"),
    ("other", "successor"),
    ("odd", "copy"),
    ("odd", "use"),
)
PEOPLE = ("ann", "bob", "cat", "dan", "eve", "fay", "gus", "hal", "ida", "jon", "kay", "leo")
N_THINGS, N_KINDS = 16, 4
NOT_SCORED = -100
"""The label that torch's cross-entropy leaves out."""


def _words() -> tuple[str, ...]:
    things = (
        f"{letter}{i}" for letter, n in (("o", N_THINGS), ("k", N_KINDS), ("u", N_KINDS)) for i in range(n)
    )
    return ("\n", ",", ":", "=", *QK_RULES, *OV_RULES, *PEOPLE, *things)


COMPOSITION_WORDS = WordTokenizer(name="composition-words", words=_words())


@dataclass(frozen=True, kw_only=True)
class CompositionBatch(Batch):
    """A batch in which more than the last position may be scored, and each row knows its cell."""

    targets: Int64[Tensor, "batch pos"]
    """The right next token of `clean` where one is asked for; elsewhere -100, which cross-entropy skips."""
    cell: Int64[Tensor, " batch"]
    """Index of each row's cell in `Composition.cells`."""

    @property
    def scored(self) -> Bool[Tensor, "batch pos"]:
        """Where a target is."""
        return self.targets != NOT_SCORED


@dataclass(frozen=True, kw_only=True)
class Composition:
    """Answer queries of one cell to a text; of the cells seen in training, of those held out, or of all."""

    which: Literal["seen", "held_out", "all"] = "seen"
    """The cells that batches draw from."""
    held_out: tuple[Cell, ...] = HELD_OUT
    """Cells that `composition_corpus` leaves out."""
    n_lines: int = 1
    """Lines to a text, 1 to 8, all of one cell; the last one ends in the prompt, the others are answered."""
    tokenizer: WordTokenizer = field(default=COMPOSITION_WORDS)
    """One token to a word."""
    name: str = "composition"
    """The key under which `load_task` finds it."""

    def __post_init__(self) -> None:
        if self.which not in ("seen", "held_out", "all"):
            raise ValueError(f"which must be 'seen', 'held_out' or 'all', got {self.which!r}")
        if not 1 <= self.n_lines <= 8:
            raise ValueError(f"n_lines must be 1 to 8, got {self.n_lines}")
        unknown = set(self.held_out) - set(CELLS)
        if unknown or not self.active:
            raise ValueError(
                f"held_out must name cells of {CELLS} and leave some that are {self.which!r}, "
                f"got {self.held_out}"
            )

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, QK rule by QK rule; `CompositionBatch.cell` counts in this order."""
        return CELLS

    @cached_property
    def active(self) -> tuple[Cell, ...]:
        """The cells that batches draw from."""
        wanted = {"seen": (False,), "held_out": (True,), "all": (False, True)}[self.which]
        return tuple(cell for cell in CELLS if (cell in self.held_out) in wanted)

    @property
    def n_ctx(self) -> int:
        """Length of the longest prompt, in tokens."""
        return 14 * self.n_lines - 2

    def batch(self, n: int, *, split: Split, seed: int) -> CompositionBatch:
        """`n` pairs that differ in the person asked for or, for "odd", in one thing; every line is scored."""
        pairs = draw_pairs(self._draw, name=self.name, n=n, split=split, seed=seed)
        batch = encode_pairs(pairs, self.tokenizer)
        following = batch.clean.roll(-1, dims=1)
        following[torch.arange(n), batch.position] = batch.answer
        asked = batch.clean == self.tokenizer.id("=")
        return CompositionBatch(
            clean=batch.clean,
            corrupt=batch.corrupt,
            answer=batch.answer,
            foil=batch.foil,
            position=batch.position,
            targets=torch.where(asked, following, NOT_SCORED),
            cell=torch.tensor([CELLS.index(_read(pair.clean)[1]) for pair in pairs]),
        )

    def solve(self, text: str) -> str:
        """Find the thing meant by the last line's QK rule, then apply its OV rule."""
        owners, (qk, ov), asked = _read(text)
        things = list(owners.values())
        if qk == "odd":
            kinds = [apply_ov("class", thing) for thing in things]
            return apply_ov(
                ov, next(t for t, kind in zip(things, kinds, strict=True) if kinds.count(kind) == 1)
            )
        meant = next(person for person in owners if (person == asked) == (qk == "same"))
        return apply_ov(ov, owners[meant])

    def _draw(self, rng: random.Random) -> Pair | None:
        cell = rng.choice(self.active)
        last = _draw_line(rng, cell)
        context = ""
        while context.count("\n") < self.n_lines - 1:
            line = _draw_line(rng, cell)
            # Earlier lines are answered, so they must not come from another split either.
            if split_of(line.key) == split_of(last.key):
                context += f"{line.clean} {line.answer}\n"
        if last.answer == last.foil:
            return None
        return replace(last, clean=context + last.clean, corrupt=context + last.corrupt)


def composition_corpus(
    seed: int = 0,
    *,
    held_out: tuple[Cell, ...] = HELD_OUT,
    n_train_lines: int = 30_000,
    n_val_lines: int = 2_000,
) -> Corpus:
    """Answered lines of every cell but those of `held_out`, mixed; windows begin where a line does."""
    task = Composition(held_out=held_out)

    def lines(split: Split, n: int) -> list[str]:
        pairs = draw_pairs(task._draw, name="composition-corpus", n=n, split=split, seed=seed)
        return [f"{pair.clean} {pair.answer}" for pair in pairs]

    return corpus_of_lines(
        "composition", COMPOSITION_WORDS, lines("train", n_train_lines), lines("val", n_val_lines)
    )


def apply_ov(rule: str, thing: str) -> str:
    """What `rule` says of `thing`, which is one of `o0` to `o15`.

    Class and use cross one another, the antonym is its own inverse, the last thing is followed by the first.
    """
    i = int(thing[1:])
    return {
        "copy": thing,
        "class": f"k{i // N_KINDS}",
        "use": f"u{i % N_KINDS}",
        "antonym": f"o{N_THINGS - 1 - i}",
        "successor": f"o{(i + 1) % N_THINGS}",
    }[rule]


def _draw_line(rng: random.Random, cell: Cell) -> Pair:
    qk, ov = cell
    people = rng.sample(PEOPLE, 3 if qk == "odd" else 2)
    if qk == "odd":
        things, changed, meant = _draw_odd(rng)
        clean, corrupt = (f"{_items(people, held)} : odd {ov} =" for held in (things, changed))
    else:
        things = [f"o{i}" for i in rng.sample(range(N_THINGS), 2)]
        meant = things if qk == "same" else things[::-1]
        clean, corrupt = (f"{_items(people, things)} : {qk} {ov} {person} =" for person in people)
    return Pair(
        clean=clean,
        corrupt=corrupt,
        answer=apply_ov(ov, meant[0]),
        foil=apply_ov(ov, meant[1]),
        # Who is there decides the split: that is the same in both prompts, whatever is asked.
        key=f"{qk} {ov} {' '.join(people)}",
    )


def _draw_odd(rng: random.Random) -> tuple[list[str], list[str], list[str]]:
    """Three things, the same with one of them changed, and the one that is odd in each."""
    kind, other = rng.sample(range(N_KINDS), 2)
    i, j = rng.sample(range(N_KINDS), 2)
    k, m = rng.sample(range(N_KINDS), 2)
    in_kind = [f"o{kind * N_KINDS + x}" for x in (i, j)]
    in_other = [f"o{other * N_KINDS + x}" for x in (k, m)]
    # Two of the first kind and one of the second; with the first of them changed, it is the other way round.
    places = rng.sample(range(3), 3)
    things = [thing for _, thing in sorted(zip(places, [*in_kind, in_other[0]], strict=True))]
    changed = [in_other[1] if thing == in_kind[0] else thing for thing in things]
    return things, changed, [in_other[0], in_kind[1]]


def _items(people: list[str], things: list[str]) -> str:
    return " , ".join(f"{person} {thing}" for person, thing in zip(people, things, strict=True))


def _read(text: str) -> tuple[dict[str, str], Cell, str]:
    """Who has what in the last line, its cell, and the person asked for, where there is one."""
    items, query = text.rsplit("\n")[-1].split(" : ")
    owners = dict(item.split() for item in items.split(" , "))
    words = query.split()
    return owners, (words[0], words[1]), words[-2]
