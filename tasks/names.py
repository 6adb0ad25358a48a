"""Two names: after `when ann and bob went to the shop , bob gave a book to` comes the name said once."""

import random
from dataclasses import dataclass, field

from tasks.base import Batch, Corpus, Pair, Split, corpus_of_lines, draw_pairs, encode_pairs
from tasks.tokenizer import WordTokenizer

NAMES = (
    *("ann", "bob", "cat", "dan", "eve", "fay", "gus", "hal", "ida", "jon"),
    *("kay", "leo", "mia", "ned", "pam", "ray", "sue", "tom", "una", "vic"),
)
PLACES = ("shop", "park", "school", "station", "garden", "office", "beach", "market")
THINGS = ("book", "drink", "ring", "letter", "coat", "key", "map", "cake")
OPENINGS = (
    "when {first} and {second} went to the {place} ,",
    "after {first} met {second} at the {place} ,",
    "{first} and {second} walked to the {place} and then",
    "while {first} waited for {second} near the {place} ,",
)
ENDINGS = ("{giver} gave a {thing} to", "{giver} handed the {thing} to", "a {thing} was sent by {giver} to")
# Sentences that hold one name only, so that "the other name" is not all there is to learn.
OTHERS = ("{first} took the {thing} to the {place} .", "the {thing} of {first} was lost at the {place} .")


def _vocabulary() -> tuple[str, ...]:
    text = " ".join((*OPENINGS, *ENDINGS, *OTHERS)).split()
    fixed = dict.fromkeys(word for word in text if not word.startswith("{"))
    return ("\n", *fixed, *PLACES, *THINGS, *NAMES)


NAME_WORDS = WordTokenizer(name="name-words", words=_vocabulary())


@dataclass(frozen=True, kw_only=True)
class Names:
    """Of two people the one who does not give receives; either may be named first."""

    tokenizer: WordTokenizer = field(default=NAME_WORDS)
    """One token to a word."""
    name: str = "names"
    """The key under which `load_task` finds it."""

    @property
    def n_ctx(self) -> int:
        """Length of the longest prompt, in tokens."""
        return max(len(part.split()) for part in OPENINGS) + max(len(part.split()) for part in ENDINGS)

    def batch(self, n: int, *, split: Split, seed: int) -> Batch:
        """`n` pairs that differ in who gives."""
        return encode_pairs(draw_pairs(_draw, name=self.name, n=n, split=split, seed=seed), self.tokenizer)

    def solve(self, text: str) -> str:
        """The name that occurs once."""
        words = text.split()
        return next(word for word in words if word in NAMES and words.count(word) == 1)


def names_corpus(seed: int = 0, *, n_train_lines: int = 30_000, n_val_lines: int = 2_000) -> Corpus:
    """Whole sentences, a line each, a quarter of them with one name; windows begin where a line does."""

    def lines(split: Split, n: int) -> list[str]:
        pairs = draw_pairs(_draw, name=f"names-corpus-{seed}", n=n, split=split, seed=seed)
        rng = random.Random(f"names/{split}/{seed}")
        return [
            _fill(rng.choice(OTHERS), rng) if rng.random() < 0.25 else f"{pair.clean} {pair.answer} ."
            for pair in pairs
        ]

    return corpus_of_lines("names", NAME_WORDS, lines("train", n_train_lines), lines("val", n_val_lines))


def _draw(rng: random.Random) -> Pair:
    # Filled twice: the names and things now, the giver below.
    first, second = rng.sample(NAMES, 2)
    frame = _fill(
        f"{rng.choice(OPENINGS)} {rng.choice(ENDINGS)}", rng, first=first, second=second, giver="{giver}"
    )
    return Pair(
        clean=frame.format(giver=second),
        corrupt=frame.format(giver=first),
        answer=first,
        foil=second,
        key=frame,
    )


def _fill(frame: str, rng: random.Random, **given: str) -> str:
    drawn = {"first": rng.choice(NAMES), "place": rng.choice(PLACES), "thing": rng.choice(THINGS)}
    return frame.format(**drawn | given)
