"""Attribution graphs: ours are sums that come out and fit the schema; others' open in the page."""

import json
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from explorer_browser import MARKS, chromium, opened

from circuits.circuit.nodes import Node
from circuits.decompile.folded import rest_of
from circuits.handmade import induction, quotes
from circuits.interop.neuronpedia import attribution_graph, graph_to_html, graph_view

TEXT, NUMBER, WHOLE = {"type": "string"}, {"type": ["number", "null"]}, {"type": "integer"}
TEXTS = {"type": "array", "items": TEXT}


def objects(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


SCHEMA = objects(
    metadata=objects(slug=TEXT, scan=TEXT, prompt=TEXT, prompt_tokens=TEXTS),
    qParams=objects(pinnedIds=TEXTS, supernodes={"type": "array", "items": TEXTS}, linkType=TEXT, clickedId=TEXT),
    nodes={
        "type": "array",
        "items": objects(
            node_id={"type": "string", "pattern": "^(E|[0-9]+)_[0-9]+_[0-9]+$"},
            jsNodeId=TEXT, feature=WHOLE, layer=TEXT, ctx_idx=WHOLE, reverse_ctx_idx=WHOLE, run_idx=WHOLE,
            feature_type=TEXT, token_prob={"type": "number"}, is_target_logit={"type": "boolean"}, clerp=TEXT,
            influence=NUMBER, activation=NUMBER,
        ),
    },
    links={"type": "array", "items": objects(source=TEXT, target=TEXT, weight={"type": "number"})},
)  # fmt: skip
"""The schema of attribution graphs, as far as its readers ask for it."""


@pytest.mark.parametrize("make", [quotes, induction])
def test_ours_fits_their_schema_and_its_links_add_up(make: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    made = make(1)
    graph = json.loads(json.dumps(attribution_graph(made.model, made.circuit, made.task)))
    jsonschema.validate(graph, SCHEMA)
    nodes = {node["node_id"]: node for node in graph["nodes"]}
    assert len(nodes) == len(graph["nodes"])
    into: dict[str, float] = defaultdict(float)
    for link in graph["links"]:
        assert {link["source"], link["target"]} <= set(nodes)
        into[link["target"]] += 0.0 if ".attn_k." in nodes[link["source"]]["clerp"] else link["weight"]
    checked = 0
    for id, node in nodes.items():
        if node["feature_type"] != "sparse transformer node" or not node["activation"]:
            continue
        part = Node.parse(node["clerp"])
        if part.site in ("attn_q", "attn_k", "attn_v", "mlp_out"):
            rest = float(rest_of(made.model, made.circuit, part.at)[part.index])
            assert into[id] + rest == pytest.approx(node["activation"], abs=1e-4)
            checked += 1
    assert checked > 0
    assert sum(node["is_target_logit"] for node in nodes.values()) == 1


def test_no_such_pair() -> None:
    made = quotes(1)
    with pytest.raises(ValueError, match="pair: got 50; expected 0 to 49"):
        attribution_graph(made.model, made.circuit, made.task, pair=50)


def test_pins_groups_and_names_of_a_view_go_along_and_come_back() -> None:
    made = quotes(1)
    carried, written = (
        next(node for node in made.circuit.nodes if node.site == site) for site in ("attn_v", "attn_out")
    )
    view = {
        "pins": [str(carried)],
        "groups": [{"name": "copies", "ids": [str(carried), str(written)]}],
        "names": {str(written): "which quote"},
    }
    graph = attribution_graph(made.model, made.circuit, made.task, view=view)
    plain = attribution_graph(made.model, made.circuit, made.task)
    places = {
        part: [node["node_id"] for node in plain["nodes"] if node["clerp"] == str(part)]
        for part in (carried, written)
    }
    assert graph["qParams"]["pinnedIds"] == places[carried]
    assert len(places[carried]) > 1
    assert graph["qParams"]["supernodes"] == [["copies", *places[carried], *places[written]]]
    assert [node["node_id"] for node in graph["nodes"] if node["clerp"] == "which quote"] == places[written]
    back = graph_view(json.loads(json.dumps(graph)))
    assert back["state"] == {
        "pins": places[carried],
        "groups": [{"name": "copies", "ids": [*places[carried], *places[written]]}],
    }
    with pytest.raises(ValueError, match="view: it names '9.mlp_in.1', which is no node of the circuit"):
        attribution_graph(made.model, made.circuit, made.task, view={"pins": ["9.mlp_in.1"]})


def theirs() -> dict[str, Any]:
    """A small graph by the schema: two tokens, two features, one logit, a pin and a group."""
    common = {
        "reverse_ctx_idx": 0,
        "run_idx": 0,
        "is_target_logit": False,
        "token_prob": 0.0,
        "influence": 0.3,
    }
    rows = [
        ("E_5_0", "E", 0, "embedding", "Emb: cat", None),
        ("0_77_0", "0", 0, "cross layer transcoder", "animals <script>x</script>", 2.5),
        ("3_9_1", "3", 1, "cross layer transcoder", "", -1.5),
        ("5_12_1", "5", 1, "logit", "Output meow", None),
    ]
    nodes = [
        common
        | {"node_id": id, "layer": layer, "ctx_idx": at, "feature_type": kind, "clerp": said, "activation": act,
           "feature": int(id.split("_")[1]), "jsNodeId": id}
        for id, layer, at, kind, said, act in rows
    ]  # fmt: skip
    nodes[3]["token_prob"] = 0.75
    return {
        "metadata": {"slug": "cat-says", "scan": "some-model", "prompt": "cat says", "prompt_tokens": ["cat", "says"]},
        "qParams": {"pinnedIds": ["3_9_1", "gone"], "supernodes": [["pets", "0_77_0", "3_9_1"]],
                    "linkType": "both", "clickedId": ""},
        "nodes": nodes,
        "links": [
            {"source": "E_5_0", "target": "0_77_0", "weight": 1.25},
            {"source": "0_77_0", "target": "3_9_1", "weight": -0.5},
            {"source": "3_9_1", "target": "5_12_1", "weight": 2.0},
        ],
    }  # fmt: skip


def test_what_is_wrong_with_a_graph_is_named() -> None:
    for key in ("metadata", "nodes", "links"):
        with pytest.raises(ValueError, match=f"'{key}' is missing"):
            graph_view({name: value for name, value in theirs().items() if name != key})
    loose = theirs()
    loose["links"][0]["source"] = "E_6_0"
    with pytest.raises(ValueError, match="'E_6_0', which is no node"):
        graph_view(loose)


@MARKS[0]
@MARKS[1]
@pytest.mark.parametrize("whose", ["theirs", "ours"])
def test_a_graph_opens_in_the_page(whose: str, tmp_path: Path) -> None:
    made = quotes(1)
    graph = theirs() if whose == "theirs" else attribution_graph(made.model, made.circuit, made.task)
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    path = graph_to_html(tmp_path / "graph.json", tmp_path / "graph.html")
    errors: list[str] = []
    with contextmanager(chromium)() as browser:
        page = opened(browser, path, errors)
        state = "document.getElementById('explorer').explorer.state"
        assert page.locator(".node").count() == len(graph["nodes"])
        assert page.locator(".line").count() == len(graph["links"])
        if whose == "theirs":
            assert page.evaluate(f"{state}.pins") == ["3_9_1"]
            assert page.evaluate(f"{state}.groups") == [{"name": "pets", "ids": ["0_77_0", "3_9_1"]}]
            page.evaluate("document.getElementById('explorer').explorer.set({chosen: '0_77_0'})")
            said = page.locator(".panel").inner_text()
            assert "animals <script>x</script>" in said
            assert "Emb: cat (+1.25)" in said
            assert "Output meow 75 %" in page.locator(".answer").inner_text()
            assert page.locator("#explorer script").count() == 0
            page.locator('.panel .reads .chip[data-id="E_5_0"]').hover()
            assert page.locator('.node.hover[data-id="E_5_0"]').count() == 1
    assert errors == []
