"""Checkpoints: one safetensors file, JSON in its header, written in one step.

A weight matrix with many zeros is stored as its nonzeros (values, and their flat positions as uint32: 8 bytes
each); anything else is stored whole. Loading builds one matrix at a time.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from circuits.config import ModelConfig
from circuits.model import SparseTransformer

SCHEMA = "sparse-circuits/checkpoint/1"
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
    for name, parameter in model.named_parameters():
        value = parameter.detach().cpu().contiguous()
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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={"sparse-circuits": json.dumps(header)})
    partial.replace(path)
    return path


def load_checkpoint(path: str | Path, *, tokenizer: Any = None) -> Checkpoint:
    """Read what `save_checkpoint` wrote: the same bits. Raises ValueError on any other file.

    `tokenizer` is attached to the model; checkpoints hold weights, not vocabularies.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("sparse-circuits", "{}"))
            if header.get("schema") != SCHEMA:
                raise ValueError(f"path: {path} has schema {header.get('schema')!r}; expected {SCHEMA!r}.")
            model = SparseTransformer(ModelConfig.from_json(header["config"]), tokenizer=tokenizer)
            for name, parameter in model.named_parameters():
                _fill(parameter.data, name, file, header["shapes"])
            extra = {k[6:]: file.get_tensor(k) for k in file.keys() if k.startswith("extra.")}  # noqa: SIM118
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(
            f"path: {path} cannot be read as a checkpoint ({error}); expected a file that save_checkpoint or "
            "`circuits train` wrote."
        ) from None
    return Checkpoint(model=model, meta=header["meta"], extra=extra)


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


def _fill(parameter: Tensor, name: str, file: Any, shapes: dict[str, list[int]]) -> None:
    if name not in shapes:
        parameter.copy_(file.get_tensor(name))
        return
    positions = file.get_tensor(name + _POSITIONS).to(torch.int64)
    parameter.zero_()
    parameter.view(-1)[positions] = file.get_tensor(name + _VALUES)
