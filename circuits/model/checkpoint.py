"""Checkpoints: one safetensors file, JSON in its header, written in one step.

A weight matrix with many zeros is stored as its nonzeros: values, and how far each lies from the one before it in row
order, as uint16, 6 bytes each; where one lies further than that, flat positions as uint32. Anything else is stored
whole. Loading builds one matrix at a time, and for a compact model none that is sparse.
"""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from circuits.files import json_text
from circuits.kernels import SparseWeight
from circuits.model import compute
from circuits.model.affine import AffineMap
from circuits.model.config import ModelConfig
from circuits.model.kinds import of_ours
from circuits.model.stored import FLOATS, check_tensor, opened, save_stored, stored_size
from circuits.model.text import check_vocabulary
from circuits.model.transformer import SparseTransformer
from circuits.reading import UnreadableError, demand
from tasks import TextId, Tokenizer
from tasks.tokenizer_files import MOST as MOST_BYTES
from tasks.tokenizer_files import check_same_tokenizer, tokenizer_hash, tokenizer_json, tokenizer_of_text

SCHEMA = "sparse-circuits/checkpoint/1"
_VALUES, _STEPS, _POSITIONS = ".nonzero_values", ".nonzero_steps", ".nonzero_positions"
_EXTRA, _TOKENIZER = "extra.", "tokenizer"
FREE, MOST = 2**24, 1024
"""A model may take this many bytes whole, or else this many times those of its file: beyond, load it compact."""
_LEAST = 6
"""Tensors that each layer stores, at least."""


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
    """Write the model, `meta` (JSON types) and `extra` tensors to one file; a reader never sees half of it.

    With it go its tokenizer, where that is of a kind that can be written down (`tasks.tokenizer_files`), and the name
    and hash of the text that it was trained on. Raises ValueError for a tokenizer with another number of tokens.

    Examples:
        >>> model = circuits.load("quotes-handmade").model
        >>> circuits.save_checkpoint("mine.safetensors", model, meta={"note": "made by hand"})
        PosixPath('mine.safetensors')
        >>> circuits.load_checkpoint("mine.safetensors").meta
        {'note': 'made by hand'}
    """
    check_vocabulary(model.tokenizer, model.config.d_vocab)
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name in model.weight_names():
        value = model.weight_named(name).cpu().contiguous()
        if 2 * int(value.count_nonzero()) < value.numel() < 2**32:
            positions = value.flatten().nonzero().squeeze(-1)
            steps = positions.diff(prepend=positions.new_zeros(1))
            tensors[name + _VALUES] = value.flatten()[positions]
            if bool((steps < 2**16).all()):
                tensors[name + _STEPS] = steps.to(torch.uint16)
            else:
                tensors[name + _POSITIONS] = positions.to(torch.uint32)
            shapes[name] = list(value.shape)
        else:
            tensors[name] = value.clone()
    for name, value in (extra or {}).items():
        tensors[_EXTRA + name] = value.detach().cpu().contiguous()
    header: dict[str, Any] = {
        "schema": SCHEMA,
        "config": model.config.to_json(),
        "shapes": shapes,
        "meta": meta or {},
    }
    carried = tokenizer_json(model.tokenizer)
    if carried is not None:
        tensors[_TOKENIZER] = torch.frombuffer(bytearray(json_text(carried).encode()), dtype=torch.uint8)
        header["tokenizer"] = tokenizer_hash(model.tokenizer)
    if model.trained_on is not None:
        header["text"] = model.trained_on.to_json()
    return save_stored(path, tensors, header)


