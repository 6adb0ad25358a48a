"""Texts in, texts out: copying, reversing, and a toy translation with gender, for encoder-decoders.

A row holds the source, filled up with `_`, then `>`, the target, and `.`: the same places in every row, so that
`task.shape()` is what a `ModelConfig` has to know.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from tasks.base import Batch, Corpus, Pair, Split, draw_pairs, encode_pairs, split_of
from tasks.tokenizer import WordTokenizer

PAD, START, END = "_", ">", "."
LETTERS = "abcdefgh"
LONGEST = 7
"""Tokens of a source or of a target, without `>` and `.`."""
STRINGS = WordTokenizer(name="strings", words=(PAD, START, END, *LETTERS))

NOUNS = {
    "dog": ("chien", "m"),
    "cow": ("vache", "f"),
    "cat": ("chat", "m"),
    "mouse": ("souris", "f"),
    "horse": ("cheval", "m"),
    "frog": ("grenouille", "f"),
    "bear": ("ours", "m"),
    "hen": ("poule", "f"),
}
ADJECTIVES = {
    "small": ("petit", "petite"),
    "big": ("grand", "grande"),
    "white": ("blanc", "blanche"),
    "green": ("vert", "verte"),
    "old": ("vieux", "vieille"),
}
VERBS = {"sees": "voit", "follows": "suit", "likes": "aime", "hears": "entend"}
ARTICLES = {"m": "le", "f": "la"}
HELD_OUT = tuple(
    (adjective, noun)
    for i, noun in enumerate(NOUNS)
    for j, adjective in enumerate(ADJECTIVES)
    if j == i % len(ADJECTIVES)
)
"""Adjectives and nouns that no training text brings together; each of them is seen with others."""
SENTENCES = WordTokenizer(
    name="sentences",
    words=(
        *(PAD, START, END, "the"),
        *(*NOUNS, *ADJECTIVES, *VERBS, *ARTICLES.values(), *VERBS.values()),
        *(noun for noun, _ in NOUNS.values()),
        *(form for forms in ADJECTIVES.values() for form in forms),
    ),
)

Which = Literal["seen", "held_out"]


@dataclass(frozen=True, kw_only=True)
class Transduction:
    """After `a b c > a` comes `b` (copy), and after `a b c > c` too (reverse)."""

    name: Literal["copy", "reverse"] = "copy"
    """What is done to the source; the key under which `load_task` finds it."""
    tokenizer: WordTokenizer = field(default=STRINGS)
    """One token to a letter."""

    @property
    def n_ctx(self) -> int:
        """Length of the longest prompt, in tokens."""
        return 2 * LONGEST + 1

    def shape(self) -> dict[str, int]:
        """n_source, n_ctx, pad and d_vocab of a model for whole rows."""
        return _shape(self.tokenizer)

    def batch(self, n: int, *, split: Split, seed: int) -> Batch:
        """`n` pairs whose sources differ in one letter, which is what comes next in the target."""
        pairs = draw_pairs(self._draw, name=self.name, n=n, split=split, seed=seed)
        return encode_pairs(pairs, self.tokenizer, fill=PAD)

    def solve(self, text: str) -> str:
        """The next letter, or the end."""
        source, said = _parts(text)
        return [*self.target(source), END][len(said)]

    def target(self, source: Sequence[str]) -> list[str]:
        """What the source becomes."""
        return _target(self.name, source)

    def _draw(self, rng: random.Random) -> Pair | None:
        source = draw_string(rng)
        place = rng.randrange(len(source))
        changed = source.copy()
        changed[place] = rng.choice([letter for letter in LETTERS if letter != source[place]])
        if split_of(_key(source)) != split_of(_key(changed)):
            return None
        said = self.target(source)[: place if self.name == "copy" else len(source) - 1 - place]
        return _pair(source, changed, said, source[place], changed[place])


@dataclass(frozen=True, kw_only=True)
class Gender:
    """`the cow sees the dog >` goes on with `la`, `the bear sees the dog >` with `le`: the subject's gender decides."""

    name: str = "gender"
    """The key under which `load_task` finds it."""
    tokenizer: WordTokenizer = field(default=SENTENCES)
    """One token to a word, of both languages."""

    @property
    def n_ctx(self) -> int:
        """Length of the longest prompt, in tokens."""
        return LONGEST + 1

    def shape(self) -> dict[str, int]:
        """n_source, n_ctx, pad and d_vocab of a model for whole rows."""
        return _shape(self.tokenizer)

    def batch(self, n: int, *, split: Split, seed: int) -> Batch:
        """`n` pairs that differ in the subject, one masculine and one feminine."""
        pairs = draw_pairs(_draw_gender, name=self.name, n=n, split=split, seed=seed)
        return encode_pairs(pairs, self.tokenizer, fill=PAD)

    def solve(self, text: str) -> str:
        """The next word of the translation."""
        source, said = _parts(text)
        return [*translation(source), END][len(said)]


