"""What a circuit file must hold, looked at before anything is made of it."""

import re
from collections.abc import Mapping
from typing import Any

from circuits.model.sites import ROWS
from circuits.reading import demand

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
    for facts in data["facts"].values():
        _is(facts, Mapping, "facts", "an object for each node")
        for value in facts.values():
            demand(value is None or _is_number(value), f"facts: got {value!r}", "numbers, or null")


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
        right = isinstance(row, list) and len(row) == 3 and _is_number(row[2])
        right = right and all(end is None or isinstance(end, str) for end in row[:2])
        demand(right, f"effects: got {row!r}", "lists of two names, or null, and a size")


def _check_row(row: Any, n: int, name: str) -> None:
    right = isinstance(row, list) and len(row) == n and all(isinstance(part, str) for part in row[:-1])
    right = right and _is_number(row[-1])
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is(value: Any, kind: Any, name: str, said: str) -> None:
    demand(isinstance(value, kind), f"{name}: got {value!r}", said)


def _whole(value: Any, name: str) -> None:
    demand(
        type(value) is int and 1 <= value < 2**31, f"{name}: got {value!r}", "a whole number of at least 1"
    )
