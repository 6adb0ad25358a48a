"""A task from data: rows of (clean prompt, corrupted prompt, answer, foil), for any tokenizer."""

import csv
import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch

from tasks.base import Batch, Split
from tasks.tokenizer import Tokenizer

FIELDS = ("clean", "corrupt", "answer", "foil")
"""The columns of a file, and the order of a row."""
Several = Literal["refuse", "first"]
SHARES: dict[Split, int] = {"train": 6, "val": 2, "test": 2}
"""Tenths of the prompts that fall into each split."""


class Row(NamedTuple):
    """One pair as token ids."""

    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    answer: int
    foil: int

    def swapped(self) -> "Row":
        """Clean and corrupted prompt exchanged."""
        return Row(self.corrupt, self.clean, self.foil, self.answer)


@dataclass(frozen=True, kw_only=True)
class PairsTask:
    """Prompt pairs that somebody has written, in splits that share no prompt. Made by `from_pairs`."""

    name: str
    """What the task is called."""
    tokenizer: Tokenizer
    """What turned the text into ids."""
    n_ctx: int
    """Length of the longest prompt, in tokens."""
    rows: Mapping[Split, tuple[Row, ...]] = field(repr=False)
    """The pairs of each split."""
    answers: Mapping[str, str] = field(repr=False)
    """The answer to every prompt."""
    by_first_token: tuple[int, ...] = ()
    """Rows, from 0, whose answer or foil has several tokens and is scored by its first."""
    pad: int = field(default=0, repr=False)
    """Fills rows up on the right."""

    def batch(self, n: int, *, split: Split, seed: int) -> Batch:
        """`n` pairs of a split, drawn with replacement where it has fewer; half of them swapped at random."""
        if split not in get_args(Split):
            raise ValueError(f"split must be one of {get_args(Split)}, got {split!r}")
        if n < 1:
            raise ValueError(f"n must be at least 1 pair, got {n}")
        rng, pool = random.Random(f"{self.name}/{split}/{seed}"), self.rows[split]
        drawn = rng.sample(pool, len(pool)) if n >= len(pool) else rng.sample(pool, n)
        drawn += rng.choices(pool, k=n - len(drawn))
        return _batch([row.swapped() if rng.random() < 0.5 else row for row in drawn], self.pad)

    def solve(self, text: str) -> str:
        """The answer to a prompt of the data; ValueError for any other."""
        if text not in self.answers:
            raise ValueError(f"text: {text!r} is no prompt of {self.name!r}, whose rule is only its data.")
        return self.answers[text]


def from_pairs(
    pairs: str | Path | Iterable[Sequence[str] | Mapping[str, str]],
    tokenizer: Tokenizer,
    *,
    name: str | None = None,
    several: Several = "refuse",
    bos: bool | None = None,
) -> PairsTask:
    """A task out of rows (clean, corrupt, answer, foil): a list of them, or a CSV file with these columns.

    After `clean` the answer is right, after `corrupt` the foil. tokenizer: of the model; one of Hugging Face as
    `HFTokenizer`. name: default, the file's name or "pairs". several: what to do with an answer of several tokens:
    refuse, or score by the `first` (which rows, `by_first_token` says). bos: put the tokenizer's first-of-text token
    before prompts; None: where it does so itself. An answer is encoded as it follows the prompt, so that `"Mary"` after
    `"and "` and `" Mary"` after `"and"` are told apart; where the two would run together, by itself.

    Rows are told apart by their prompts: the same two prompts fall into one split. Raises ValueError for fewer than
    three pairs, and by row for missing columns, prompts of different lengths, answers that agree.

    Examples:
        >>> rows = [("x = 'a", 'x = "a', "'", '"'), ("y = 'b", 'y = "b', "'", '"'), ("z = 'c", 'z = "c', "'", '"')]
        >>> task = tasks.from_pairs(rows, circuits.load("quotes-128").model.tokenizer, name="my quotes")
        >>> task.batch(1, split="train", seed=0).clean.shape
        torch.Size([1, 6])
    """
    if several not in get_args(Several):
        raise ValueError(f"several: got {several!r}; expected one of {get_args(Several)}.")
    rows = _read(pairs)
    if not rows:
        raise ValueError(f"pairs: got no rows; expected at least {len(SHARES)}, each with {FIELDS}.")
    first = _first_token(tokenizer, bos)
    encoded, by_first = [], []
    for i, row in enumerate(rows):
        try:
            one, cut = _encoded(row, tokenizer, first, several)
        except ValueError as error:
            raise ValueError(f"pairs: row {i}: {error}") from None
        encoded.append(one)
        by_first += [i] if cut else []
    return PairsTask(
        name=name or (Path(pairs).stem if isinstance(pairs, str | Path) else "pairs"),
        tokenizer=tokenizer,
        n_ctx=max(len(row.clean) for row in encoded),
        rows=_split(rows, encoded),
        answers=_answers(rows),
        by_first_token=tuple(by_first),
        pad=int(getattr(tokenizer, "pad", 0)),
    )


def _read(pairs: str | Path | Iterable[Sequence[str] | Mapping[str, str]]) -> list[tuple[str, str, str, str]]:
    if isinstance(pairs, str | Path):
        try:
            if Path(pairs).exists() and not Path(pairs).is_file():
                raise OSError("it is no regular file")
            with Path(pairs).open(newline="", encoding="utf-8") as file:
                return _read(list(csv.DictReader(file)))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ValueError(
                f"pairs: {pairs} cannot be read ({error}); expected a CSV file with columns {FIELDS}."
            ) from None
    return [_row(i, row) for i, row in enumerate(pairs)]


