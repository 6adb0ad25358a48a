"""A tokenizer of Hugging Face as one of ours, so that tasks and pictures take it."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tasks.tokenizer import printable


@dataclass(frozen=True, kw_only=True)
class HFTokenizer:
    """What `tasks.Tokenizer` asks for, of a tokenizer object of `transformers`; nothing is downloaded.

    Text is encoded without special tokens. `bos` is the token that the tokenizer itself puts before every text, or
    None; whoever builds prompts puts it there. Decoding and encoding again gives the same text where the tokenizer
    keeps white space, as byte-level ones do.
    """

    tokenizer: Any
    """The tokenizer: with `encode`, `decode`, `convert_ids_to_tokens` and a length."""
    n_logits: int | None = None
    """The model's logits, where its vocabulary was filled up (`bridge.cfg.d_vocab`); None: as many as tokens."""

    def __post_init__(self) -> None:
        missing = [n for n in ("encode", "decode", "convert_ids_to_tokens") if not hasattr(self.tokenizer, n)]
        if missing:
            raise ValueError(
                f"tokenizer: got a {type(self.tokenizer).__name__} without {missing}; expected a tokenizer of "
                "transformers, such as AutoTokenizer.from_pretrained(folder), or bridge.tokenizer."
            )
        if self.n_logits is not None and self.n_logits < len(self.tokenizer):
            raise ValueError(
                f"n_logits: got {self.n_logits}; expected at least {len(self.tokenizer)}, the tokenizer's tokens. Is "
                "the model one of another tokenizer?"
            )

    @property
    def name(self) -> str:
        """Its name or path."""
        return str(getattr(self.tokenizer, "name_or_path", "") or type(self.tokenizer).__name__)

    @property
    def d_vocab(self) -> int:
        """Number of distinct ids; those beyond the tokenizer's own stand for nothing."""
        return int(self.n_logits or len(self.tokenizer))

    @cached_property
    def bos(self) -> int | None:
        """The token that it puts before every text by itself, or None."""
        own = getattr(self.tokenizer, "bos_token_id", None)
        ids = list(self.tokenizer.encode("a"))
        return own if own is not None and ids[:1] == [own] and self.encode("a")[:1] != [own] else None

    @property
    def pad(self) -> int:
        """What fills rows up on the right, where a causal model never looks: its own token, end of text, or 0."""
        kinds = ("pad_token_id", "eos_token_id")
        found = [getattr(self.tokenizer, kind, None) for kind in kinds]
        return next((int(id) for id in found if id is not None), 0)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""
        return [int(id) for id in self.tokenizer.encode(text, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, joined. ValueError for an id that is none of its tokens."""
        listed = list(ids)
        for id in listed:
            if not 0 <= id < len(self.tokenizer):
                raise ValueError(f"id {id} is outside the {len(self.tokenizer)} ids of {self.name!r}")
        return str(self.tokenizer.decode(listed, clean_up_tokenization_spaces=False))

    def token(self, id: int) -> str:
        """One token in printable form: a space shows as `·`; part of a character as the tokenizer writes it."""
        if not 0 <= id < len(self.tokenizer):
            return f"(unused {id})"
        text = self.decode([id])
        piece = str(self.tokenizer.convert_ids_to_tokens(id))
        if "\ufffd" in text:
            return piece
        # Some leave out the space that a word begins with when it is decoded alone.
        spaced = piece[:1] in ("\u2581", "\u0120") and not text.startswith(" ")
        return printable(" " + text if spaced else text)

    def id(self, token_text: str) -> int:
        """The id of the token whose text is `token_text`; ValueError if it is not exactly one token."""
        ids = self.encode(token_text)
        if len(ids) != 1:
            pieces = [self.token(id) for id in ids]
            raise ValueError(
                f"token_text {token_text!r} is {len(ids)} tokens of {self.name!r}, {pieces}; expected exactly one"
            )
        return ids[0]
