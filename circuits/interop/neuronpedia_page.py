"""The page of an attribution graph that others made: read from their JSON, drawn by token and layer."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuits.explorer.page import page_html
from circuits.explorer.view import SCHEMA
from circuits.files import read_json, write_text
from circuits.reading import reading


def graph_to_html(graph: Mapping[str, Any] | str | Path, path: str | Path) -> Path:
    """Write the explorer's page of an attribution graph (or of the file that holds one); returns its path.

    It is read, searched, pinned, grouped and renamed, but not run: the file has no weights. Errors: `graph_view`.
    """
    if isinstance(graph, Mapping):
        return write_text(path, page_html(graph_view(graph)))
    expected = "a file that circuit-tracer or Neuronpedia wrote"
    data = read_json(graph, name="graph", expected=expected)
    with reading(graph, expected, name="graph"):
        view = graph_view(data)
    return write_text(path, page_html(view))


def graph_view(graph: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of an attribution graph: tokens downwards, layers from left to right.

    Raises ValueError when a key is missing, a value is of another kind, or a link has an end that is no node.
    """
    try:
        return _view(graph["metadata"], graph["nodes"], graph["links"], graph.get("qParams") or {})
    except KeyError as missing:
        raise ValueError(
            f"graph: {missing} is missing; expected metadata with prompt_tokens, nodes with node_id, layer and "
            "ctx_idx, and links between nodes. Export the graph again from where it was made."
        ) from None
    except (AttributeError, TypeError, ArithmeticError) as error:
        raise ValueError(
            f"graph: a value is of another kind ({error}); expected those that circuit-tracer writes. Export the graph "
            "again from where it was made."
        ) from None


def _view(
    metadata: Mapping[str, Any],
    nodes: list[dict[str, Any]],
    links: list[dict[str, Any]],
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    layers = sorted({str(node["layer"]) for node in nodes}, key=_depth)
    place, tops = _places(nodes, layers)
    texts = [str(text) for text in metadata["prompt_tokens"]]
    lines = [_line(link, place) for link in links]
    answers = sorted(
        (node for node in nodes if node.get("feature_type") == "logit"),
        key=lambda node: -(node.get("token_prob") or 0.0),
    )
    return {
        "schema": SCHEMA,
        "task": str(metadata.get("slug") or metadata.get("prompt") or "attribution graph"),
        "subtitle": f"attribution graph of {metadata.get('scan', 'a model')}: read from a file, not run here",
        "ablation": None,
        "calibrated": False,
        "loss": None,
        "n_edges": len(links),
        "picture": {
            "nodes": [_mark(node, place) for node in nodes],
            "ends": [
                {"id": f"token:{at}", "label": texts[at], "at": (-0.6, top)}
                for at, top in tops.items()
                if at < len(texts)
            ],
            "lines": lines,
            "columns": [
                {
                    "layer": None,
                    "name": _named(layer),
                    "along": i,
                    "stack": "decoder",
                }
                for i, layer in enumerate(layers)
            ],
            "boxes": [],
        },
        "program": None,
        "tokens": {"kind": None, "texts": texts, "shown": texts},
        "given": list(range(len(texts))),
        "answers": [[_said(node), node.get("token_prob") or 0.0] for node in answers],
        "prompts": [],
        "notes": _notes(nodes, links),
        "trust": None,
        "state": _state(asked, place),
    }


def _named(layer: str) -> str:
    return layer if layer == "E" else f"layer {layer}"


def _depth(layer: str) -> tuple[int, int]:
    return (0, 0) if layer == "E" else (1, int(layer)) if layer.lstrip("-").isdecimal() else (2, 0)


def _places(
    nodes: list[dict[str, Any]], layers: list[str]
) -> tuple[dict[str, tuple[int, int]], dict[int, int]]:
    """Place of each node, and the row at which each token begins: as many rows as its fullest layer has nodes."""
    cells: dict[tuple[int, str], list[str]] = defaultdict(list)
    for node in nodes:
        cells[int(node["ctx_idx"]), str(node["layer"])].append(str(node["node_id"]))
    tallest: dict[int, int] = defaultdict(int)
    for (at, _), ids in cells.items():
        tallest[at] = max(tallest[at], len(ids))
    tops: dict[int, int] = {}
    row = 0
    for at in sorted(tallest):
        tops[at] = row
        row += tallest[at] + 1
    column = {layer: i for i, layer in enumerate(layers)}
    place = {
        id: (column[layer], tops[at] + i) for (at, layer), ids in cells.items() for i, id in enumerate(ids)
    }
    return place, tops


def _line(link: Mapping[str, Any], place: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    source, target = str(link["source"]), str(link["target"])
    for end in (source, target):
        if end not in place:
            raise ValueError(
                f"links: one ends at {end!r}, which is no node; expected the node_id of a node. "
                "Export the graph again."
            )
    ends = [place[source], place[target]]
    return {
        "source": source,
        "target": target,
        "kind": "weight",
        "weight": float(link["weight"]),
        "points": ends,
    }


def _said(node: Mapping[str, Any]) -> str:
    return str(node.get("clerp") or node["node_id"])


def _mark(node: Mapping[str, Any], place: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    id = str(node["node_id"])
    return {
        "id": id,
        "label": _said(node),
        "layer": _named(str(node["layer"])),
        "core": None,
        "at": place[id],
        "effect": node.get("influence"),
        "held": 0.0,
        "value": node.get("activation") or 0.0,
        "kind": None,
    }


def _notes(nodes: list[dict[str, Any]], links: list[dict[str, Any]]) -> dict[str, Any]:
    """The strongest links of each node each way; the page says the names of their ends."""
    ends: dict[tuple[str, str], list[tuple[float, str]]] = defaultdict(list)
    for link in links:
        ends["reads", str(link["target"])].append((float(link["weight"]), str(link["source"])))
        ends["writes", str(link["source"])].append((float(link["weight"]), str(link["target"])))
    return {
        id: {
            "constant": None,
            "highest": [],
            "lowest": [],
            **{
                way: [
                    f"{end} ({weight:+.2f})"
                    for weight, end in sorted(ends[way, id], key=lambda end: -abs(end[0]))[:12]
                ]
                for way in ("reads", "writes")
            },
        }
        for id in (str(node["node_id"]) for node in nodes)
    }


def _state(asked: Mapping[str, Any], place: Mapping[str, Any]) -> dict[str, Any]:
    """Pins and groups that the file was saved with."""
    pins = asked.get("pinnedIds") or []
    pins = pins.split(",") if isinstance(pins, str) else pins
    groups = [
        {"name": str(name), "ids": [id for id in ids if id in place]}
        for name, *ids in asked.get("supernodes") or []
    ]
    return {"pins": [id for id in pins if id in place], "groups": groups}
