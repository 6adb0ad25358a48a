"""Real Python: the source of the interpreter's own standard library, tokenized once and cached."""

import contextlib
import hashlib
import os
import platform
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from tasks.base import Corpus
from tasks.tokenizer import BPE

T = TypeVar("T")
D_VOCAB = 2048
REQUIRED = ("]]",)
"""Tokens that tasks on bracket depth choose between, too rare here to be learnt."""
_TESTS = frozenset({"test", "tests", "idle_test"})
# Installed packages are not the standard library; the other two hold tables and help texts, not programs.
_SKIPPED = frozenset({"site-packages", "dist-packages", "encodings", "pydoc_data"})


def cache_dir() -> Path:
    """Where tokenized text is kept: `$SPARSE_CIRCUITS_CACHE`, or `~/.cache/sparse-circuits`."""
    chosen = os.environ.get("SPARSE_CIRCUITS_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "sparse-circuits"


def stdlib_files(*, tests: bool = False) -> dict[str, str]:
    """Source text by path relative to the standard library, in order of the path.

    `tests` adds the library's own test folders, about twice as much text again. Left out are files that are
    not UTF-8, installed packages, tables of encodings, help texts, and the build's generated configuration.
    """
    root = Path(sysconfig.get_path("stdlib"))
    skipped = _SKIPPED if tests else _SKIPPED | _TESTS
    files = {}
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in skipped]
        for path in (Path(folder) / name for name in names if name.endswith(".py")):
            if path.name.startswith("_sysconfigdata"):
                continue
            with contextlib.suppress(UnicodeDecodeError):
                files[path.relative_to(root).as_posix()] = path.read_text("utf-8")
    return dict(sorted(files.items()))


def python_corpus(seed: int = 0, *, files: dict[str, str] | None = None, d_vocab: int = D_VOCAB) -> Corpus:
    """The standard library as BPE tokens, split by file, about 5 % to val; windows begin anywhere.

    `files` maps paths to texts; None: `stdlib_files()`. `seed` changes nothing: text and split are given.
    The BPE learns from the train files only. The first call tokenizes and writes to `cache_dir()`.
    """
    chosen = stdlib_files() if files is None else files
    train, val = _split_texts(chosen)
    tokenizer = _load_bpe(chosen, train, d_vocab)
    tokens = _cached(
        _cache_path(chosen, d_vocab, "npz"),
        lambda path: _write_streams(path, tokenizer, train, val),
        lambda path: _read_streams(path, tokenizer.d_vocab),
    )
    return Corpus(name="python", tokenizer=tokenizer, train=tokens["train"], val=tokens["val"])


@lru_cache(maxsize=1)
def python_tokenizer() -> BPE:
    """The BPE of `python_corpus()`, trained on the first call and read from `cache_dir()` afterwards."""
    files = stdlib_files()
    return _load_bpe(files, _split_texts(files)[0], D_VOCAB)


def _split_texts(files: dict[str, str]) -> tuple[list[str], list[str]]:
    """Texts of train and of val; the path alone decides, so that a file stays put when others come and go."""
    val_paths = {path for path in files if hashlib.blake2b(path.encode(), digest_size=1).digest()[0] < 13}
    if not 0 < len(val_paths) < len(files):
        raise ValueError(f"files must hold at least one for train and one for val, got {sorted(files)[:5]}")
    train = [text for path, text in files.items() if path not in val_paths]
    return train, [files[path] for path in files if path in val_paths]


def _load_bpe(files: dict[str, str], train: Sequence[str], d_vocab: int) -> BPE:
    name = f"python-bpe-{d_vocab}"

    def write(path: Path) -> None:
        path.write_text(BPE.train(train, name=name, d_vocab=d_vocab, required=REQUIRED).model, "utf-8")

    def read(path: Path) -> BPE:
        bpe = BPE(name=name, model=path.read_text("utf-8"))
        if bpe.d_vocab != d_vocab:  # which parses it: what was cut short is no JSON
            raise ValueError(f"{path} has {bpe.d_vocab} tokens; expected {d_vocab}.")
        return bpe

    return _cached(_cache_path(files, d_vocab, "json"), write, read)


def _write_streams(path: Path, tokenizer: BPE, train: list[str], val: list[str]) -> None:
    # 16 bits hold any id of a vocabulary this small, and keep the file at two bytes a token.
    dtype = np.uint16 if tokenizer.d_vocab <= 2**16 else np.int32
    arrays = {
        split: np.concatenate([np.array(ids, dtype) for ids in tokenizer.encode_all(texts)])
        for split, texts in (("train", train), ("val", val))
    }
    with path.open("wb") as handle:
        np.savez(handle, train=arrays["train"], val=arrays["val"])


def _read_streams(path: Path, d_vocab: int) -> dict[str, torch.Tensor]:
    """Token ids by split. Raises ValueError, or what NumPy raises, for a file that was cut short or damaged."""
    with path.open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
        ids = {split: arrays[split] for split in ("train", "val")}
    for split, own in ids.items():
        if own.ndim != 1 or own.dtype.kind not in "ui" or not len(own) or int(own.max()) >= d_vocab:
            raise ValueError(
                f"{path} holds other things than tokens in {split}; expected ids below {d_vocab}."
            )
    return {split: torch.from_numpy(own.astype(np.int64)) for split, own in ids.items()}


def _cache_path(files: dict[str, str], d_vocab: int, suffix: str) -> Path:
    digest = hashlib.blake2b(digest_size=8)
    for path, text in files.items():
        digest.update(f"{path}\0{len(text)}\0{text}".encode())
    return cache_dir() / f"python-{platform.python_version()}-{digest.hexdigest()}-{d_vocab}.{suffix}"


def _cached(path: Path, write: Callable[[Path], None], read: Callable[[Path], T]) -> T:
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
