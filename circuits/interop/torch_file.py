"""Files of `torch.save` that others made: dictionaries of tensors, and nothing that computes while it is read.

Such a file is a zip archive with a pickle and the bytes of its tensors. The pickle is read by torch's restricted
reader, which runs no code of it. That reader still makes what it is told to, of any size, so its instructions are
looked at before, and what came of them is measured after: tensors are views of the file, which is mapped into memory,
and never claim more than it holds.
"""

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuits.reading import UnreadableError, demand, reading, shortened

NAMES = {
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    *(
        f"torch {kind}Storage"
        for kind in ("Float", "Half", "BFloat16", "Double", "Bool", "Byte", "Char", "Short", "Int", "Long")
    ),
}
"""What the pickle of tensors in dictionaries and lists asks for by name."""
SHARED = 4
"""The tensors of a file may take so many times its bytes: a few may be views of one another."""


def load_tensors(path: str | Path, expected: str) -> dict[str, Any]:
    """A file of `torch.save` that is a dictionary of plain data and tensors, which are views of the file.

    Raises UnreadableError (a ValueError) for any other; `expected` says what it should be, in words.
    """
    with reading(path, f"{expected}, and no code"):
        demand(Path(path).is_file(), "there is no such file", "one")
        _check_instructions(Path(path))
        try:
            whole = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # what is no archive of tensors may fail in any way
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UnreadableError(
                f"{path} cannot be read ({shortened(said)}); expected {expected}."
            ) from None
        if not isinstance(whole, dict):
            raise UnreadableError(f"path: {path} holds a {type(whole).__name__}; expected {expected}.")
        _check_sizes(whole, Path(path).stat().st_size)
    return whole


def _check_instructions(path: Path) -> None:
    """Raise UnreadableError unless a file is an archive, nothing in it packed, whose pickle asks for tensors alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            packed = [part.filename for part in parts if part.compress_type != zipfile.ZIP_STORED]
            demand(not packed, f"parts {packed[:4]} are compressed", "none that is")
            pickles = [part for part in parts if part.filename.endswith("data.pkl")]
            demand(len(pickles) == 1, f"got {len(pickles)} parts called data.pkl", "one")
            instructions = archive.read(pickles[0])
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise UnreadableError(f"{error}; expected an archive that torch.save writes.") from None
    for instruction, said, _ in pickletools.genops(instructions):
        if "GLOBAL" in instruction.name or instruction.name in ("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"):
            demand(said in NAMES, f"it asks for {said or instruction.name!r}", "tensors, numbers and texts")


def _check_sizes(whole: dict[str, Any], size: int) -> None:
    """Raise UnreadableError for tensors that are none of ordinary numbers, or claim more than the file holds."""
    total = 0
    for tensor in _tensors(whole, 0):
        plain = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
        demand(plain, f"a tensor is {tensor.layout}, on {tensor.device}", "ordinary ones")
        own = tensor.numel() * tensor.element_size()
        demand(own <= tensor.untyped_storage().nbytes(), f"a tensor of {own} bytes has fewer", "as many")
        total += own
    demand(
        total <= SHARED * size, f"a file of {size} bytes has tensors of {total}", f"at most {SHARED} times"
    )


def _tensors(data: Any, depth: int) -> Iterator[Tensor]:
    demand(depth < 16, "dictionaries and lists in one another", "few")
    if isinstance(data, Tensor):
        yield data
    elif isinstance(data, dict):
        for value in data.values():
            yield from _tensors(value, depth + 1)
    elif isinstance(data, list | tuple | set):
        for value in data:
            yield from _tensors(value, depth + 1)
