"""The user's own text: a file or a folder of them, as a corpus, with a tokenizer trained on it or one that is given."""

import hashlib
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tasks.base import Corpus, TextId
from tasks.duplicates import apart, fingerprints, repeats
from tasks.text_files import PIECE, content_hash, find_text, pieces
from tasks.token_cache import cache_dir, cached, cached_bpe, read_streams, write_streams
from tasks.tokenizer import BPE
from tasks.tokenizer_files import tokenizer_hash

D_VOCAB = 2048
FEW = 20
"""With fewer files, each gives its last part to validation; with more, whole files do."""
VAL = 1 / 20
"""Share of the text that is for validation, about."""
_VERSION = 1
"""Of the split: a change of it makes the cache anew."""
LEAST = 1000
"""Bytes of text."""

Texts = Callable[[], Iterator[str]]


class LeftOutWarning(UserWarning):
    """Files of a folder are no text, and are not part of the corpus."""


def own_corpus(path: str | Path, *, tokenizer: BPE | None = None, d_vocab: int | None = None) -> Corpus:
    """The text of a file, or of a folder's files, as a corpus; windows begin anywhere.

    tokenizer: None trains a byte-level BPE of `d_vocab` tokens (2,048) on the training part. Files of which half stands
    in others are left out; a twentieth is for validation: whole files, by their names, or of fewer than `FEW` files the
    end of each. It is named by its absolute path, and the same text gives the same ids wherever it lies.
    Raises ValueError where there is no text, too little of it, or a tokenizer that does not give it back. Warns
    (LeftOutWarning) of files in a folder that are no text in UTF-8. The first call tokenizes, piece by piece, and
    writes to `cache_dir()`.
    """
    if tokenizer is not None and d_vocab not in (None, tokenizer.d_vocab):
        raise ValueError(
            f"d_vocab: got {d_vocab} with a tokenizer of {tokenizer.d_vocab} tokens; expected one of the two. Leave it "
            "out, or have a tokenizer trained."
        )
    found = find_text(path)
    if found.left_out:
        first = next(iter(found.left_out))
        warnings.warn(
            f"path: {len(found.left_out)} files of {path} are no text in UTF-8 and are left out, the first {first} "
            f"({found.left_out[first]}).",
            LeftOutWarning,
            stacklevel=2,
        )
    key = f"{_VERSION}-{content_hash(found.files)}"
    n_bytes = sum(file.stat().st_size for file in found.files.values())
    if n_bytes < LEAST:
        raise ValueError(
            f"path: {path} holds {n_bytes} bytes of text; expected at least {LEAST}. There is nothing to learn from so "
            "little."
        )
    train, val = _split(found.files)
    size = d_vocab or D_VOCAB
    bpe = tokenizer or _trained(f"own-{key}-bpe-{size}", train, size)
    name = f"own-{key}-{tokenizer_hash(bpe)}.tokens"
    tokens = cached(
        cache_dir() / name,
        lambda file: write_streams(file, bpe, train(), val()),
        lambda file: read_streams(file, bpe.d_vocab),
    )
    corpus = Corpus(name=str(Path(path).resolve()), tokenizer=bpe, train=tokens["train"], val=tokens["val"])
    cached(_mark(corpus.fingerprint), partial(_write_name, name), Path.read_text)
    return corpus


def _write_name(name: str, path: Path) -> None:
    path.write_text(name, "utf-8")


def recall_corpus(known: TextId, tokenizer: BPE) -> Corpus:
    """The text of that hash as it was when it was tokenized, from `cache_dir()`, whatever became of it since.

    A model's file says what its text was called; no path in it is ever followed. Raises ValueError where the text is
    not kept, or was in the tokens of another tokenizer.
    """
    mark = _mark(known.fingerprint)
    try:
        kept = cache_dir() / Path(mark.read_text("utf-8")).name
        if not kept.stem.endswith(f"-{tokenizer_hash(tokenizer)}"):
            raise ValueError("its tokens are another tokenizer's")
        tokens = read_streams(kept, tokenizer.d_vocab)
    except (OSError, ValueError):
        raise ValueError(
            f"no text of hash {known.fingerprint} is kept in {mark.parent}; it was called {known.name!r}"
        ) from None
    return Corpus(name=known.name, tokenizer=tokenizer, train=tokens["train"], val=tokens["val"])


def _mark(fingerprint: str) -> Path:
    """The file that says under which name the tokens of a text are kept."""
    if not re.fullmatch(r"[0-9a-f]{16}", fingerprint):
        raise ValueError(f"text: got hash {fingerprint!r}; expected 16 hexadecimal digits")
    return cache_dir() / f"text-{fingerprint}"


def _trained(name: str, train: Texts, d_vocab: int) -> BPE:
    try:
        return cached_bpe(cache_dir() / f"{name}.json", train, name=name, d_vocab=d_vocab)
    except ValueError as error:
        raise ValueError(f"d_vocab: {error} (d_vocab=, --d-vocab).") from None


def _split(files: dict[str, Path]) -> tuple[Texts, Texts]:
    """The texts of train and of val, none a near-duplicate of another."""
    prints = {name: fingerprints(pieces(path)) for name, path in files.items()}
    val, train = split_names({name: path.stat().st_size for name, path in files.items()})
    if not val:
        repeated = repeats(list(prints.values()))
        kept = [path for path, again in zip(files.values(), repeated, strict=True) if not again]
        return partial(_ends, kept, val=False), partial(_ends, kept, val=True)
    keep_val, keep_train = apart([prints[name] for name in val], [prints[name] for name in train])
    if not keep_val.any() or not keep_train.any():
        raise ValueError(
            f"path: of {len(files)} files, those for validation stand in the others; expected text that does not "
            "repeat itself. Leave the copies out."
        )
    chosen = [
        [files[name] for name, keep in zip(names, mask, strict=True) if keep]
        for names, mask in ((train, keep_train), (val, keep_val))
    ]
    return partial(_wholes, chosen[0]), partial(_wholes, chosen[1])


def split_names(sizes: dict[str, int]) -> tuple[list[str], list[str]]:
    """Names of files for val, by their hashes until they have a share of `VAL`, and for train; of few files none."""
    whole, taken = sum(sizes.values()), 0
    val: set[str] = set()
    for name in sorted(sizes, key=_hash) if len(sizes) >= FEW else ():
        if taken < VAL * whole and sizes[name] <= 2 * VAL * whole:
            val.add(name)
            taken += sizes[name]
    return [name for name in sizes if name in val], [name for name in sizes if name not in val]


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode()).digest()


def _wholes(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        yield from pieces(path)


def _ends(paths: list[Path], *, val: bool) -> Iterator[str]:
    """The end of each file, about a twentieth, or all that comes before it."""
    for path in paths:
        size = path.stat().st_size
        done = 0
        for piece in pieces(path, max(1, min(PIECE, int(size * VAL / 4)))):
            if (done >= (1 - VAL) * size) == val:
                yield piece
            done += len(piece.encode())