def load_checkpoint(path: str | Path, *, tokenizer: Any = None, compact: bool = False) -> Checkpoint:
    """Read what `save_checkpoint` wrote: the same bits. Raises UnreadableError (a ValueError) on any other file.

    tokenizer: for a model whose file carries none, as older ones do; where it carries one, another is refused
    (TokenizerMismatchError, a ValueError). compact: for looking at and not for training; a matrix that runs on its
    nonzeros is never made dense (see `circuits.model.compute.compact`).
    A file is refused before anything is built from it where what it stores is not what its config asks for, or
    where it claims a model a thousand times its own size (see `MOST`).

    Examples:
        >>> saved = circuits.load_checkpoint(circuits.load("quotes-128").path)
        >>> saved.model.config.d_model, saved.meta["train"]["seed"]
        (128, 35)
    """
    reading = opened(path, SCHEMA, "a checkpoint", "save_checkpoint or `circuits train`")
    # Tensors made in inference mode would be of no use outside it.
    with torch.inference_mode(False), reading as (file, header):
        config, shapes, meta = _parts(header)
        names = set(file.keys())
        extra = {name for name in names if name.startswith(_EXTRA)}
        _check_layout(
            file, names - extra - {_TOKENIZER}, config, shapes, _Budget(Path(path).stat().st_size, compact)
        )
        model = _empty_model(config, _carried(file, header) if _TOKENIZER in names else None)
        model.trained_on = TextId.from_json(header["text"]) if "text" in header else None
        for name in model.weight_names():
            _fill(model, name, file, shapes.get(name), compact)
        tensors = {name.removeprefix(_EXTRA): file.get_tensor(name) for name in sorted(extra)}
    _attach(model, tokenizer, path)
    return Checkpoint(model=compute.compact(model) if compact else model, meta=meta, extra=tensors)


def _carried(file: Any, header: dict[str, Any]) -> Tokenizer:
    """The tokenizer in a file. Raises UnreadableError, or ValueError, where it is none or has another hash."""
    n = stored_size(file, _TOKENIZER)
    check_tensor(file, _TOKENIZER, [n], {"U8"})
    demand(n <= MOST_BYTES, f"tokenizer: got {n} bytes", f"at most {MOST_BYTES}")
    found = tokenizer_of_text(bytes(file.get_tensor(_TOKENIZER).numpy()).decode())
    demand(
        tokenizer_hash(found) == header.get("tokenizer"),
        f"tokenizer: it has hash {tokenizer_hash(found)}",
        f"{header.get('tokenizer')}, as the file says",
    )
    return found


def _attach(model: SparseTransformer, tokenizer: Any, path: str | Path) -> None:
    """Give a model the tokenizer that the caller has for it, if the file has none and it fits."""
    check_same_tokenizer(
        model.tokenizer,
        tokenizer,
        name="tokenizer",
        got="one",
        expected=f"that of the model in {path}",
        do="Leave it out: the file carries the model's own.",
    )
    if tokenizer is not None and model.tokenizer is None:
        check_vocabulary(tokenizer, model.config.d_vocab)
        model.tokenizer = tokenizer


def _parts(header: dict[str, Any]) -> tuple[ModelConfig, dict[str, list[int]], dict[str, Any]]:
    """Config, shapes of sparse weights, and the rest, from a file's JSON."""
    missing = {"config", "shapes", "meta"} - header.keys()
    demand(not missing, f"header: no {sorted(missing)}", "a config, shapes and meta")
    for name in ("shapes", "meta"):
        demand(isinstance(header[name], dict), f"{name}: got {header[name]!r}", "a JSON object")
    config = ModelConfig.from_json(header["config"])
    demand(config.d_vocab is not None, "config.d_vocab: got None", "the number of tokens")
    return config, header["shapes"], header["meta"]


@dataclass
class _Budget:
    """Memory that loading may take."""

    size: int
    compact: bool
    bytes: int = 0

    def spend(self, more: int) -> None:
        """Take so many bytes more. Raises UnreadableError beyond what the file may ask for."""
        self.bytes += more
        demand(
            self.bytes <= max(FREE, MOST * self.size),
            f"path: a file of {self.size} bytes claims a model of {self.bytes}",
            f"at most {MOST} times as many. Is it damaged? Load an honest one with compact=True",
        )


def _check_layout(
    file: Any, names: set[str], config: ModelConfig, shapes: dict[str, list[int]], budget: _Budget
) -> None:
    """Raise UnreadableError unless the tensors stored are those of the config: names, types, shapes, entries."""
    layers = config.n_layers * (1 if config.arch == "decoder" else 2)
    demand(
        _LEAST * layers <= len(names),
        f"config: got {config.n_layers} layers",
        "as many as it has tensors for",
    )
    if config.positions != "learned":  # a table that no file stores
        budget.spend(16 * config.n_ctx * config.d_model)
    expected = _expected(config)
    stray = sorted(set(shapes) - set(expected))
    demand(not stray, f"shapes: got {stray}", "weights of the model")
    stored = {name for name in expected if name not in shapes}
    stored |= {part for name in shapes for part in (name + _VALUES, _places(names, name)[0])}
    demand(
        names == stored, f"path: it has, or lacks, {sorted(names ^ stored)[:4]}", "one tensor for each weight"
    )
    kinds = set()
    for name, (shape, is_matrix) in expected.items():
        kinds.add(_check_weight(file, name, shape, shapes.get(name), is_matrix, budget))
    demand(len(kinds) == 1, f"path: its weights are of types {sorted(kinds)}", "one type")


