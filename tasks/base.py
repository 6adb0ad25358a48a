"""What a task is: pairs of prompts that differ in one fact, and the text a model learns such facts from."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Int, Int64
from torch import Tensor

from tasks.tokenizer import Tokenizer

Split = Literal["train", "val", "test"]


class Targets(NamedTuple):
    """Clean and corrupt prompts stacked, with what each should predict; see `Batch.tokens_and_targets`."""

    tokens: Int64[Tensor, "rows pos"]
    """Prompts: all clean ones, then all corrupt ones."""
    answer: Int64[Tensor, " rows"]
    """The right next token of each."""
    foil: Int64[Tensor, " rows"]
    """The wrong one."""
    position: Int64[Tensor, " rows"]
    """Index of the last prompt token."""

    @property
    def lengths(self) -> Int64[Tensor, " rows"]:
        """Tokens of each prompt; what comes after them is padding."""
        return self.position + 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Pairs of prompts of equal length that differ in one fact, checked on construction (ValueError).

    Prompts shorter than the batch is wide are padded on the right; a causal model never looks there.
    """

    clean: Int64[Tensor, "batch pos"]
    """Prompts after which `answer` is right."""
    corrupt: Int64[Tensor, "batch pos"]
    """The same prompts with one fact changed, so that `foil` is right."""
    answer: Int64[Tensor, " batch"]
    """Right next token on `clean`, wrong one on `corrupt`."""
    foil: Int64[Tensor, " batch"]
    """Wrong next token on `clean`, right one on `corrupt`."""
    position: Int64[Tensor, " batch"]
    """Index of the last prompt token: the logits there predict the answer."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Batch):
            return NotImplemented
        return all(torch.equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def __hash__(self) -> int:
        return hash(tuple(self.answer.tolist()))

    def __post_init__(self) -> None:
        _check_shapes(self)
        width = self.clean.shape[1]
        if bool(((self.position < 0) | (self.position >= width)).any()):
            raise ValueError(
                f"position must lie in [0, {width}), the width of clean; got {self.position.min().item()} to "
                f"{self.position.max().item()}. Give the index of the last prompt token of each row."
            )
        _refuse_rows(self.answer == self.foil, "answer equals foil", "each answer needs a different foil")
        in_prompt = torch.arange(width, device=self.position.device) <= self.position[:, None]
        same = ~((self.clean != self.corrupt) & in_prompt).any(dim=1)
        _refuse_rows(
            same,
            "clean and corrupt agree up to position",
            "change the fact that decides the answer in corrupt",
        )

    def __len__(self) -> int:
        return self.clean.shape[0]

    @property
    def lengths(self) -> Int64[Tensor, " batch"]:
        """Tokens of each prompt; what comes after them is padding, which no mean over positions should see."""
        return self.position + 1

    def to(self, device: str | torch.device) -> "Batch":
        """The same pairs on `device`."""
        return type(self)(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def rows(self, indices: Int64[Tensor, " rows"] | Sequence[int] | slice) -> "Batch":
        """The pairs at `indices`, in that order; IndexError where an index is out of range."""
        chosen = indices if isinstance(indices, (Tensor, slice)) else list(indices)
        return type(self)(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    def tokens_and_targets(self) -> Targets:
        """Clean prompts, then corrupt ones: `2 * batch` rows; after a corrupt one, the foil is right."""
        return Targets(
            tokens=torch.cat([self.clean, self.corrupt]),
            answer=torch.cat([self.answer, self.foil]),
            foil=torch.cat([self.foil, self.answer]),
            position=torch.cat([self.position, self.position]),
        )


@runtime_checkable
class Task(Protocol):
    """A generator of prompt pairs with a known rule behind them."""

    @property
    def name(self) -> str:
        """The key under which `load_task` finds it."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Turns prompts into ids; that of the matching corpus."""

    @property
    def n_ctx(self) -> int:
        """Length of the longest prompt, in tokens."""

    def batch(self, n: int, *, split: Split, seed: int) -> Batch:
        """`n` pairs, the same for the same arguments; no prompt occurs in two splits."""

    def solve(self, text: str) -> str:
        """The text of the token that follows `text`, worked out from the rule."""


