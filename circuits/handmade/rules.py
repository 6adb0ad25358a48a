"""The small tasks that hand-made models perform, each a rule that can be stated in one line.

All of them use mini-Python's characters, and no two answer with the same tokens, so that any two circuits fit
into one model.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tasks import Batch, Corpus
from tasks.base import Pair, Split, corpus_of_lines, draw_pairs, encode_pairs
from tasks.tokenizer import DIGITS, LETTERS, CharTokenizer

NAMES = "abcdefgh"
"""The names of the induction task; bit b of a name is bit b of its place here."""
COPIED = "abcd"
"""The letters of the copying task, coded by two bits."""
SEATS = (1, 3, 5)
"""Positions of the votes that count."""
VOTES = 12
"""Votes cast, most of them from seats that do not count."""
OTHER = {"'": '"', '"': "'", "+": "-", "-": "+"}
"""For each mark of the tasks on quotes and signs the one that could stand in its place."""


@dataclass(frozen=True, kw_only=True)
class RuleTask:
    """A task made of one function that draws a pair and one that states the rule."""

    name: str
    """What the task is called in circuits and tables."""
    n_ctx: int
    """Length of the longest prompt, in tokens."""
    draw: Callable[[random.Random], Pair | None]
    """One pair, or None to be asked again."""
    rule: Callable[[str], str]
    """The text of the token that follows a prompt."""
    tokenizer: CharTokenizer = field(default_factory=CharTokenizer)
    """That of mini-Python."""

    def batch(self, n: int, *, split: Split, seed: int) -> Batch:
        """`n` pairs, the same for the same arguments; no prompt occurs in two splits."""
        pairs = draw_pairs(self.draw, name=self.name, n=n, split=split, seed=seed)
        return encode_pairs(pairs, self.tokenizer)

    def solve(self, text: str) -> str:
        """The text of the token that follows `text`, worked out from the rule."""
        return self.rule(text)


def lines_of(*tasks: RuleTask, n: int = 2000) -> Corpus:
    """Prompts with their answers, a line each, `n` of every task, as training text."""
    lines: dict[Split, list[str]] = {"train": [], "val": []}
    for split, own in lines.items():
        for task in tasks:
            pairs = draw_pairs(task.draw, name=f"{task.name}-text", n=n, split=split, seed=0)
            own += [pair.clean + pair.answer for pair in pairs]
    name = " and ".join(task.name for task in tasks)
    return corpus_of_lines(name, tasks[0].tokenizer, lines["train"], lines["val"])


def induction_task() -> RuleTask:
    """`c)a(d(b)a` goes on with `(`: what followed the last name where it stood before."""
    return RuleTask(
        name="induction", n_ctx=17, draw=_draw_induction, rule=lambda text: text[text.index(text[-1]) + 1]
    )


def copy_task() -> RuleTask:
    """`dbacb*` goes on with `d`, the first letter."""
    return RuleTask(name="copy", n_ctx=9, draw=_draw_copy, rule=lambda text: text[0])


def majority_task() -> RuleTask:
    """`+--+-++-+++-` goes on with the sign that most of the seats 1, 3 and 5 chose."""
    return RuleTask(name="majority", n_ctx=VOTES, draw=_draw_majority, rule=_most)


def sum_task() -> RuleTask:
    """`7+5+1=` goes on with `3`: addition modulo ten."""
    return RuleTask(name="modular", n_ctx=6, draw=_draw_sum, rule=_sum)


def opened_task() -> RuleTask:
    """`kd'x+bq*` goes on with `'`, the quote in it."""
    return RuleTask(name="opened", n_ctx=9, draw=_draw_opened, rule=_quote)


def xor_task() -> RuleTask:
    """`kd'x+bq=` goes on with `y`: quote and sign are `'` and `+`, or neither is; else with `n`."""
    return RuleTask(name="xor", n_ctx=9, draw=_draw_xor, rule=_agree)


def _draw_induction(rng: random.Random) -> Pair:
    values = {name: rng.choice("()") for name in NAMES}
    order, asked = rng.sample(NAMES, len(NAMES)), rng.choice(NAMES)
    texts = {}
    for value in "()":
        values[asked] = value
        texts[value] = "".join(name + values[name] for name in order) + asked
    rest = "".join(values[name] for name in order if name != asked)
    return Pair(
        clean=texts["("], corrupt=texts[")"], answer="(", foil=")", key=f"{''.join(order)} {asked} {rest}"
    )


def _draw_copy(rng: random.Random) -> Pair:
    code, bit = rng.randrange(4), 1 << rng.randrange(2)
    answer, foil = COPIED[code], COPIED[code ^ bit]
    rest = "".join(rng.choices(COPIED, k=3 + rng.randrange(5))) + "*"
    return Pair(clean=answer + rest, corrupt=foil + rest, answer=answer, foil=foil, key=rest)


def _draw_majority(rng: random.Random) -> Pair | None:
    votes = rng.choices("+-", k=VOTES)
    flipped = rng.choice(SEATS)
    others = [votes[seat] for seat in SEATS if seat != flipped]
    if others[0] == others[1]:
        return None
    texts = {}
    for sign in "+-":
        votes[flipped] = sign
        texts[sign] = "".join(votes)
    votes[flipped] = "?"
    return Pair(clean=texts["+"], corrupt=texts["-"], answer="+", foil="-", key=_without_seats(votes))


def _without_seats(votes: list[str]) -> str:
    # Seats that do not count decide the split, so that both prompts of a pair are on one side of it.
    return "".join(vote for seat, vote in enumerate(votes) if seat not in SEATS)


def _most(text: str) -> str:
    return "+" if sum(text[seat] == "+" for seat in SEATS) >= 2 else "-"


def _draw_sum(rng: random.Random) -> Pair | None:
    a, b, c, d = (rng.choice(DIGITS) for _ in range(4))
    if c == d:
        return None
    clean, corrupt = f"{a}+{b}+{c}=", f"{a}+{b}+{d}="
    # Only the last digit changes, so that the first two can divide all prompts into splits.
    return Pair(clean=clean, corrupt=corrupt, answer=_sum(clean), foil=_sum(corrupt), key=f"{a} {b}")


def _sum(text: str) -> str:
    return str(sum(int(character) for character in text if character in DIGITS) % 10)


def _draw_opened(rng: random.Random) -> Pair:
    frame, quote, sign = _draw_frame(rng) + "*", rng.choice("'\""), rng.choice("+-")
    return _pair(frame, (quote, sign), (OTHER[quote], sign), _quote)


def _draw_xor(rng: random.Random) -> Pair:
    frame, quote, sign = _draw_frame(rng) + "=", rng.choice("'\""), rng.choice("+-")
    other = (OTHER[quote], sign) if rng.random() < 0.5 else (quote, OTHER[sign])
    return _pair(frame, (quote, sign), other, _agree)


def _draw_frame(rng: random.Random) -> str:
    """Letters, the first of them in front, with a place for a quote, `?`, and one for a sign, `!`, in either order."""
    first, *rest = rng.choices(LETTERS, k=4 + rng.randrange(3))
    rest += ["?", "!"]
    rng.shuffle(rest)
    return first + "".join(rest)


def _pair(frame: str, marks: tuple[str, str], other: tuple[str, str], rule: Callable[[str], str]) -> Pair:
    clean, corrupt = (frame.replace("?", quote).replace("!", sign) for quote, sign in (marks, other))
    return Pair(clean=clean, corrupt=corrupt, answer=rule(clean), foil=rule(corrupt), key=frame)


def _quote(text: str) -> str:
    return "'" if "'" in text else '"'


def _agree(text: str) -> str:
    return "y" if ("'" in text) == ("+" in text) else "n"
