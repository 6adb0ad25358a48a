"""Five more choices in mini-Python: a line is cut off where one mark in it decides between two next tokens."""

import random
import re
from dataclasses import dataclass, field

from tasks.base import Batch, Pair, Split, draw_pairs, encode_pairs
from tasks.grammar import QUOTES, draw_name
from tasks.near import unknown
from tasks.tokenizer import DIGITS, LETTERS, CharTokenizer

N_CTX = 16
_SLOT = re.compile(r"<([a-z])>")


@dataclass(frozen=True, kw_only=True)
class MiniForm:
    """Two ways for a line to begin, as templates, and how each goes on.

    `<n>` is a name, `<d>` and `<e>` digits, `<q>` a quote, `<s>` one to four letters, `<l>` and `<w>` to `<z>` a
    letter each. The decisive `mark` stands in `clean` and not in `corrupt`.
    """

    clean: str
    """The line after which `answer` is right."""
    corrupt: str
    """A line of as many tokens, with the same last one, after which `foil` is right."""
    mark: str
    """The character that decides."""
    answer: str
    """What follows clean."""
    foil: str
    """What follows corrupt."""


FORMS: dict[str, MiniForm] = {
    "bracket_kind": MiniForm(
        clean="<n> = [<d>, <e>", corrupt="<n> = (<d>, <e>", mark="[", answer="]", foil=")"
    ),
    "line_end": MiniForm(clean="<n> = (<d>, <e>", corrupt="<n> = <d> + <e>", mark="(", answer=")", foil="\n"),
    "separator": MiniForm(clean="<n> = [<d>", corrupt="<n> = <e><d>", mark="[", answer=",", foil=" "),
    "string_end": MiniForm(
        clean="<n> = (<q><s><q>", corrupt="<n> = <q><l><s><q>", mark="(", answer=",", foil="\n"
    ),
    "call_end": MiniForm(
        clean="<n> = len(<q><s><q>", corrupt="<n> = <q><w><x><y><z><s><q>", mark="(", answer=")", foil="\n"
    ),
}
"""Every form by the name of its task."""


@dataclass(frozen=True, kw_only=True)
class MiniChoice:
    """One of the choices in `FORMS`, as the first line of a text."""

    name: str
    """The form, and the key under which `load_task` finds it."""
    tokenizer: CharTokenizer = field(default_factory=CharTokenizer)
    """That of mini-Python."""

    def __post_init__(self) -> None:
        if self.name not in FORMS:
            raise ValueError(unknown("name", self.name, FORMS))

    @property
    def n_ctx(self) -> int:
        """No prompt is longer, in tokens."""
        return N_CTX

    def batch(self, n: int, *, split: Split, seed: int) -> Batch:
        """`n` pairs, of which one has the mark."""
        return encode_pairs(
            draw_pairs(self._draw, name=self.name, n=n, split=split, seed=seed), self.tokenizer
        )

    def solve(self, text: str) -> str:
        """What follows: whether the mark is there decides."""
        form = FORMS[self.name]
        return form.answer if form.mark in text else form.foil

    def _draw(self, rng: random.Random) -> Pair:
        form = FORMS[self.name]
        values = {"n": draw_name(rng), "q": rng.choice(QUOTES), "d": rng.choice(DIGITS)}
        values |= {"e": rng.choice(DIGITS[1:]), "s": "".join(rng.choices(LETTERS, k=rng.randint(1, 4)))}
        values |= {slot: rng.choice(LETTERS) for slot in "lwxyz"}
        clean, corrupt = (
            _SLOT.sub(lambda slot: values[slot[1]], text) for text in (form.clean, form.corrupt)
        )
        # A value that only one of the prompts shows must not decide the split of the other.
        shared = sorted(set(_SLOT.findall(form.clean)) & set(_SLOT.findall(form.corrupt)))
        key = " ".join(values[slot] for slot in shared)
        return Pair(clean=clean, corrupt=corrupt, answer=form.answer, foil=form.foil, key=key)