@dataclass(frozen=True, kw_only=True)
class TextId:
    """Which text a model was trained on."""

    name: str
    """The key under which `load_corpus` finds it, or the path of a file or folder."""
    fingerprint: str
    """`Corpus.fingerprint` of its ids."""

    def to_json(self) -> dict[str, str]:
        """As JSON types."""
        return {"name": self.name, "fingerprint": self.fingerprint}

    @classmethod
    def from_json(cls, data: Any) -> "TextId":
        """The inverse of `to_json`. Raises ValueError for anything else."""
        names = ("name", "fingerprint")
        if (
            not isinstance(data, dict)
            or set(data) != set(names)
            or not all(isinstance(data[n], str) for n in names)
        ):
            raise ValueError(f"text: got {data!r}; expected a name and a fingerprint, both texts.")
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A stream of training tokens and one of validation tokens."""

    name: str
    """The key under which `load_corpus` finds it."""
    tokenizer: Tokenizer
    """What turned the text into ids."""
    train: Int[Tensor, " n_train"]
    """Training stream, of whole numbers of any width: call `.long()` before computing with them."""
    val: Int[Tensor, " n_val"]
    """Validation stream, of other text than `train`."""
    train_starts: Int64[Tensor, " n_train_starts"] | None = None
    """Where a window of `train` may begin, ascending; None: anywhere."""
    val_starts: Int64[Tensor, " n_val_starts"] | None = None
    """Where a window of `val` may begin, ascending; None: anywhere."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Corpus):
            return NotImplemented
        return (self.text_id, self.tokenizer) == (other.text_id, other.tokenizer)

    def __hash__(self) -> int:
        return hash(self.text_id)

    def windows(
        self, n: int, length: int, *, split: Split, generator: torch.Generator
    ) -> Int64[Tensor, "n length"]:
        """`n` random windows of `length` tokens from `split` ("train" or "val"), drawn with replacement.

        `generator` lives on the CPU and is advanced. ValueError for another split or too great a length.
        """
        if split not in ("train", "val"):
            raise ValueError(f"split must be 'train' or 'val', got {split!r}: a corpus holds no other text")
        stream = self.train if split == "train" else self.val
        starts = self.train_starts if split == "train" else self.val_starts
        if n < 1 or not 1 <= length <= len(stream):
            raise ValueError(
                f"windows needs n >= 1 and 1 <= length <= {len(stream)}, the tokens in {split!r} of "
                f"{self.name!r}; got n={n}, length={length}"
            )
        last = len(stream) - length
        if starts is None:
            offsets = torch.randint(last + 1, (n,), generator=generator)
        else:
            usable = int(torch.searchsorted(starts, last, right=True))
            offsets = starts[torch.randint(max(usable, 1), (n,), generator=generator)]
        return stream[offsets[:, None] + torch.arange(length)].long()

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for the ids of both streams and for where windows may begin."""
        digest = hashlib.blake2b(digest_size=8)
        for name in ("train", "val", "train_starts", "val_starts"):
            stream: Tensor | None = getattr(self, name)
            digest.update(f"{name} {None if stream is None else len(stream)}\n".encode())
            for part in () if stream is None else stream.split(2**20):
                digest.update(part.to(torch.int32).numpy().tobytes())
        return digest.hexdigest()

    @property
    def text_id(self) -> "TextId":
        """What a model that is trained on it remembers."""
        return TextId(name=self.name, fingerprint=self.fingerprint)


def corpus_of_lines(name: str, tokenizer: Tokenizer, train: Sequence[str], val: Sequence[str]) -> Corpus:
    """A corpus of complete lines, given without their newlines; windows begin where a line does."""
    newline = tokenizer.id("\n")
    streams, starts = {}, {}
    for split, lines in (("train", train), ("val", val)):
        stream = torch.tensor(tokenizer.encode("".join(f"{line}\n" for line in lines)))
        ends = (stream == newline).nonzero().flatten()
        streams[split] = stream
        starts[split] = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1] + 1])
    return Corpus(
        name=name,
        tokenizer=tokenizer,
        train=streams["train"],
        val=streams["val"],
        train_starts=starts["train"],
        val_starts=starts["val"],
    )


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One pair as text, before tokenizing."""

    clean: str
    """Prompt after which `answer` is right."""
    corrupt: str
    """Prompt of as many tokens after which `foil` is right."""
    answer: str
    """Text of one token."""
    foil: str
    """Text of another token."""
    key: str
    """What both prompts share; prompts that share a key fall into the same split."""

    def swapped(self) -> "Pair":
        """The same pair with clean and corrupt exchanged."""
        return Pair(clean=self.corrupt, corrupt=self.clean, answer=self.foil, foil=self.answer, key=self.key)


