"""Composing heads: which item is meant (a QK rule) is crossed with what is said of it (an OV rule).

`ann o3 , bob o7 : other class ann =` asks for the class of the thing that is not Ann's. Every QK rule goes
with every OV rule, but some of these cells never occur in training text: a model that learns the two rules
apart can still answer them, one that learns each cell by itself cannot. After the synthetic data of "Improving
Transformers with Dynamically Composable Multi-Head Attention" (arXiv 2405.08553); here the rules are named by
words, not shown by examples.
"""

import random
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import product
from typing import Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from tasks.base import Batch, Corpus, Pair, Split, corpus_of_lines, draw_pairs, encode_pairs
from tasks.tokenizer import WordTokenizer

Cell = tuple[str, str]
"""A QK rule and an OV rule."""
Query = tuple[str, str, str]
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
# A recital names two to four people and their things, again and again. Queries about two people leave little to
# gain from looking someone up, and "other" loses what "same" wins; here it pays at every word.
RECITED, RECITAL_WORDS, RECITAL_SHARE = (2, 3, 4), 27, 0.2
PEOPLE = (
    *("ann", "bob", "cat", "dan", "eve", "fay", "gus", "hal"),
    *("ida", "jon", "kay", "leo", "mia", "ned", "pam", "ray"),
)
# Few things: with 16 of them most of a short training is spent on the tables of the OV rules.
N_THINGS, N_KINDS = 9, 3
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
    """A batch in which every answer is scored, not the last alone, and belongs to a cell."""

    targets: Int64[Tensor, "batch pos"]
    """The right next token of `clean` where one is asked for; elsewhere -100, which cross-entropy skips."""
    cell: Int64[Tensor, "batch pos"]
    """Index in `Composition.cells` of the query that each target answers; elsewhere -100."""

    @property
    def scored(self) -> Bool[Tensor, "batch pos"]:
        """Where a target is."""
        return self.targets != NOT_SCORED


@dataclass(frozen=True, kw_only=True)
class Composition:
    """Answer queries about who has what; of the cells seen in training, of those held out, or of all."""

    which: Literal["seen", "held_out", "all"] = "seen"
    """The cells that batches draw from."""
    held_out: tuple[Cell, ...] = HELD_OUT
    """Cells that `composition_corpus` leaves out."""
    n_queries: int = 1
    """Queries to a line at the most, 1 to 8; the prompt ends in the last, the others are answered."""
    tokenizer: WordTokenizer = field(default=COMPOSITION_WORDS)
    """One token to a word."""
    name: str = "composition"
    """The key under which `load_task` finds it."""

    def __post_init__(self) -> None:
        if self.which not in ("seen", "held_out", "all"):
            raise ValueError(f"which must be 'seen', 'held_out' or 'all', got {self.which!r}")
        if not 1 <= self.n_queries <= 8:
            raise ValueError(f"n_queries must be 1 to 8, got {self.n_queries}")
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
        return max(6 * self.n_queries + 4, 5 * self.n_queries + 7)

    def batch(self, n: int, *, split: Split, seed: int) -> CompositionBatch:
        """`n` pairs that differ in the person asked for last or, for "odd", in one thing."""
        draw = partial(_draw, self.active, self.n_queries)
        pairs = draw_pairs(draw, name=self.name, n=n, split=split, seed=seed)
        batch = encode_pairs(pairs, self.tokenizer)
        following = batch.clean.roll(-1, dims=1)
        following[torch.arange(n), batch.position] = batch.answer
        asked = batch.clean == self.tokenizer.id("=")
        cell = torch.full_like(batch.clean, NOT_SCORED)
        # Indexing by a mask goes row by row and then by position, and so do the queries.
        cell[asked] = torch.tensor(
            [CELLS.index(query[:2]) for pair in pairs for query in _read(pair.clean)[1]]
        )
        return CompositionBatch(
            clean=batch.clean,
            corrupt=batch.corrupt,
            answer=batch.answer,
            foil=batch.foil,
            position=batch.position,
            targets=torch.where(asked, following, NOT_SCORED),
            cell=cell,
        )

    def solve(self, text: str) -> str:
        """Find the thing that the last query's QK rule means, then apply its OV rule."""
        owners, queries = _read(text)
        return _answer(owners, queries[-1])


def composition_corpus(
    seed: int = 0,
    *,
    held_out: tuple[Cell, ...] = HELD_OUT,
    n_train_lines: int = 20_000,
    n_val_lines: int = 1_500,
) -> Corpus:
    """Lines of up to four answered queries, of every cell but those of `held_out`, and recitals between them.

    Windows begin where a line does. `foretold` says which tokens of a window can be known beforehand.
    """
    seen = Composition(held_out=held_out).active

    def lines(split: Split, n: int) -> list[str]:
        rng = random.Random(f"composition/{split}/{seed}")
        pairs = draw_pairs(partial(_draw, seen, 4), name="composition-corpus", n=n, split=split, seed=seed)
        return [
            _draw_recital(rng) if rng.random() < RECITAL_SHARE else f"{pair.clean} {pair.answer}"
            for pair in pairs
        ]

    return corpus_of_lines(
        "composition", COMPOSITION_WORDS, lines("train", n_train_lines), lines("val", n_val_lines)
    )


