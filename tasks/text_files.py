"""Text in files: which files of a folder hold some, read piece by piece, so that none need fit in memory."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PIECE = 2**20
"""Characters in a piece, about: it goes on to the end of its line, if that is near."""
_BINARY = 8192
"""Bytes among which a zero byte tells a binary file."""
_SKIPPED = frozenset({"__pycache__", "node_modules"})


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """Files that hold text, in order of their names."""

    files: dict[str, Path]
    """Where each is, by its name: its path inside the folder, with / between parts."""
    left_out: dict[str, str]
    """Why other files are not among them, by name."""


class NotTextError(ValueError):
    """A file is binary, or in another encoding than UTF-8; `why` says which."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"path: {path} is {why}; expected text in UTF-8. Convert it (iconv -f latin-1 -t utf-8, if that is what "
            "it is), or leave it out."
        )
        self.why = why


def find_text(path: str | Path) -> TextFiles:
    """The text at `path`: a file, or the files of a folder and of those inside it, hidden ones not looked at.

    Each is read to the end once, since only then it is known to be text. Of a folder, files that are not UTF-8 are left
    out, and named in the result. Raises ValueError where there is nothing, and NotTextError (one, too) for a single
    file that is not UTF-8.
    """
    root = Path(path)
    if root.is_file():
        check_text(root)
        return TextFiles(files={root.name: root}, left_out={})
    if not root.is_dir():
        raise ValueError(
            f"path: got {str(path)!r}, where there is nothing; expected a text file, or a folder of them."
        )
    files, left_out = {}, {}
    for name, file in _all_files(root):
        try:
            check_text(file)
            files[name] = file
        except NotTextError as error:
            left_out[name] = error.why
    if not files:
        raise ValueError(
            f"path: {root} holds no text: {_counted(left_out)}; expected at least one file in UTF-8. Is it the right "
            "folder?"
        )
    return TextFiles(files=files, left_out=left_out)


def check_text(path: Path) -> None:
    """Raise NotTextError unless a file is UTF-8 to its end, OSError where it cannot be read."""
    with path.open("rb") as handle:
        if b"\0" in handle.read(_BINARY):
            raise NotTextError(path, "binary (it has zero bytes), or in UTF-16")
    try:
        for _ in pieces(path):
            pass
    except UnicodeDecodeError as error:
        raise NotTextError(
            path, f"in another encoding ({error.reason}: {error.object[error.start]:#04x})"
        ) from None


def pieces(path: Path, size: int = PIECE) -> Iterator[str]:
    """The text of a file in pieces of about `size` characters, each to the end of a line where one is near.

    Every kind of line end becomes a newline. Raises UnicodeDecodeError for a file that is not UTF-8.
    """
    with path.open(encoding="utf-8") as handle:
        while piece := handle.read(size):
            yield piece if piece.endswith("\n") else piece + handle.readline(size)


def content_hash(files: dict[str, Path]) -> str:
    """16 hexadecimal digits that stand for names and contents, and for nothing else: not for where the folder is."""
    digest = hashlib.blake2b(digest_size=8)
    for name, path in files.items():
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as handle:
            while block := handle.read(2**22):
                digest.update(block)
    return digest.hexdigest()


def _all_files(root: Path) -> list[tuple[str, Path]]:
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in _SKIPPED]
        for path in (Path(folder) / name for name in names if not name.startswith(".")):
            with suppress(OSError):  # a link to nowhere; a pipe would never end
                if path.is_file():
                    found.append((path.relative_to(root).as_posix(), path))
    return sorted(found)


def _counted(left_out: dict[str, str]) -> str:
    first = next(iter(left_out.items()), None)
    return f"{len(left_out)} files, the first ({first[0]}) {first[1]}" if first else "no file at all"