def split_of(key: str) -> Split:
    """The split that `key` belongs to, by its hash: 80 % train, 10 % val, 10 % test."""
    bucket = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) % 10
    return "test" if bucket == 0 else "val" if bucket == 1 else "train"


def draw_pairs(
    draw: Callable[[random.Random], Pair | None], *, name: str, n: int, split: Split, seed: int
) -> list[Pair]:
    """`n` pairs of `split` from `draw`, half of them swapped at random; on None it draws again.

    ValueError for an unknown split, `n` below 1, or when hardly any draw falls into `split`.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {get_args(Split)}, got {split!r}")
    if n < 1:
        raise ValueError(f"n must be at least 1 pair, got {n}")
    rng = random.Random(f"{name}/{split}/{seed}")
    pairs: list[Pair] = []
    for _ in range(1000 * (n + 10)):
        pair = draw(rng)
        if pair is not None and split_of(pair.key) == split:
            pairs.append(pair.swapped() if rng.random() < 0.5 else pair)
            if len(pairs) == n:
                return pairs
    raise ValueError(
        f"task {name!r} found only {len(pairs)} of n={n} pairs for split {split!r}; "
        f"its options leave too few prompts, so widen them"
    )


def encode_pairs(pairs: Sequence[Pair], tokenizer: Tokenizer, *, fill: str = "\n") -> Batch:
    """`pairs` as token ids, padded on the right with `fill`, newlines, to the longest.

    ValueError where the prompts of a pair differ in length, or an answer is not one token.
    """
    clean = [tokenizer.encode(pair.clean) for pair in pairs]
    corrupt = [tokenizer.encode(pair.corrupt) for pair in pairs]
    for pair, a, b in zip(pairs, clean, corrupt, strict=True):
        if len(a) != len(b):
            raise ValueError(
                f"clean {pair.clean!r} is {len(a)} tokens and corrupt {pair.corrupt!r} is {len(b)}; "
                f"expected equal lengths"
            )
    width, pad = max(map(len, clean)), tokenizer.id(fill)
    return Batch(
        clean=torch.tensor([row + [pad] * (width - len(row)) for row in clean]),
        corrupt=torch.tensor([row + [pad] * (width - len(row)) for row in corrupt]),
        answer=torch.tensor([tokenizer.id(pair.answer) for pair in pairs]),
        foil=torch.tensor([tokenizer.id(pair.foil) for pair in pairs]),
        position=torch.tensor([len(row) - 1 for row in clean]),
    )


def _check_shapes(batch: Batch) -> None:
    if batch.clean.ndim != 2 or batch.clean.numel() == 0:
        raise ValueError(
            f"clean must be [batch, pos] with at least one row and one column, "
            f"got shape {tuple(batch.clean.shape)}"
        )
    whole = tuple(batch.clean.shape)
    for field in fields(batch):
        value = getattr(batch, field.name)
        shape = whole if field.name in ("clean", "corrupt", "targets", "cell") else whole[:1]
        if tuple(value.shape) != shape:
            raise ValueError(
                f"{field.name} must have shape {shape} to agree with clean, got {tuple(value.shape)}"
            )
        if value.dtype != torch.int64:
            raise ValueError(f"{field.name} must be int64, got {value.dtype}; convert it with `.long()`")


def _refuse_rows(bad: Tensor, what: str, remedy: str) -> None:
    if bool(bad.any()):
        rows = bad.nonzero().flatten().tolist()
        raise ValueError(f"{what} in {len(rows)} of {len(bad)} rows, first in row {rows[0]}; {remedy}")
