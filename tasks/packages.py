"""Real Python beside the standard library: the source of the packages that this one brings with it, tokenized once.

Which packages, and which of their files, their own metadata says: the same environment gives the same text.
"""

import hashlib
import re
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from tasks.base import Corpus
from tasks.duplicates import apart, fingerprints
from tasks.stdlib import python_tokenizer
from tasks.text_files import pieces
from tasks.token_cache import cache_dir, cached, read_streams, write_streams
from tasks.tokenizer import BPE
from tasks.tokenizer_files import tokenizer_hash

ROOTS = (
    "torch", "transformer-lens", "einops", "jaxtyping", "networkx", "numba", "numpy", "plotly", "rich", "safetensors",
    "scipy", "tokenizers", "triton", "typer",
)  # fmt: skip
"""What this package depends on; what those depend on comes with it."""
HELD_OUT = frozenset({"networkx", "rich", "mpmath", "accelerate", "pydantic", "fsspec", "einops", "jinja2"})
"""Packages whose text is for validation, all of it: algorithms, terminals, numerics, training, types, files."""
LONGEST_LINE, MEAN_LINE, LEAST = 1000, 100, 200
"""Files with longer lines, in characters, or with fewer bytes, are tables and stubs rather than programs."""
_SKIPPED = frozenset({"test", "tests", "_vendor", "_vendored"})
_GENERATED = re.compile(r"generated (?:by|from|file)|auto-?generated|do not edit", re.IGNORECASE)
_VERSION = 1
"""Of the choice of files below: a change of it makes the cache anew."""


class Source(NamedTuple):
    """One file of a package."""

    package: str
    name: str
    """Its path below the folder of packages, with / between parts."""
    path: Path
    digest: str
    """What the package's own record says of its content."""


def packages_corpus(
    seed: int = 0, *, sources: list[Source] | None = None, tokenizer: BPE | None = None
) -> Corpus:
    """Source of installed packages as BPE tokens; those in `HELD_OUT` are for validation. Windows begin anywhere.

    sources: None: `package_sources()`. `seed` changes nothing: text and split are given. tokenizer: None is that of
    the standard library, so that tasks for one fit a model of the other. Left out are tests, copies of other packages,
    generated files and tables (long lines: Chen et al. 2021, arXiv 2107.03374, section 3.1), and near-duplicates (see
    `tasks.duplicates`). The first call tokenizes, some minutes, and writes to `cache_dir()`.
    """
    chosen = package_sources() if sources is None else sources
    bpe = tokenizer or python_tokenizer()
    tokens = cached(
        cache_dir() / f"packages-{_key(chosen)}-{tokenizer_hash(bpe)}.tokens",
        partial(_write, chosen, bpe),
        lambda path: read_streams(path, bpe.d_vocab),
    )
    return Corpus(name="packages", tokenizer=bpe, train=tokens["train"], val=tokens["val"])


def package_sources(roots: tuple[str, ...] = ROOTS) -> list[Source]:
    """Python files of these packages and of all that they need here, in order; extras are not followed."""
    found: dict[str, metadata.Distribution | None] = {}
    waiting = list(roots)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name not in found:
            found[name] = _installed(name)
            needed = (found[name].requires if found[name] else None) or []  # type: ignore[union-attr]
            waiting += [
                re.split(r"[^\w.-]", need, maxsplit=1)[0] for need in needed if "extra ==" not in need
            ]
    return sorted(
        Source(name, file.as_posix(), Path(str(file.locate())), file.hash.value if file.hash else "")
        for name, distribution in found.items()
        for file in (distribution.files if distribution else None) or []
        if file.suffix == ".py" and ".." not in file.parts and not _SKIPPED & set(file.parts)
    )


def _installed(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:  # needed on other systems only
        return None


def _key(sources: list[Source]) -> str:
    told = f"{_VERSION} {sorted(HELD_OUT)}\n" + "\n".join(f"{s.package} {s.name} {s.digest}" for s in sources)
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


def _write(sources: list[Source], tokenizer: BPE, path: Path) -> None:
    train, val = split_sources(sources)
    write_streams(path, tokenizer, _texts(train), _texts(val))


def split_sources(sources: list[Source]) -> tuple[list[Source], list[Source]]:
    """Files for train and for val: programs alone, no near-duplicate among them, and no package in both."""
    read = ((source, _read(source)) for source in sources)
    programs = [(source, fingerprints([text])) for source, text in read if is_program(text)]
    val, train = (
        [one for one in programs if (one[0].package in HELD_OUT) == held_out] for held_out in (True, False)
    )
    if not val or not train:
        raise ValueError(
            f"sources: got files of {sorted({s.package for s in sources})}; expected some of {sorted(HELD_OUT)}, which "
            "are for validation, and some of others."
        )
    keep_val, keep_train = apart([prints for _, prints in val], [prints for _, prints in train])
    return (
        [source for (source, _), keep in zip(train, keep_train, strict=True) if keep],
        [source for (source, _), keep in zip(val, keep_val, strict=True) if keep],
    )


def is_program(text: str) -> bool:
    """Whether a file was written by hand, by its look: not generated, no table, no stub."""
    lines = text.splitlines()
    if len(text) < LEAST or max(map(len, lines)) > LONGEST_LINE or len(text) / len(lines) > MEAN_LINE:
        return False
    return not _GENERATED.search("\n".join(lines[:10]))


def _read(source: Source) -> str:
    """The text of a file; nothing of one that is not UTF-8, or no longer there."""
    try:
        return "".join(pieces(source.path))
    except (UnicodeDecodeError, OSError):
        return ""


def _texts(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        yield from pieces(source.path)
