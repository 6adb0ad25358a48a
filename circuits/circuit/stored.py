"""A circuit as a file: its layout, looked at before anything is made of it, and its fields there and back."""

import base64
import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuits.circuit.criterion import Criterion
from circuits.circuit.nodes import Edge, Effect, IOEdge, Node, NodeFacts
from circuits.model.sites import ROWS, Site, all_sites
from circuits.reading import demand, is_number, shortened

SCHEMA = "sparse-circuits/circuit/1"
"""Name and version of the JSON layout. A file that says anything else is refused."""

_NEEDED = {
    *(
        "schema",
        "task",
        "model_hash",
        "ablation",
        "n_layers",
        "widths",
        "nodes",
        "edges",
        "io_edges",
        "facts",
    ),
    *("metrics", "values"),
}
_LATER = {"criterion", "d_head", "effects", "n_nodes", "n_edges"}
"""Keys that some versions did not write."""
_LISTS, _OBJECTS = ("nodes", "edges", "io_edges"), ("widths", "facts", "metrics", "values")
_HASH = re.compile(r"[\w.:-]{1,64}")
_DTYPES = ("<f4", "<f8")
_LOGGED = ("step", "task_loss", "n_open")
"""What a step of the search is logged with, at least."""


def check_layout(data: Mapping[str, Any]) -> None:
    """Raise UnreadableError unless the JSON of a circuit has its keys, with values of their kinds and sizes."""
    wrong = {key: "unknown" for key in sorted(data.keys() - _NEEDED - _LATER)}
    wrong |= {key: "missing" for key in sorted(_NEEDED - data.keys())}
    for key, how in wrong.items():
        demand(
            False,
            f"circuit JSON: key {key!r} is {how}",
            "the keys that Circuit.to_json writes. The file was cut short or edited: save it again",
        )
    for names, kind, said in ((_LISTS, list, "a list"), (_OBJECTS, Mapping, "an object")):
        for name in names:
            _is(data[name], kind, name, said)
    for name in ("task", "ablation", "model_hash"):
        _is(data[name], str, name, "a text")
    demand(bool(_HASH.fullmatch(data["model_hash"])), f"model_hash: got {data['model_hash']!r}", "a hash")
    _check_sizes(data)
    for name, own in (("edges", 3), ("io_edges", 4)):
        for row in data[name]:
            _check_row(row, own, name)
    _check_effects(data.get("effects", []))
    for node in data["nodes"]:
        _is(node, str, "nodes", "names")
    for value in data["values"].values():
        _check_values(value)
    loss = data["metrics"].get("task_loss")
    demand(loss is None or is_number(loss), f"metrics: got task_loss {loss!r}", "a number, or null")
    for facts in data["facts"].values():
        _is(facts, Mapping, "facts", "an object for each node")
        for value in facts.values():
            demand(value is None or is_number(value), f"facts: got {value!r}", "numbers, or null")


def _check_sizes(data: Mapping[str, Any]) -> None:
    """Whole numbers, and no more sites than there are values for."""
    _whole(data["n_layers"], "n_layers")
    if data.get("d_head") is not None:
        _whole(data["d_head"], "d_head")
    for name, width in data["widths"].items():
        _whole(width, f"widths of {name}")
    named = [name for name in data["widths"] if name in ROWS]
    demand(
        len(named) in (0, len(data["widths"])), "widths: got sites with and without their layer", "one kind"
    )
    if named:
        n = data["n_layers"] * len(named)
        demand(n == len(data["values"]), f"values: got {len(data['values'])}", f"one for each of {n} sites")


def _check_effects(rows: Any) -> None:
    _is(rows, list, "effects", "a list")
    for row in rows:
        right = isinstance(row, list) and len(row) == 3 and is_number(row[2])
        right = right and all(end is None or isinstance(end, str) for end in row[:2])
        demand(right, f"effects: got {row!r}", "lists of two names, or null, and a size")


