"""Tokenizers as data: what a checkpoint carries of one, the hash that says whether two are the same, and files."""

import hashlib
import json
from collections.abc import Callable
from json.decoder import scanstring  # type: ignore[attr-defined] # what json itself reads strings with
from pathlib import Path
from typing import Any

import tokenizers

from tasks.hf import HFTokenizer
from tasks.tokenizer import BPE, CharTokenizer, Tokenizer, WordTokenizer

MOST = 2**26
"""Bytes that a tokenizer file may have: vocabularies of a million tokens have a tenth of them."""
_DECIDES = ("model", "added_tokens", "normalizer", "pre_tokenizer", "decoder")
"""The parts of a Hugging Face tokenizer file that decide which ids a text has, and back."""


class TokenizerMismatchError(ValueError):
    """Ids of one tokenizer were to be read as those of another."""


def tokenizer_json(tokenizer: Any) -> dict[str, Any] | None:
    """A tokenizer as JSON types, complete; None for one of a kind that cannot be written down.

    Written down can be ours, and those of Hugging Face that are fast (`tokenizer.backend_tokenizer`).
    """
    if isinstance(tokenizer, CharTokenizer):
        return {"kind": "characters", "name": tokenizer.name, "symbols": list(tokenizer.symbols)}
    if isinstance(tokenizer, WordTokenizer):
        return {"kind": "words", "name": tokenizer.name, "words": list(tokenizer.words)}
    if isinstance(tokenizer, BPE):
        return {"kind": "bpe", "name": tokenizer.name, "model": tokenizer.model}
    if isinstance(tokenizer, HFTokenizer):
        inner = tokenizer_json(tokenizer.tokenizer)
        whole = inner is not None and tokenizer.n_logits in (None, len(tokenizer.tokenizer))
        return {**inner, "name": tokenizer.name} if inner is not None and whole else None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(backend, tokenizers.Tokenizer):
        name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
        return {"kind": "bpe", "name": name, "model": backend.to_str()}
    return None


def tokenizer_from_json(data: Any) -> Tokenizer:
    """The inverse of `tokenizer_json`. Raises ValueError for anything else."""
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind not in _MAKERS:
        raise ValueError(f"tokenizer: got kind {kind!r}; expected one of {sorted(_MAKERS)}.")
    own, name, made = _MAKERS[kind][0], data.get("name"), _MAKERS[kind][1]
    if set(data) != {"kind", "name", own} or not isinstance(name, str):
        raise ValueError(f"tokenizer: got {sorted(data)}; expected kind, name (a text) and {own}.")
    return made(name, data[own])


def tokenizer_of_text(text: str) -> Tokenizer:
    """The inverse of `tokenizer_json`, from JSON text. Raises ValueError for anything else.

    Before it is parsed, it is looked at whether it is one object with one list in it, at most: lists in lists would
    take many times the memory of their text.
    """
    at = n = 0
    while (quote := text.find('"', at)) >= 0:
        n += text.count("[", at, quote) + text.count("{", at, quote)
        at = scanstring(text, quote + 1)[1]
    n += text.count("[", at) + text.count("{", at)
    if n > 2:
        raise ValueError(f"tokenizer: got {n} objects and lists; expected one object with one list at most.")
    return tokenizer_from_json(json.loads(text))


def _characters(name: str, symbols: Any) -> Tokenizer:
    return CharTokenizer(name=name, symbols=_texts(symbols, "symbols"))


def _words(name: str, words: Any) -> Tokenizer:
    return WordTokenizer(name=name, words=_texts(words, "words"))


def _bpe(name: str, model: Any) -> Tokenizer:
    if not isinstance(model, str):
        raise ValueError(f"tokenizer: got a model of type {type(model).__name__}; expected its JSON as text.")
    return bpe_of(model, name=name)


_MAKERS: dict[str, tuple[str, Callable[[str, Any], Tokenizer]]] = {
    "characters": ("symbols", _characters),
    "words": ("words", _words),
    "bpe": ("model", _bpe),
}


def _texts(values: Any, what: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"tokenizer: got other {what} than texts; expected a list of them.")
    return tuple(values)