def _row(i: int, row: Sequence[str] | Mapping[str, str]) -> tuple[str, str, str, str]:
    given = [row.get(name) for name in FIELDS] if isinstance(row, Mapping) else list(row)
    texts = [text for text in given if isinstance(text, str) and text]
    if len(given) != 4 or len(texts) != 4:
        raise ValueError(
            f"pairs: row {i} is {str(row)[:300]}; expected four texts that are not empty, {FIELDS}."
        )
    return texts[0], texts[1], texts[2], texts[3]


def _first_token(tokenizer: Tokenizer, bos: bool | None) -> tuple[int, ...]:
    own = getattr(tokenizer, "bos", None)
    if bos and own is None:
        inner = getattr(tokenizer, "tokenizer", None)
        own = getattr(inner, "bos_token_id", None)
    if bos and own is None:
        raise ValueError(
            f"bos: got True, but {tokenizer.name!r} has no first-of-text token; expected False or None."
        )
    return () if bos is False or own is None else (int(own),)


def _encoded(
    row: tuple[str, str, str, str], tokenizer: Tokenizer, first: tuple[int, ...], several: Several
) -> tuple[Row, bool]:
    """One row as ids, and whether an answer was cut to its first token."""
    clean, corrupt, answer, foil = row
    prompts = [tokenizer.encode(text) for text in (clean, corrupt)]
    if len(prompts[0]) != len(prompts[1]):
        raise ValueError(
            f"clean {clean[:200]!r} is {len(prompts[0])} tokens and corrupt {corrupt[:200]!r} is "
            f"{len(prompts[1])}; expected equal lengths. Choose words of as many tokens."
        )
    ends = [_following(tokenizer, clean, prompts[0], text) for text in (answer, foil)]
    cut = any(len(end) > 1 for end in ends)
    if cut and several == "refuse":
        pieces = [[tokenizer.token(id) for id in end[:8]] for end in ends]
        raise ValueError(
            f"answer and foil are {pieces[0]} and {pieces[1]}; expected one token each. Choose others, "
            'or score by the first token: several="first".'
        )
    if not all(ends) or ends[0][0] == ends[1][0]:
        raise ValueError(
            f"answer {answer[:200]!r} and foil {foil[:200]!r} begin with the same token; expected different ones."
        )
    if prompts[0] == prompts[1]:
        raise ValueError(f"clean and corrupt are both {clean[:200]!r}; expected one fact to differ.")
    return Row((*first, *prompts[0]), (*first, *prompts[1]), ends[0][0], ends[1][0]), cut


def _following(tokenizer: Tokenizer, prompt: str, ids: list[int], text: str) -> list[int]:
    """Tokens of a text as they follow a prompt; by itself where that changes the prompt's own."""
    try:
        whole = tokenizer.encode(prompt + text)
    except ValueError:  # words that only make sense apart
        return tokenizer.encode(text)
    return whole[len(ids) :] if whole[: len(ids)] == ids and len(whole) > len(ids) else tokenizer.encode(text)


def _split(rows: list[tuple[str, str, str, str]], encoded: list[Row]) -> dict[Split, tuple[Row, ...]]:
    """Rows by split: groups that share a prompt stay together, in an order that only their text decides."""
    groups = _groups(rows)
    if len(groups) < len(SHARES):
        raise ValueError(
            f"pairs: got {len(rows)} rows with {len(groups)} unrelated pairs of prompts; expected at least "
            f"{len(SHARES)}, one for each split."
        )
    order = sorted(groups, key=lambda own: hashlib.blake2b(rows[own[0]][0].encode()).hexdigest())
    n_val, n_test = (max(1, len(order) * SHARES[split] // 10) for split in ("val", "test"))
    parts = {"val": order[:n_val], "test": order[n_val : n_val + n_test], "train": order[n_val + n_test :]}
    return {split: tuple(encoded[i] for own in parts[split] for i in own) for split in SHARES}


def _groups(rows: list[tuple[str, str, str, str]]) -> list[list[int]]:
    """Numbers of rows that share a prompt, directly or through others."""
    leader: dict[str, str] = {}

    def find(text: str) -> str:
        while (above := leader.setdefault(text, text)) != text:
            leader[text] = leader[above]  # half the way, so that no chain stays long
            text = above
        return text

    for clean, corrupt, *_ in rows:
        leader[find(clean)] = find(corrupt)
    found: dict[str, list[int]] = {}
    for i, (clean, *_) in enumerate(rows):
        found.setdefault(find(clean), []).append(i)
    return list(found.values())


def _answers(rows: list[tuple[str, str, str, str]]) -> dict[str, str]:
    """The answer to every prompt. Raises ValueError for a prompt with two."""
    found: dict[str, str] = {}
    for i, (clean, corrupt, answer, foil) in enumerate(rows):
        for prompt, right in ((clean, answer), (corrupt, foil)):
            if found.setdefault(prompt, right) != right:
                raise ValueError(
                    f"pairs: row {i}: {prompt[:200]!r} is to be answered by {right[:200]!r}, and in another row by "
                    f"{found[prompt][:200]!r}; expected one answer to a prompt."
                )
    return found


def _batch(rows: Sequence[Row], pad: int) -> Batch:
    width = max(len(row.clean) for row in rows)

    def filled(prompt: tuple[int, ...]) -> list[int]:
        return [*prompt, *[pad] * (width - len(prompt))]

    return Batch(
        clean=torch.tensor([filled(row.clean) for row in rows]),
        corrupt=torch.tensor([filled(row.corrupt) for row in rows]),
        answer=torch.tensor([row.answer for row in rows]),
        foil=torch.tensor([row.foil for row in rows]),
        position=torch.tensor([len(row.clean) - 1 for row in rows]),
    )
