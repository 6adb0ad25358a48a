"""Real Python: the source of the interpreter's own standard library, tokenized once and cached."""

import contextlib
import hashlib
import os
import platform
import sysconfig
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tasks.base import Corpus
from tasks.token_cache import cache_dir, cached, cached_bpe, read_streams, write_streams
from tasks.tokenizer import BPE
from tasks.tokenizer_files import tokenizer_hash

D_VOCAB = 2048
REQUIRED = ("]]",)
"""Tokens that tasks on bracket depth choose between, too rare here to be learnt."""
_TESTS = frozenset({"test", "tests", "idle_test"})
# Installed packages are not the standard library; the other two hold tables and help texts, not programs.
_SKIPPED = frozenset({"site-packages", "dist-packages", "encodings", "pydoc_data"})


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


def python_corpus(
    seed: int = 0,
    *,
    files: dict[str, str] | None = None,
    d_vocab: int = D_VOCAB,
    tokenizer: BPE | None = None,
) -> Corpus:
    """The standard library as BPE tokens, split by file, about 5 % to val; windows begin anywhere.

    `files` maps paths to texts; None: `stdlib_files()`. `seed` changes nothing: text and split are given.
    tokenizer: None trains a BPE of `d_vocab` tokens on the train files. The first call tokenizes and writes to
    `cache_dir()`.
    """
    chosen = stdlib_files() if files is None else files
    train, val = _split_texts(chosen)
    bpe = tokenizer or _load_bpe(chosen, train, d_vocab)
    kept = _cache_path(chosen, tokenizer_hash(bpe), "tokens")
    tokens = cached(
        kept, lambda path: write_streams(path, bpe, train, val), lambda path: read_streams(path, bpe.d_vocab)
    )
    return Corpus(name="python", tokenizer=bpe, train=tokens["train"], val=tokens["val"])


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
    kept = _cache_path(files, d_vocab, "json")
    return cached_bpe(kept, lambda: train, name=f"python-bpe-{d_vocab}", d_vocab=d_vocab, required=REQUIRED)


def _cache_path(files: dict[str, str], what: int | str | None, suffix: str) -> Path:
    digest = hashlib.blake2b(digest_size=8)
    for path, text in files.items():
        digest.update(f"{path}\0{len(text)}\0{text}".encode())
    return cache_dir() / f"python-{platform.python_version()}-{digest.hexdigest()}-{what}.{suffix}"