def _check_weight(
    file: Any, name: str, shape: list[int], said: list[int] | None, is_matrix: bool, budget: _Budget
) -> str:
    """One weight's place in the file; returns its type."""
    kind = str(file.get_slice(name if said is None else name + _VALUES).get_dtype())
    entries = math.prod(shape)
    if said is None:
        check_tensor(file, name, shape, FLOATS)
        budget.spend(8 * entries)
        return kind
    demand(said == shape, f"path: its {name} has shape {said}", f"{shape}, as its own config says")
    n = stored_size(file, name + _VALUES)
    check_tensor(file, name + _VALUES, [n], FLOATS)
    where, whole_number = _places(set(file.keys()), name)
    check_tensor(file, where, [n], {whole_number})
    demand(
        n <= entries < 2**32, f"path: its {name} has {n} nonzeros of {entries} entries", "no more than 2**32"
    )
    holds_nonzeros = (
        budget.compact and is_matrix and compute.runs_on_nonzeros(torch.empty(0), n / max(1, entries))
    )
    budget.spend(24 * n + 8 * sum(shape) if holds_nonzeros else 8 * entries)
    return kind


def _places(names: set[str], name: str) -> tuple[str, str]:
    """The tensor that says where the nonzeros of a weight are, and its type."""
    return (name + _STEPS, "U16") if name + _STEPS in names else (name + _POSITIONS, "U32")


_FIRST = re.compile(r"(^|\.)blocks\.0\.")


def _expected(config: ModelConfig) -> dict[str, tuple[list[int], bool]]:
    """Shape of every weight, and whether it is an affine map's matrix; built for one layer, since all are alike."""
    model = _empty_model(replace(config, n_layers=1), None)
    found = {}
    for name in model.weight_names():
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        kind = list(getattr(module, own).shape), isinstance(module, AffineMap) and own == module.MATRIX
        for layer in range(config.n_layers if _FIRST.search(name) else 1):
            found[_FIRST.sub(rf"\g<1>blocks.{layer}.", name)] = kind
    return found


def find_checkpoint(folder: str | Path, model_hash: str) -> Path:
    """The checkpoint in `folder` that holds the model with this fingerprint.

    Raises ValueError when none does, naming those that were looked at.

    Examples:
        >>> found = circuits.load("quotes-128")
        >>> circuits.model.find_checkpoint(found.path.parent, found.circuit.model_hash).name
        'model.safetensors'
    """
    seen: dict[str, str] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        try:
            seen[path.name] = load_checkpoint(path).model.fingerprint()
        except UnreadableError:
            continue  # another program's file, bridges, a folder, a damaged one
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
    """Read one weight, whose layout has been checked. shape: given for a weight that is stored as nonzeros."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    if shape is None:
        setattr(module, own, nn.Parameter(file.get_tensor(name)))
        return
    values, positions = file.get_tensor(name + _VALUES), _positions(file, name, math.prod(shape))
    if compact and isinstance(module, AffineMap) and own == module.MATRIX:
        rows, columns = positions // shape[1], positions % shape[1]
        sparse = SparseWeight.from_entries(rows, columns, values, (shape[0], shape[1]))
        if compute.runs_on_nonzeros(values, sparse.density):
            module.hold_nonzeros(sparse)
            return
    weight = values.new_zeros(shape)
    weight.view(-1)[positions] = values
    setattr(module, own, nn.Parameter(weight))


def _positions(file: Any, name: str, entries: int) -> Tensor:
    """Where the nonzeros of a weight are. Raises UnreadableError unless they rise, and stay inside."""
    where, kind = _places(set(file.keys()), name)
    positions: Tensor = file.get_tensor(where).to(torch.int64)
    positions = positions.cumsum(0) if kind == "U16" else positions
    rising = bool((positions.diff() > 0).all())
    inside = positions.numel() == 0 or int(positions[-1]) < entries
    demand(
        rising and inside,
        f"path: the positions of its {name} fall, repeat or leave it",
        f"0 to {entries - 1}, rising",
    )
    return positions