def _check_row(row: Any, n: int, name: str) -> None:
    right = isinstance(row, list) and len(row) == n and all(isinstance(part, str) for part in row[:-1])
    right = right and is_number(row[-1])
    demand(right, f"{name}: got {row!r}", f"lists of {n - 1} names and a weight")


def _check_values(packed: Any) -> None:
    if isinstance(packed, str):
        return
    right = isinstance(packed, Mapping) and isinstance(packed.get("data"), str)
    right = right and packed.keys() <= {"data", "shape", "dtype"} and packed.get("dtype", "<f4") in _DTYPES
    shape = packed.get("shape") if right else None
    right = isinstance(shape, list) and 1 <= len(shape) <= 3
    right = right and all(type(size) is int and size >= 0 for size in shape or [])
    demand(right, f"values: got {packed!r}", "base64 of numbers, or an object with data and shape")


def _is(value: Any, kind: Any, name: str, said: str) -> None:
    demand(isinstance(value, kind), f"{name}: got {value!r}", said)


def _whole(value: Any, name: str) -> None:
    demand(
        type(value) is int and 1 <= value < 2**31, f"{name}: got {value!r}", "a whole number of at least 1"
    )


def circuit_json(circuit: Any) -> dict[str, Any]:
    """A circuit as plain JSON types: what its file holds. Values are base64 of little-endian float32 or float64."""
    return {
        "schema": SCHEMA,
        "task": circuit.task,
        "model_hash": circuit.model_hash,
        "ablation": circuit.ablation,
        "criterion": circuit.criterion.to_json(),
        "n_layers": circuit.n_layers,
        "d_head": circuit.d_head,
        "widths": _by_name(circuit.widths),
        "n_nodes": circuit.n_nodes,
        "n_edges": circuit.n_edges,
        "nodes": [str(node) for node in circuit.nodes],
        "edges": [[str(e.source), str(e.target), e.weight] for e in circuit.edges],
        "io_edges": [[e.kind, e.token, str(e.node), e.weight] for e in circuit.io_edges],
        "facts": {str(node): facts._asdict() for node, facts in circuit.facts.items()},
        "metrics": dict(circuit.metrics),
        "values": {str(site): _pack(value) for site, value in circuit.values.items()},
    } | ({"effects": [_ends(effect) for effect in circuit.effects]} if circuit.effects else {})


def circuit_fields(data: Any) -> dict[str, Any]:
    """The fields of a Circuit, from JSON of `circuit_json`.

    Raises ValueError when the schema is another, a key is missing, or a value is not what it must be.
    """
    found = data.get("schema") if isinstance(data, Mapping) else type(data).__name__
    if found != SCHEMA:
        raise ValueError(
            f"schema: got {found!r}; expected {SCHEMA!r}. Save the circuit again with this "
            "version of sparse-circuits (Circuit.save)."
        )
    check_layout(data)
    try:
        return _fields(data)
    except KeyError as missing:
        raise ValueError(
            f"circuit JSON: key {missing} is missing; expected every key that Circuit.to_json writes. "
            "The file was cut short or edited: save it again."
        ) from None
    except (TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"circuit JSON: a value is of another kind ({error}); expected those that Circuit.to_json writes."
        ) from None


def _fields(data: Mapping[str, Any]) -> dict[str, Any]:
    nodes = tuple(Node.parse(text) for text in data["nodes"])
    io_edges = tuple(IOEdge(k, token, Node.parse(n), float(w)) for k, token, n, w in data["io_edges"])
    loose = {io.node for io in io_edges} - set(nodes)
    if loose:
        raise ValueError(
            f"circuit JSON: io_edges has one at {min(loose)}, which is none of its nodes; expected nodes of the "
            "circuit. The file was edited: save it again."
        )
    return {
        "nodes": nodes,
        "edges": tuple(Edge(Node.parse(s), Node.parse(t), float(w)) for s, t, w in data["edges"]),
        "io_edges": io_edges,
        "effects": tuple(_effect(*row) for row in data.get("effects", ())),
        "widths": _by_site(data["widths"], data["n_layers"]),
        "n_layers": data["n_layers"],
        "d_head": data.get("d_head"),
        "criterion": _criterion(data),
        "model_hash": data["model_hash"],
        "values": {Site.parse(text): _unpack(value) for text, value in data["values"].items()},
        "facts": {Node.parse(text): _facts(facts) for text, facts in data["facts"].items()},
        "metrics": dict(data["metrics"]),
    }