def foretold(tokens: Int64[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Where the next token of training text follows from its line: after `=`, and once a recital repeats itself.

    tokens: windows of `composition_corpus`.
    """
    newline, colon, comma, equals = (COMPOSITION_WORDS.id(word) for word in ("\n", ":", ",", "="))
    line = (tokens == newline).cumsum(1)
    same_line = (line[:, :, None] == line[:, None, :]).tril(-1)
    said = (same_line & (tokens[:, :, None] == tokens[:, None, :])).any(-1)
    in_query = (same_line & (tokens == colon)[:, None, :]).any(-1)
    repeats = said & ~in_query & (tokens != comma) & (tokens != newline)
    return (tokens == equals) | (repeats & (tokens.roll(-1, dims=1) != newline))


def apply_ov(rule: str, thing: str) -> str:
    """What `rule` says of `thing`, which is one of `o0` to `o8`.

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


def _answer(owners: dict[str, str], query: Query) -> str:
    qk, ov, asked = query
    if qk == "odd":
        kinds = [apply_ov("class", thing) for thing in owners.values()]
        meant = next(thing for thing in owners.values() if kinds.count(apply_ov("class", thing)) == 1)
    else:
        meant = next(thing for person, thing in owners.items() if (person == asked) == (qk == "same"))
    return apply_ov(ov, meant)


def _draw(cells: tuple[Cell, ...], n_queries: int, rng: random.Random) -> Pair | None:
    """A line of queries whose last cell is any of `cells`; None where an earlier query gives it away."""
    last = rng.choice(cells)
    odd = last[0] == "odd"
    people = rng.sample(PEOPLE, 3 if odd else 2)
    # A line about two people asks for one of them or for the other, a line about three for the odd one.
    fitting = [cell for cell in cells if (cell[0] == "odd") == odd]
    drawn = [(*rng.choice(fitting), people[0] if odd else rng.choice(people)) for _ in range(n_queries - 1)]
    # Once each: a query asked before could be answered by copying.
    earlier: list[Query] = list(dict.fromkeys(drawn))
    if any(query[:2] == last for query in earlier):
        return None
    things, changed = _draw_odd(rng) if odd else [_things(rng.sample(range(N_THINGS), 2))] * 2
    clean, answer = _write(dict(zip(people, things, strict=True)), [*earlier, (*last, people[0])])
    corrupt, foil = _write(
        dict(zip(people, changed, strict=True)), [*earlier, (*last, people[0 if odd else 1])]
    )
    if answer == foil:
        return None
    # Who is there decides the split: that is the same in both prompts, whatever is asked.
    return Pair(clean=clean, corrupt=corrupt, answer=answer, foil=foil, key=" ".join(people))


def _draw_recital(rng: random.Random) -> str:
    """Who has what, over and over: as many words as fill a window of RECITAL_WORDS + 1 tokens."""
    n = rng.choice(RECITED)
    owners = zip(rng.sample(PEOPLE, n), _things(rng.sample(range(N_THINGS), n)), strict=True)
    words = [word for owner in owners for word in owner]
    return " ".join(words[i % len(words)] for i in range(RECITAL_WORDS))


def _draw_odd(rng: random.Random) -> tuple[list[str], list[str]]:
    """Two things of one kind and one of another; and with one of the two changed, so that the other is odd."""
    kind, other = (N_KINDS * i for i in rng.sample(range(N_KINDS), 2))
    a, b = rng.sample(range(N_KINDS), 2)
    c, d = rng.sample(range(N_KINDS), 2)
    order = rng.sample(range(3), 3)
    things = [kind + a, kind + b, other + c], [other + d, kind + b, other + c]
    return _things([things[0][i] for i in order]), _things([things[1][i] for i in order])


def _things(numbers: list[int]) -> list[str]:
    return [f"o{number}" for number in numbers]


def _write(owners: dict[str, str], queries: list[Query]) -> tuple[str, str]:
    """The line up to its last `=`, and what follows."""
    items = " , ".join(f"{person} {thing}" for person, thing in owners.items())
    asked = [f"{qk} {ov} =" if qk == "odd" else f"{qk} {ov} {person} =" for qk, ov, person in queries]
    answers = [_answer(owners, query) for query in queries]
    told = [f"{query} {answer}" for query, answer in zip(asked[:-1], answers[:-1], strict=True)]
    return f"{items} : {' , '.join([*told, asked[-1]])}", answers[-1]


def _read(text: str) -> tuple[dict[str, str], list[Query]]:
    """Who has what in the last line, and what is asked of them."""
    items, asked = text.rsplit("\n")[-1].split(" : ")
    owners = dict(item.split() for item in items.split(" , "))
    words = [query.split() for query in asked.split(" , ")]
    return owners, [(query[0], query[1], query[2]) for query in words]
