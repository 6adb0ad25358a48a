"""Tasks that the field knows, for models that know English (or Python): made of the words that a tokenizer has whole.

- `ioi`: the indirect object. "When Mary and John went to the store, John gave a drink to" -> " Mary"; corrupted, Mary
  gives. Source: Wang et al. 2022 (arXiv 2211.00593).
- `greater-than`: "The war that began in the year 1741 ended in the year 17" -> a later year; corrupted, it ended first.
  Source: Hanna et al. 2023 (arXiv 2305.00586), with the direction as the fact that differs: a foil must be right too.
- `docstring`: the argument whose turn it is in a docstring; corrupted, the function has another one there.
  Source: Heimersheim and Janiak 2023.
- `pronouns`: "So John is such a good friend, isn't" -> " he"; corrupted, it is Mary. Source: Athwin et al. 2023.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from tasks.hf import HFTokenizer
from tasks.near import unknown
from tasks.pairs import PairsTask, from_pairs
from tasks.tokenizer import Tokenizer

Text = tuple[str, str, str, str]
"""Clean prompt, corrupted prompt, answer, foil."""
Draw = Callable[["_Words", random.Random], Text]
# fmt: off
MEN = (
    "John", "James", "Robert", "Michael", "David", "William", "Richard", "Thomas", "Mark", "Paul", "Steven", "Kevin",
    "George", "Edward", "Ryan", "Eric", "Jack", "Adam", "Peter", "Simon", "Tom", "Dan", "Luke", "Max",
)
WOMEN = (
    "Mary", "Jennifer", "Linda", "Elizabeth", "Susan", "Jessica", "Sarah", "Karen", "Lisa", "Nancy", "Emily",
    "Michelle", "Amanda", "Melissa", "Laura", "Amy", "Anna", "Emma", "Kate", "Rachel", "Alice", "Jane", "Lucy",
)
PLACES = (
    "store", "park", "school", "office", "garden", "station", "restaurant", "hospital", "house", "library",
)
THINGS = ("drink", "book", "ring", "ball", "letter", "key", "computer", "necklace", "kiss", "bone")
EVENTS = ("war", "strike", "siege", "trial", "project", "voyage", "reign", "plan", "study", "drought")
ADJECTIVES = ("good", "great", "kind", "loyal", "funny", "nice", "strange", "helpful")
ROLES = ("friend", "teacher", "neighbor", "player", "student", "writer", "worker", "cook")
ARGUMENTS = (
    "files", "state", "value", "name", "size", "path", "data", "key", "text", "mode", "user", "time", "model", "color",
    "token", "index", "width", "order", "group", "line", "date", "port", "host", "level",
)
# fmt: on
NOTES = ("set", "list", "number", "result", "input", "field", "type", "option", "string", "part")
CENTURIES = ("11", "12", "13", "14", "15", "16", "17", "18")
LEAST = 4
"""Words of a kind that a tokenizer must have whole."""


class _Words:
    """The words of each kind that are one token where they stand."""

    def __init__(self, name: str, tokenizer: Tokenizer) -> None:
        self.name, self.tokenizer = name, tokenizer
        self._known: dict[tuple[str, str], list[str]] = {}

    def whole(self, kind: str, words: Sequence[str], before: str = " ") -> list[str]:
        """Those that are one token after `before`. Raises ValueError where fewer than `LEAST` are."""
        if (kind, before) not in self._known:
            self._known[kind, before] = self._whole(kind, words, before)
        return self._known[kind, before]

    def _whole(self, kind: str, words: Sequence[str], before: str) -> list[str]:
        found = [word for word in words if self._is_one(before, word)]
        if len(found) < LEAST:
            raise ValueError(
                f"tokenizer: {len(found)} of the {len(words)} {kind} of {self.name!r} are single tokens of "
                f"{self.tokenizer.name!r}; expected at least {LEAST}. Write pairs of words that it has whole: "
                "tasks.from_pairs(rows, tokenizer)."
            )
        return found

    def _is_one(self, before: str, word: str) -> bool:
        try:
            start, whole = (
                self.tokenizer.encode(text) for text in (f"a{before}".rstrip(), f"a{before}{word}")
            )
        except ValueError:  # not in its alphabet, or among its words
            return False
        return len(whole) == len(start) + 1 and whole[: len(start)] == start


def _ioi(words: _Words, rng: random.Random) -> Text:
    one, two = rng.sample(words.whole("names", MEN + WOMEN), 2)
    place, thing = rng.choice(PLACES), rng.choice(THINGS)
    first, second = rng.sample((one, two), 2)
    clean, corrupt = (
        f"When {first} and {second} went to the {place}, {giver} gave a {thing} to" for giver in (two, one)
    )
    return clean, corrupt, f" {one}", f" {two}"


def _greater_than(words: _Words, rng: random.Random) -> Text:
    century, event = rng.choice(CENTURIES), rng.choice(EVENTS)
    years = words.whole("years", [f"{year:02d}" for year in range(2, 99)], f" {century}")
    earlier, year, later = sorted(rng.sample(years, 3))
    told = [("began", "ended"), ("ended", "began")]
    clean, corrupt = (
        f"The {event} that {one} in the year {century}{year} {two} in the year {century}" for one, two in told
    )
    return clean, corrupt, later, earlier


def _docstring(words: _Words, rng: random.Random) -> Text:
    *names, third, other = rng.sample(words.whole("arguments", ARGUMENTS), 4)
    notes, about = rng.sample(NOTES, 4), rng.choice(NOTES)
    lines = "".join(
        f"    :param {name}: {a} {b}\n" for name, a, b in zip(names, notes[:2], notes[2:], strict=True)
    )
    clean, corrupt = (
        f'def {about}(self, {", ".join([*names, last])}):\n    """the {about}\n\n{lines}    :param'
        for last in (third, other)
    )
    return clean, corrupt, f" {third}", f" {other}"