def draw_string(rng: random.Random) -> list[str]:
    """1 to 7 letters."""
    return [rng.choice(LETTERS) for _ in range(rng.randint(1, LONGEST))]


def draw_sentence(rng: random.Random, which: Which = "seen") -> list[str]:
    """`the small cow sees the dog`: adjectives are there half of the time; held out: one is one of `HELD_OUT`."""
    while True:
        subject, object = (
            (rng.choice(list(NOUNS)), rng.choice([*ADJECTIVES, *[None] * 5])) for _ in range(2)
        )
        if ((subject[1], subject[0]) in HELD_OUT or (object[1], object[0]) in HELD_OUT) == (
            which == "held_out"
        ):
            return [*_phrase(*subject), rng.choice(list(VERBS)), *_phrase(*object)]


def translation(source: Sequence[str]) -> list[str]:
    """The sentence in the other language: adjectives follow their noun, and agree with it."""
    verb = next(i for i, word in enumerate(source) if word in VERBS)
    return [*_translated(source[:verb]), VERBS[source[verb]], *_translated(source[verb + 1 :])]


def row_text(source: Sequence[str], said: Sequence[str]) -> str:
    """Source, padding, `>` and what was said so far, as text."""
    return " ".join([*source, *[PAD] * (LONGEST - len(source)), START, *said])


def transduction_corpus(name: str) -> Callable[[int], Corpus]:
    """What makes the training text of `copy`, `reverse` or `translate` from a seed: 20,000 whole rows."""

    def corpus(seed: int = 0, *, n_train: int = 20_000, n_val: int = 1_000) -> Corpus:
        tokenizer = SENTENCES if name == "translate" else STRINGS
        train = rows(name, n_train, split="train", seed=seed)
        val = rows(name, n_val, split="val", seed=seed)
        width = train.shape[1]
        return Corpus(
            name=name,
            tokenizer=tokenizer,
            train=train.flatten(),
            val=val.flatten(),
            train_starts=torch.arange(0, train.numel(), width),
            val_starts=torch.arange(0, val.numel(), width),
        )

    return corpus


def rows(name: str, n: int, *, split: Split, seed: int = 0, which: Which = "seen") -> Int64[Tensor, "n row"]:
    """`n` whole rows of `copy`, `reverse` or `translate`, whose sources are of a split."""
    rng = random.Random(f"{name}/{which}/{split}/{seed}")
    tokenizer = SENTENCES if name == "translate" else STRINGS
    found: list[list[int]] = []
    while len(found) < n:
        source = draw_sentence(rng, which) if name == "translate" else draw_string(rng)
        if split_of(_key(source)) == split:
            target = _target(name, source)
            filled = [PAD] * (LONGEST - len(target))
            found.append(tokenizer.encode(" ".join([row_text(source, target), END, *filled])))
    return torch.tensor(found)


def _shape(tokenizer: WordTokenizer) -> dict[str, Any]:
    return {
        "d_vocab": tokenizer.d_vocab,
        "n_source": LONGEST,
        "n_ctx": 2 * LONGEST + 2,
        "pad": tokenizer.id(PAD),
    }


def _parts(text: str) -> tuple[list[str], list[str]]:
    """Source and target so far of a prompt."""
    source, said = text.split(START)
    return [word for word in source.split() if word != PAD], said.split()


def _pair(source: list[str], changed: list[str], said: list[str], answer: str, foil: str) -> Pair:
    """Both sources are of one split, so that either names it."""
    return Pair(
        clean=row_text(source, said),
        corrupt=row_text(changed, said),
        answer=answer,
        foil=foil,
        key=_key(source),
    )


def _key(source: Sequence[str]) -> str:
    """What decides the split: all letters, or all words but the subject, so that its pairs lie in one split."""
    subject = next((i for i, word in enumerate(source) if word in NOUNS), None)
    return " ".join("?" if i == subject else word for i, word in enumerate(source))


def _target(name: str, source: Sequence[str]) -> list[str]:
    if name == "translate":
        return translation(source)
    return list(source) if name == "copy" else list(source)[::-1]


def _draw_gender(rng: random.Random) -> Pair | None:
    source = draw_sentence(rng)
    place = next(i for i, word in enumerate(source) if word in NOUNS)
    gender = NOUNS[source[place]][1]
    changed = source.copy()
    changed[place] = rng.choice([noun for noun, (_, other) in NOUNS.items() if other != gender])
    if (changed[place - 1], changed[place]) in HELD_OUT:
        return None
    return _pair(source, changed, [], ARTICLES[gender], ARTICLES[NOUNS[changed[place]][1]])


def _phrase(noun: str, adjective: str | None) -> list[str]:
    return ["the", noun] if adjective is None else ["the", adjective, noun]


def _translated(phrase: Sequence[str]) -> list[str]:
    noun, gender = NOUNS[phrase[-1]]
    forms = [ADJECTIVES[word][gender == "f"] for word in phrase[1:-1]]
    return [ARTICLES[gender], noun, *forms]
