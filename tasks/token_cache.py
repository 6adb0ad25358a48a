"""Tokenized text on disk: written once, whole or not at all; mapped into memory rather than read where it is long.

A file holds the ids of the training stream, those of the validation stream, and a foot: one JSON line that says how
many there are, of which width, and the checksum of the bytes before it.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tasks.tokenizer import BPE

T = TypeVar("T")
_BATCH = 2**22
"""Characters that are tokenized in one go."""
MAPPED = 2**26
"""Files of so many bytes are mapped into memory; smaller ones are read."""
_FOOT = 256
"""Bytes of the foot: JSON, filled up with spaces."""


def cache_dir() -> Path:
    """Where tokenized text is kept: `$SPARSE_CIRCUITS_CACHE`, or `~/.cache/sparse-circuits`."""
    chosen = os.environ.get("SPARSE_CIRCUITS_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "sparse-circuits"


def cached(path: Path, write: Callable[[Path], None], read: Callable[[Path], T]) -> T:
    """What `read` makes of `path`, which is written first if it is missing, and anew where it cannot be read.

    It is written under another name, so that no reader ever sees half a file.
    """
    if path.exists():
        # Whatever a damaged file raises: text may be made again from its source, and the cache is ours alone.
        with contextlib.suppress(Exception):
            return read(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder) / path.name
        write(partial)
        partial.replace(path)
    return read(path)


def cached_bpe(
    path: Path, texts: Callable[[], Iterable[str]], *, name: str, d_vocab: int, required: Sequence[str] = ()
) -> BPE:
    """The BPE that is trained on the texts (see `BPE.train`), from `path` after the first time."""

    def write(partial: Path) -> None:
        partial.write_text(BPE.train(texts(), name=name, d_vocab=d_vocab, required=required).model, "utf-8")

    def read(kept: Path) -> BPE:
        bpe = BPE(name=name, model=kept.read_text("utf-8"))
        if bpe.d_vocab != d_vocab:  # which parses it: what was cut short is no JSON
            raise ValueError(f"{kept} has {bpe.d_vocab} tokens; expected {d_vocab}.")
        return bpe

    return cached(path, write, read)


def write_streams(path: Path, tokenizer: BPE, train: Iterable[str], val: Iterable[str]) -> None:
    """Tokenize both streams to one file; the texts are pieces, of which few are in memory at a time.

    Raises ValueError where ids do not give the text back: then the tokenizer is not one for it.
    """
    dtype = _dtype(tokenizer.d_vocab)
    digest, counts = hashlib.blake2b(digest_size=16), {}
    with path.open("wb") as handle:
        for split, texts in (("train", train), ("val", val)):
            counts[split] = 0
            for batch in _batches(texts):
                ids = tokenizer.encode_all(batch)
                _check_whole(tokenizer, batch, ids)
                data = np.concatenate([np.array(part, dtype) for part in ids]).tobytes()
                digest.update(data)
                handle.write(data)
                counts[split] += len(data) // np.dtype(dtype).itemsize
        foot = {**counts, "dtype": dtype, "checksum": digest.hexdigest()}
        handle.write(json.dumps(foot).ljust(_FOOT).encode())


def read_streams(path: Path, d_vocab: int) -> dict[str, Tensor]:
    """Token ids by split. Raises ValueError for one that was cut short or damaged."""
    size, dtype = path.stat().st_size, np.dtype(_dtype(d_vocab))
    foot = _foot(path, size)
    counts = [foot.get(split) for split in ("train", "val")]
    n = sum(count for count in counts if type(count) is int and count > 0)
    right = foot.get("dtype") == dtype.name and all(type(count) is int and count > 0 for count in counts)
    if not right or n * dtype.itemsize != size - _FOOT:
        raise ValueError(f"{path} is no whole file of tokens; expected what write_streams left.")
    # Copy on write: what is mapped so may be written to, and the file stays as it is.
    ids = np.fromfile(path, dtype, n) if size < MAPPED else np.memmap(path, dtype, mode="c", shape=(n,))
    if _checksum(ids) != foot.get("checksum"):
        raise ValueError(f"{path} was changed; expected the checksum that it names.")
    stream = torch.from_numpy(ids)
    return {"train": stream[: counts[0]], "val": stream[counts[0] :]}


def _foot(path: Path, size: int) -> dict[str, Any]:
    """What a file says of itself at its end; empty where it says nothing."""
    with path.open("rb") as handle:
        handle.seek(max(0, size - _FOOT))
        try:
            found = json.loads(handle.read())
        except (ValueError, RecursionError):
            return {}
    return found if isinstance(found, dict) else {}


def _checksum(ids: np.ndarray) -> str:
    digest, data = hashlib.blake2b(digest_size=16), ids.view(np.uint8)
    for first in range(0, len(data), 2**24):
        digest.update(data[first : first + 2**24].data)
    return digest.hexdigest()


def _dtype(d_vocab: int) -> str:
    return "int16" if d_vocab <= 2**15 else "int32"


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _check_whole(tokenizer: BPE, texts: list[str], ids: list[list[int]]) -> None:
    """Ids that do not give their text back belong to a tokenizer that changes or drops what it does not know."""
    for text, back in zip(texts, tokenizer.decode_all(ids), strict=True):
        if back != text:
            place = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), len(back))
            raise ValueError(
                f"tokenizer: {tokenizer.name!r} makes {back[place : place + 20]!r} of {text[place : place + 20]!r}; "
                "expected one that gives every text back, such as byte-level BPE. Give another, or none: then one is "
                "trained on the text."
            )