def search_history(data: Any) -> list[dict[str, Any]]:
    """How the search went, as metrics keep it; empty where they do not. Raises UnreadableError for anything else."""
    rows = [] if data is None else data
    right = isinstance(rows, list) and all(isinstance(row, Mapping) and _is_logged(row) for row in rows)
    demand(
        right,
        f"history: got {shortened(str(data))}",
        f"a list of objects with numbers for {', '.join(_LOGGED)}, one a logged step. Prune again, or take it out of "
        "the circuit's metrics",
    )
    return list(rows)


def _is_logged(row: Mapping[str, Any]) -> bool:
    return all(is_number(row.get(key)) and math.isfinite(row[key]) for key in _LOGGED)


def _ends(effect: Effect) -> list[Any]:
    """An effect as a row of a circuit file."""
    return [None if end is None else str(end) for end in effect[:2]] + [effect.size]


def _effect(source: str | None, target: str | None, size: float) -> Effect:
    """The inverse of `_ends`."""
    ends = [None if end is None else Node.parse(end) for end in (source, target)]
    return Effect(ends[0], ends[1], float(size))


def _facts(data: Mapping[str, float | None]) -> NodeFacts:
    """Of a circuit file, where what is not a number is null."""
    return NodeFacts(
        **{name: float("nan") if value is None else float(value) for name, value in data.items()}
    )


def _criterion(data: Mapping[str, Any]) -> Criterion:
    """Of a circuit file; files from before criteria were kept hold the settings of their pruning run instead."""
    if "criterion" in data:
        return Criterion.from_json(data["criterion"])
    old = {"objective": "task", "target_loss": 0.15}
    settings = old | data["metrics"].get("prune", {"calibrate": False, "target_accuracy": 0.0})
    known = {f.name for f in fields(Criterion)}
    kept = {name: value for name, value in settings.items() if name in known}
    return Criterion(**{**kept, "task": data["task"], "ablation": data["ablation"]})


def _by_name(widths: Mapping[Site, int]) -> dict[str, int]:
    """Widths by the name of the site where all layers agree, else by the site."""
    names = {site.name: width for site, width in widths.items()}
    alike = all(site.stack == "decoder" and names[site.name] == width for site, width in widths.items())
    layers = {site.layer for site in widths}
    if alike and len(widths) == len(names) * len(layers):
        return {str(name): width for name, width in names.items()}
    return {str(site): width for site, width in widths.items()}


def _by_site(widths: Mapping[str, int], n_layers: int) -> dict[Site, int]:
    """The inverse of `_by_name`."""
    if all("." in key for key in widths):
        return {Site.parse(key): width for key, width in widths.items()}
    return {
        site: widths[site.name]
        for site in all_sites(n_layers, crossed=True, routed=True, headed=True, factored=True)
        if site.name in widths
    }


def _pack(value: Tensor) -> Any:
    """Of float32 or less as float32, which loses nothing, and of float64 as that."""
    kind = "<f8" if value.dtype == torch.float64 else "<f4"
    array = value.detach().to(torch.promote_types(value.dtype, torch.float32)).cpu().numpy().astype(kind)
    text = base64.b64encode(array.tobytes()).decode()
    if value.ndim == 1 and kind == "<f4":
        return text
    return {"shape": list(value.shape), "data": text} | ({} if kind == "<f4" else {"dtype": kind})


def _unpack(packed: Any) -> Tensor:
    packed = {"data": packed, "shape": [-1]} if isinstance(packed, str) else packed
    data = np.frombuffer(base64.b64decode(packed["data"], validate=True), dtype=packed.get("dtype", "<f4"))
    return torch.from_numpy(data.copy()).view(*packed["shape"])