def bpe_of(model: str, *, name: str) -> BPE:
    """A tokenizer from the JSON text of Hugging Face's `tokenizers`, its cutting and padding switched off.

    Raises ValueError where it is none, or where its ids leave gaps.
    """
    try:
        inner = tokenizers.Tokenizer.from_str(model)
    except BaseException as error:  # the library raises nothing narrower than Exception, and panics beside it
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ValueError(
            f"tokenizer: got no tokenizer ({str(error)[:200]}); expected the JSON of Hugging Face's tokenizers, which "
            "`tokenizer.save(path)` writes, and transformers as tokenizer.json."
        ) from None
    if inner.truncation is not None or inner.padding is not None:
        inner.no_truncation()
        inner.no_padding()
        model = inner.to_str()
    ids = set(inner.get_vocab(with_added_tokens=True).values())
    if ids != set(range(len(ids))) or not ids:
        raise ValueError(
            f"tokenizer: got {len(ids)} ids of which the greatest is {max(ids, default=None)}; expected them from 0 "
            "on, without gaps. Number its tokens anew."
        )
    return BPE(name=name, model=model)


def load_tokenizer(path: str | Path) -> BPE:
    """A tokenizer from a file in the format of Hugging Face's `tokenizers`, which transformers calls tokenizer.json.

    It is called what the file is called. Raises ValueError for a file that is not there or holds something else.

    Examples:
        >>> from tokenizers import ByteLevelBPETokenizer
        >>> bytes_alone = ByteLevelBPETokenizer()
        >>> bytes_alone.train_from_iterator([""], vocab_size=256, show_progress=False)
        >>> bytes_alone.save("tokenizer.json")
        >>> tasks.load_tokenizer("tokenizer.json").d_vocab
        256
    """
    file = Path(path)
    try:
        if not file.is_file():
            raise ValueError("there is no such file")
        if file.stat().st_size > MOST:
            raise ValueError(f"it has {file.stat().st_size} bytes, more than {MOST}")
        return bpe_of(file.read_text("utf-8"), name=file.stem)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"tokenizer: {path} cannot be read ({error}); expected a tokenizer.json of Hugging Face's tokenizers."
        ) from None


def tokenizer_hash(tokenizer: Any) -> str | None:
    """16 hexadecimal digits, the same for tokenizers that give the same ids; None where `tokenizer_json` gives none.

    Its name does not matter, nor what a file holds besides: cutting, padding, tokens put around a text.

    Examples:
        >>> tasks.tokenizer_hash(tasks.load_task("quotes").tokenizer)
        'e1a7bb32482a667c'
    """
    data = tokenizer_json(tokenizer)
    if data is None:
        return None
    del data["name"]
    if data["kind"] == "bpe":
        whole = json.loads(data["model"])
        data["model"] = {part: whole.get(part) for part in _DECIDES}
    return hashlib.blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=8).hexdigest()


def check_same_tokenizer(mine: Any, other: Any, *, name: str, got: str, expected: str, do: str) -> None:
    """Raise TokenizerMismatchError, for the argument `name`, where two tokenizers are known to give other ids.

    None fits all; one of a kind that has no hash is known by its vocabulary's size alone. got, expected: whose they
    are, in words; do: what the user can do.
    """
    if mine is None or other is None or mine == other:  # hashing a large vocabulary takes its time
        return
    hashes = tokenizer_hash(mine), tokenizer_hash(other)
    if hashes[0] != hashes[1] and _differ(mine, other):
        raise TokenizerMismatchError(
            f"{name}: got {got}, of the tokenizer {_said(other, hashes[1])}; expected {expected}, of "
            f"{_said(mine, hashes[0])}. {do}"
        )


def _differ(mine: Any, other: Any) -> bool:
    """Whether two tokenizers that are not written down alike give other ids; of two kinds, by the texts of all ids."""
    data = tokenizer_json(mine), tokenizer_json(other)
    sizes = getattr(mine, "d_vocab", None), getattr(other, "d_vocab", None)
    if data[0] is None or data[1] is None:
        return None not in sizes and sizes[0] != sizes[1]
    if data[0]["kind"] == data[1]["kind"]:
        return True
    texts = [
        [one.decode([id]) for id in range(one.d_vocab)]
        for one in (tokenizer_from_json(part) for part in data)
    ]
    return texts[0] != texts[1]


def _said(tokenizer: Any, digest: str | None) -> str:
    size = getattr(tokenizer, "d_vocab", None)
    return f"{getattr(tokenizer, 'name', type(tokenizer).__name__)!r} ({size} tokens, hash {digest})"