def _pronouns(words: _Words, rng: random.Random) -> Text:
    man, woman = (rng.choice(words.whole(kind, names)) for kind, names in (("men", MEN), ("women", WOMEN)))
    adjective, role = rng.choice(ADJECTIVES), rng.choice(ROLES)
    he, she = (f"So {name} is such a {adjective} {role}, isn't" for name in (man, woman))
    return (he, she, " he", " she") if rng.random() < 0.5 else (she, he, " she", " he")


PUBLIC: dict[str, Draw] = {
    "ioi": _ioi,
    "greater-than": _greater_than,
    "docstring": _docstring,
    "pronouns": _pronouns,
}
"""What draws one pair of each task, by name."""


def public_task(name: str, tokenizer: Any, *, n: int = 400, seed: int = 0) -> PairsTask:
    """A task that the field knows, in a tokenizer's own words: names, years and arguments that are single tokens.

    tokenizer: one of ours, or of Hugging Face (as it is, or as `HFTokenizer`). n: pairs, of which a few that are drawn
    twice fall away. The same arguments give the same task. Raises ValueError for another name, and for a tokenizer that
    has too few of the words whole, or none of the sentences around them.

    Examples:
        >>> from tasks.public import ADJECTIVES, MEN, ROLES, WOMEN
        >>> from tasks.tokenizer import WordTokenizer
        >>> said = ["So", "is", "such", "a", "isn't", "he", "she", *MEN, *WOMEN, *ADJECTIVES, *(f"{r}," for r in ROLES)]
        >>> task = tasks.public_task("pronouns", WordTokenizer(name="words", words=tuple(said)))
        >>> task.solve("So John is such a good friend, isn't")
        ' he'
    """
    if name not in PUBLIC:
        raise ValueError(unknown("name", name, PUBLIC))
    own = tokenizer if isinstance(tokenizer, Tokenizer) else HFTokenizer(tokenizer=tokenizer)
    rng, words = random.Random(f"public/{name}/{seed}"), _Words(name, own)
    drawn = dict.fromkeys(PUBLIC[name](words, rng) for _ in range(n))
    rows = [text for text in drawn if _can_be_said(own, text)]
    if not rows:
        raise ValueError(
            f"tokenizer: {own.name!r} cannot write one sentence of {name!r}, such as {next(iter(drawn))[0]!r}; "
            "expected one that knows English text. Write pairs in its words: tasks.from_pairs(rows, tokenizer)."
        )
    return from_pairs(_one_answer_each(rows), own, name=name)


def _can_be_said(tokenizer: Tokenizer, text: Text) -> bool:
    """Whether the tokenizer can write a pair, in prompts of one length and answers of one token."""
    try:
        clean, corrupt = (tokenizer.encode(prompt) for prompt in text[:2])
        ends = [tokenizer.encode(text[0] + end) for end in text[2:]]
    except ValueError:
        return False
    return len(clean) == len(corrupt) and all(
        end[: len(clean)] == clean and len(end) == len(clean) + 1 for end in ends
    )


def _one_answer_each(rows: Sequence[Text]) -> list[Text]:
    """The rows without those that ask for another answer to a prompt that was there: several years are later."""
    said: dict[str, str] = {}
    kept = []
    for clean, corrupt, answer, foil in rows:
        if said.get(clean, answer) == answer and said.get(corrupt, foil) == foil:
            said |= {clean: answer, corrupt: foil}
            kept.append((clean, corrupt, answer, foil))
    return kept
