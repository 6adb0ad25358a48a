"""Text to token ids and back: characters and words for toy corpora, byte-level BPE for real Python."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
MINI_SYMBOLS = ("\n", " ", *LETTERS, *DIGITS, "=", "'", '"', "[", "]", "]]", "(", ")", ",", "+", "-", "*")

# Words take the space before them, digits stand alone, and so does every newline: "a line ends here" is one
# token, however far the next line is indented.
_PIECES = r" ?[\p{L}_]+| ?\p{N}| ?[^\s\p{L}\p{N}_]+|\n|[^\S\n]+(?!\S)|[^\S\n]+"


@runtime_checkable
class Tokenizer(Protocol):
    """What every tokenizer offers; `decode(encode(text)) == text` for all text that `encode` accepts."""

    @property
    def name(self) -> str:
        """A short name, unique among tokenizers."""

    @property
    def d_vocab(self) -> int:
        """Number of distinct ids; ids run from 0 to `d_vocab - 1`."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; ValueError where a part of it is outside the vocabulary."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, joined."""

    def token(self, id: int) -> str:
        """One token in printable form, for labels: a space shows as `·`, a newline as `⏎`."""

    def id(self, token_text: str) -> int:
        """The id of the token whose text is `token_text`; ValueError if it is not exactly one token."""


@dataclass(frozen=True, kw_only=True)
class CharTokenizer:
    """Greedy longest match over a fixed table of symbols: the characters of mini-Python, and `]]`."""

    name: str = "mini-char"
    """A short name, unique among tokenizers."""
    symbols: tuple[str, ...] = MINI_SYMBOLS
    """Token texts in the order of their ids."""

    def __post_init__(self) -> None:
        if not self.symbols or "" in self.symbols or len(set(self.symbols)) != len(self.symbols):
            raise ValueError(f"symbols must be distinct, non-empty strings, got {self.symbols!r}")

    @property
    def d_vocab(self) -> int:
        """Number of distinct ids."""
        return len(self.symbols)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: i for i, symbol in enumerate(self.symbols)}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.symbols, key=len, reverse=True)
        # The last branch matches anything, so that an unknown character surfaces in the lookup.
        return re.compile("|".join(map(re.escape, longest_first)) + "|.", re.DOTALL)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; ValueError names the first unknown character and its place."""
        try:
            return [self._ids[symbol] for symbol in self._pattern.findall(text)]
        except KeyError:
            pass
        place, character = next(
            (match.start(), match.group())
            for match in self._pattern.finditer(text)
            if match.group() not in self._ids
        )
        raise ValueError(
            f"text holds {character!r} at index {place}, which is not in the alphabet of {self.name!r}: "
            f"{''.join(s for s in self.symbols if len(s) == 1)!r}. Remove it or use another tokenizer."
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, joined."""
        return "".join(self.symbols[i] for i in _checked(ids, self))

    def token(self, id: int) -> str:
        """One token in printable form: a space shows as `·`, a newline as `⏎`."""
        return printable(self.decode([id]))

    def id(self, token_text: str) -> int:
        """The id of the token whose text is `token_text`; ValueError if it is not exactly one token."""
        return _single(self.encode(token_text), token_text, self)


@dataclass(frozen=True, kw_only=True)
class WordTokenizer:
    """Whole words between single spaces; a newline is a word of its own and needs no space around it.

    Round trips hold for text in that form, such as `"3 + 4 = 7\\n1 + 1 ="`.
    """

    name: str
    """A short name, unique among tokenizers."""
    words: tuple[str, ...]
    """The vocabulary in the order of its ids, the newline included where it is used."""

    def __post_init__(self) -> None:
        spaced = [word for word in self.words if word != "\n" and word.split() != [word]]
        if spaced or len(set(self.words)) != len(self.words):
            raise ValueError(
                f"words must be distinct and, but for the newline, without white space; got {self.words!r}"
            )

    @property
    def d_vocab(self) -> int:
        """Number of distinct ids."""
        return len(self.words)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; ValueError names the first unknown word and its place."""
        words = re.findall(r"\n|[^ \n]+", text)
        for place, word in enumerate(words):
            if word not in self._ids:
                raise ValueError(
                    f"text holds {word[:60]!r} as word {place}, which is not among the {self.d_vocab} words of "
                    f"{self.name!r}, {', '.join(map(repr, self.words[:12]))} ...; see `tokenizer.words`"
                )
        return [self._ids[word] for word in words]

    def decode(self, ids: Iterable[int]) -> str:
        """The words of `ids`, joined by single spaces except around newlines."""
        text = " ".join(self.words[i] for i in _checked(ids, self))
        return re.sub(" ?\n ?", "\n", text)

    def token(self, id: int) -> str:
        """One token in printable form: a newline shows as `⏎`."""
        return printable(self.words[_checked([id], self)[0]])

    def id(self, token_text: str) -> int:
        """The id of the word `token_text`; ValueError if it is not exactly one word."""
        return _single(self.encode(token_text), token_text, self)


@dataclass(frozen=True, kw_only=True)
class BPE:
    """Byte-level byte-pair encoding: any text goes in, and comes out unchanged."""

    name: str
    """A short name, unique among tokenizers."""
    model: str = field(repr=False)
    """The whole model as JSON, in the format of Hugging Face `tokenizers`."""

    @classmethod
    def train(cls, texts: Iterable[str], *, name: str, d_vocab: int, required: Sequence[str] = ()) -> "BPE":
        """The `d_vocab` tokens that shorten `texts` most, the 256 bytes and those of `required` among them.

        A required token is found first wherever its text occurs.
        ValueError if `d_vocab` has no room for these, or if `texts` hold too little for that many tokens.
        """
        if d_vocab < 256 + len(required):
            raise ValueError(
                f"d_vocab must be at least {256 + len(required)}, one for each byte and each required token, "
                f"got {d_vocab}"
            )
        model = tokenizers.Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PIECES), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        model.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        model.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=d_vocab - len(required), initial_alphabet=alphabet, show_progress=False
            ),
        )
        model.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in required])
        if model.get_vocab_size() != d_vocab:
            raise ValueError(
                f"texts yield only {model.get_vocab_size()} tokens of d_vocab={d_vocab}; "
                f"give more text or ask for fewer"
            )
        return cls(name=name, model=model.to_str())

    @cached_property
    def _model(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self.model)

    @property
    def d_vocab(self) -> int:
        """Number of distinct ids."""
        return int(self._model.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; none is refused."""
        return list(self._model.encode(text, add_special_tokens=False).ids)

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, on all cores."""
        return [encoding.ids for encoding in self._model.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, joined; bytes that are no whole character become `\ufffd`."""
        return str(self._model.decode(_checked(ids, self), skip_special_tokens=False))

    def decode_all(self, ids: list[list[int]]) -> list[str]:
        """The text of each list of ids, on all cores."""
        return list(self._model.decode_batch(ids, skip_special_tokens=False))

    def token(self, id: int) -> str:
        """One token in printable form: `·`, `⏎`, `⇥` for white space, `\\xe2` for part of a character."""
        text = self.decode([id])
        if "\ufffd" not in text:
            return printable(text)
        # The byte-level alphabet: printable bytes stand for themselves, the others follow from U+0100 on.
        own = [b for b in range(256) if 33 <= b <= 126 or (161 <= b <= 255 and b != 173)]
        other = [b for b in range(256) if b not in own]
        bytes_of = [
            ord(c) if ord(c) in own else other[ord(c) - 256] for c in str(self._model.id_to_token(id))
        ]
        return "".join(f"\\x{b:02x}" for b in bytes_of)

    def id(self, token_text: str) -> int:
        """The id of the token whose text is `token_text`; ValueError if it is not exactly one token."""
        return _single(self.encode(token_text), token_text, self)


def printable(text: str) -> str:
    """`text` with white space made visible and control characters written as escapes; `(empty)` where there is none."""
    shown = text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown) or "(empty)"


def _checked(ids: Iterable[int], tokenizer: Tokenizer) -> list[int]:
    known, listed = range(tokenizer.d_vocab), list(ids)
    for id in listed:
        if id not in known:
            raise ValueError(f"id {id} is outside the {len(known)} ids of {tokenizer.name!r}")
    return listed


def _single(ids: list[int], text: str, tokenizer: Tokenizer) -> int:
    if len(ids) != 1:
        pieces = [tokenizer.token(i) for i in ids]
        raise ValueError(
            f"token_text {text!r} is {len(ids)} tokens of {tokenizer.name!r}, {pieces}; expected exactly one"
        )
    return ids[0]
