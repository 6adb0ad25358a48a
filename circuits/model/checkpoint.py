"""Checkpoints: one safetensors file, JSON in its header, written in one step.

A weight matrix with many zeros is stored as its nonzeros (values, and their flat positions as uint32: 8 bytes
each); anything else is stored whole. Loading builds one matrix at a time, and for a compact model none that is sparse.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from circuits.files import json_text, write_file
from circuits.kernels import SparseWeight
from circuits.model import compute
from circuits.model.affine import AffineMap
from circuits.model.config import ModelConfig
from circuits.model.kinds import of_ours
from circuits.model.transformer import SparseTransformer

SCHEMA = "sparse-circuits/checkpoint/1"
_DAMAGE = (
    SafetensorError,
    OSError,
    json.JSONDecodeError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
)
"""What reading a file raises that was cut short, edited, or written by another program."""
_VALUES, _POSITIONS = ".nonzero_values", ".nonzero_positions"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model and what is known about how it came to be."""

    model: SparseTransformer
    "Weights and config."
    meta: dict[str, Any]
    "Training configuration, history and whatever else was saved beside it."
    extra: dict[str, Tensor]
    "Tensors that are not weights, such as the optimiser's, by name."


@of_ours
def save_checkpoint(
    path: str | Path,
    model: SparseTransformer,
    *,
    meta: dict[str, Any] | None = None,
    extra: dict[str, Tensor] | None = None,
) -> Path:
    """Write the model, `meta` (JSON types) and `extra` tensors to one file; a reader never sees half of it."""
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name in model.weight_names():
        value = model.weight_named(name).cpu().contiguous()
        if 2 * int(value.count_nonzero()) < value.numel() < 2**32:
            positions = value.flatten().nonzero().squeeze(-1)
            tensors[name + _VALUES] = value.flatten()[positions]
            tensors[name + _POSITIONS] = positions.to(torch.uint32)
            shapes[name] = list(value.shape)
        else:
            tensors[name] = value.clone()
    for name, value in (extra or {}).items():
        tensors["extra." + name] = value.detach().cpu().contiguous()
    header = {"schema": SCHEMA, "config": model.config.to_json(), "shapes": shapes, "meta": meta or {}}
    metadata = {"sparse-circuits": json_text(header)}
    return write_file(path, lambda partial: save_file(tensors, partial, metadata=metadata))


def load_checkpoint(path: str | Path, *, tokenizer: Any = None, compact: bool = False) -> Checkpoint:
    """Read what `save_checkpoint` wrote: the same bits. Raises ValueError on any other file.

    tokenizer: attached to the model; checkpoints hold weights, not vocabularies. compact: for looking at and not for
    training; a matrix that runs on its nonzeros is never made dense (see `circuits.model.compute.compact`).
    """
    reading = opened(path, SCHEMA, "a checkpoint", "save_checkpoint or `circuits train`")
    # Tensors made in inference mode would be of no use outside it.
    with torch.inference_mode(False), reading as (file, header):
        model = _empty_model(ModelConfig.from_json(header["config"]), tokenizer)
        for name in model.weight_names():
            _fill(model, name, file, header["shapes"].get(name), compact)
        extra = {k[6:]: file.get_tensor(k) for k in file.keys() if k.startswith("extra.")}  # noqa: SIM118
        meta = dict(header["meta"])
    return Checkpoint(model=compute.compact(model) if compact else model, meta=meta, extra=extra)


@contextmanager
def opened(path: str | Path, schema: str, kind: str, writer: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A safetensors file of ours and the JSON in its header. Raises ValueError for any other, and a damaged one.

    kind, writer: what is expected to be in the file and who writes it, in words.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("sparse-circuits", "{}"))
            if not isinstance(header, dict) or header.get("schema") != schema:
                found = header.get("schema") if isinstance(header, dict) else header
                raise ValueError(f"path: {path} has schema {found!r}; expected {schema!r}.")
            yield file, header
    except _DAMAGE as error:
        raise ValueError(
            f"path: {path} cannot be read as {kind} ({type(error).__name__}: {error}); expected a file that {writer} "
            "wrote."
        ) from None


def find_checkpoint(folder: str | Path, model_hash: str) -> Path:
    """The checkpoint in `folder` that holds the model with this fingerprint.

    Raises ValueError when none does, naming those that were looked at.
    """
    seen: dict[str, str] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        try:
            seen[path.name] = load_checkpoint(path).model.fingerprint()
        except ValueError:
            continue  # another program's file, or bridges
        if seen[path.name] == model_hash:
            return path
    looked = ", ".join(f"{name} ({found})" for name, found in seen.items()) or "none at all"
    raise ValueError(
        f"model: no checkpoint in {folder} holds model {model_hash}; found {looked}. Expected the model that "
        "the circuit was found in beside it: say where it is with --model."
    )


def _empty_model(config: ModelConfig, tokenizer: Any) -> SparseTransformer:
    """A model whose weights take no memory yet."""
    with torch.device("meta"):
        return SparseTransformer(config, tokenizer=tokenizer)


def _fill(model: SparseTransformer, name: str, file: Any, shape: list[int] | None, compact: bool) -> None:
    """Read one weight into the model. shape: given for a weight that is stored as nonzeros."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    expected = list(getattr(module, own).shape)
    stored = file.get_slice(name).get_shape() if shape is None else shape
    if stored != expected:
        raise ValueError(f"path: its {name} has shape {stored}; expected {expected}, as its own config says.")
    if shape is None:
        weight = file.get_tensor(name)
    else:
        values = file.get_tensor(name + _VALUES)
        positions = file.get_tensor(name + _POSITIONS).to(torch.int64)
        if compact and isinstance(module, AffineMap) and own == module.MATRIX:
            rows, columns = positions // shape[1], positions % shape[1]
            sparse = SparseWeight.from_entries(rows, columns, values, (shape[0], shape[1]))
            if compute.runs_on_nonzeros(values, sparse.density):
                module.hold_nonzeros(sparse)
                return
        # As one row of nonzeros: positions outside the matrix, or given twice, are refused.
        row = torch.zeros_like(positions)
        entries = SparseWeight.from_entries(row, positions, values, (1, math.prod(shape)))
        weight = values.new_zeros(shape)
        weight.view(-1)[entries.column.long()] = entries.values
    setattr(module, own, nn.Parameter(weight))
