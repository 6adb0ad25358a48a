"""A safetensors file of ours: tensors, JSON in its header, and one checksum over both.

Nothing is ever unpickled. A file is looked at before it is believed: what its header says is held against the names,
types and shapes of its tensors, and nothing is allocated for what it merely claims.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from circuits.files import json_text, write_file
from circuits.model.subject import bits_of
from circuits.reading import CHECKSUM, UnreadableError, demand, parsed, reading, shortened

KEY = "sparse-circuits"
"""Where a file's metadata holds the JSON: its only entry, since safetensors writes several in any order."""
FLOATS = {"F16", "BF16", "F32", "F64"}
"""Types of weights, as safetensors names them."""


def save_stored(path: str | Path, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> Path:
    """Write tensors and JSON to one file, in one step. Raises UnwritableError where that fails."""
    return write_file(path, partial(_write, dict(tensors), {KEY: sealed_text(header, tensors)}))


def sealed_text(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The header as JSON text, with the checksum of itself and of the tensors."""
    plain = json.loads(json_text(header))
    return json_text({**plain, CHECKSUM: checksum(plain, tensors)})


def _write(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:  # a disk that is full, most of all
        raise OSError(str(error)) from None


def checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """A hash of JSON types and of named tensors with their types and shapes: 64 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(bits_of(tensor))
    return digest.hexdigest()


@contextmanager
def opened(path: str | Path, schema: str, kind: str, writer: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A safetensors file of ours, its checksum verified, and the JSON in its header.

    Raises UnreadableError (a ValueError) for any other, a damaged one, and for whatever the block finds wrong with it.
    kind, writer: what is expected to be in the file and who writes it, in words.
    """
    with reading(path, f"a file that {writer} wrote", kind=f" as {kind}"):
        if Path(path).exists():
            demand(Path(path).is_file(), "it is no regular file", "one")
        try:
            with safe_open(path, framework="pt") as file:
                yield file, _header(file, schema, path)
        except SafetensorError as error:
            raise UnreadableError(
                f"path: {path} cannot be read as {kind} (SafetensorError: {shortened(str(error))}); expected a file "
                f"that {writer} wrote. It was cut short, changed, or written by another program."
            ) from None


def _header(file: Any, schema: str, path: str | Path) -> dict[str, Any]:
    metadata = file.metadata() or {}
    header = parsed(metadata.get(KEY, "{}"))
    found = header.get("schema") if isinstance(header, dict) else header
    if not isinstance(header, dict) or found != schema:
        raise UnreadableError(f"path: {path} has schema {shortened(repr(found))}; expected {schema!r}.")
    unknown = sorted(set(metadata) - {KEY})
    demand(not unknown, f"metadata: got {unknown}", f"{KEY} alone")
    seal = header.pop(CHECKSUM, None)  # files from before there was one have none
    if seal is not None:
        found = checksum(header, {name: file.get_tensor(name) for name in list(file.keys())})
        demand(
            seal == found,
            "its checksum is another than its content's",
            "the file as it was written; take a copy of it",
        )
    return header


def check_tensor(file: Any, name: str, shape: list[int], kinds: set[str]) -> None:
    """Raise UnreadableError unless a tensor that is there has this shape and one of these types; reads no data."""
    part = file.get_slice(name)
    got, kind = list(part.get_shape()), part.get_dtype()
    demand(got == shape, f"path: its {name} has shape {got}", f"{shape}, as its own config says")
    demand(kind in kinds, f"path: its {name} is of type {kind}", f"one of {sorted(kinds)}")


def stored_size(file: Any, name: str) -> int:
    """Entries of a stored list. Raises UnreadableError for a tensor with other than one axis."""
    shape = list(file.get_slice(name).get_shape())
    demand(len(shape) == 1, f"path: its {name} has shape {shape}", "one axis")
    return int(shape[0])
