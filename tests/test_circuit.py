"""Circuits as objects: order, checks, JSON, masks, graphs."""

import json

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.circuit.circuit import Circuit
from circuits.circuit.criterion import Criterion
from circuits.circuit.nodes import Edge, IOEdge, Node, NodeFacts, residual_links
from circuits.model.sites import BY_SITES, SCORE, SITES, Site, all_sites

WIDTHS = dict.fromkeys(all_sites(2), 6)


def make(nodes, edges=(), **options):
    generator = torch.Generator().manual_seed(0)
    values = {site: torch.randn(6, generator=generator) for site in all_sites(2)}
    defaults = dict(
        widths=WIDTHS, n_layers=2, criterion=Criterion(task="quotes"), model_hash="abc", values=values
    )
    return Circuit(nodes=tuple(nodes), edges=tuple(edges), **{**defaults, **options})


NODES = st.builds(Node, st.integers(0, 1), st.sampled_from(SITES), st.integers(0, 5))


@settings(max_examples=40, deadline=None)
@given(st.sets(NODES, max_size=20), st.data())
def test_json_round_trip(nodes, data):
    possible = [
        Edge(a, b, 0.1 + a.index)
        for a in sorted(nodes)
        for b in sorted(nodes)
        if a.layer == b.layer and (a.site, b.site) in {*BY_SITES, SCORE}
    ]
    edges = data.draw(st.sets(st.sampled_from(possible))) if possible else set()
    facts = {node: NodeFacts(0.5, node.index / 3, 1.5) for node in nodes}
    circuit = make(nodes, edges, facts=facts, metrics={"task_loss": 0.1, "one_minimal": True})
    back = Circuit.from_json(json.loads(json.dumps(circuit.to_json())))
    assert (back.nodes, back.edges, dict(back.facts)) == (circuit.nodes, circuit.edges, facts)
    assert back.metrics == circuit.metrics
    assert all(torch.equal(back.values[site], value) for site, value in circuit.values.items())
    kept = [
        Node(s.layer, s.name, i) for s, m in back.to_mask().items() for i in m.nonzero().flatten().tolist()
    ]
    assert sorted(kept) == list(circuit.nodes)
    scores = sum(edge.source.site == "attn_k" for edge in edges)
    assert sum(int(m.sum()) for m in back.to_edge_mask().values()) == circuit.n_edges - scores


def test_counts_and_graph():
    a, q, k, o, m = (
        Node(0, "attn_in", 1), Node(0, "attn_q", 2), Node(0, "attn_k", 2), Node(0, "attn_out", 3), Node(1, "mlp_in", 3),
    )  # fmt: skip
    circuit = make(
        [m, o, k, q, a], [Edge(a, q, 0.5), Edge(k, q, 0.25)],
        io_edges=(IOEdge("embed", "'", a, 1.0), IOEdge("unembed", '"', o, -1.0)),
    )  # fmt: skip
    assert (circuit.n_nodes, circuit.n_edges, len(circuit.io_edges)) == (5, 2, 2)
    graph = circuit.to_networkx()
    kinds = sorted(data["kind"] for *_, data in graph.edges(data=True))
    assert kinds == ["embed", "residual", "score", "unembed", "weight"]
    assert residual_links(circuit.nodes) == [(o, m)]
    assert "5 nodes, 2 edges" in repr(circuit)
    assert "attn_q" in circuit._repr_html_()


def test_save_is_whole_and_load_checks(tmp_path):
    circuit = make([Node(0, "attn_in", 1)])
    path = circuit.save(tmp_path / "deep" / "c.json")
    assert Circuit.load(path).nodes == circuit.nodes
    assert [p.name for p in path.parent.iterdir()] == ["c.json"]
    path.write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        Circuit.load(path)
    with pytest.raises(ValueError, match="schema: got 'other/2'; expected 'sparse-circuits/circuit/1'"):
        Circuit.from_json({**circuit.to_json(), "schema": "other/2"})
    data = circuit.to_json()
    del data["widths"]
    with pytest.raises(ValueError, match="key 'widths' is missing"):
        Circuit.from_json(data)


def test_impossible_circuits_are_refused():
    a, b = Node(0, "attn_in", 1), Node(0, "attn_q", 1)
    with pytest.raises(ValueError, match=r"0.attn_in.9 lies outside the model"):
        make([Node(0, "attn_in", 9)])
    with pytest.raises(ValueError, match=r"but 0.attn_q.1 is no node"):
        make([a], [Edge(a, b, 1.0)])
    with pytest.raises(ValueError, match=r"no weight runs from 0.attn_q.1 to 0.attn_in.1"):
        make([a, b], [Edge(b, a, 1.0)])
    with pytest.raises(ValueError, match=r"values: none of width 6 for site 0.attn_in"):
        make([a], values={})
    with pytest.raises(ValueError, match=r"expected 'layer.site.index'"):
        Node.parse("0.resid.1")
    assert Site(1, "mlp_in") == Node.parse("1.mlp_in.3").at


@pytest.mark.parametrize("shape", [(), (5,), (2, 5)])
def test_values_for_each_place_survive_the_file(shape, tmp_path):
    widths = dict.fromkeys(all_sites(1), 4)
    values = {site: torch.randn(*shape, 4) for site in all_sites(1)}
    circuit = Circuit(
        nodes=(),
        edges=(),
        widths=widths,
        n_layers=1,
        criterion=Criterion(task="t", ablation="resample"),
        model_hash="m",
        values=values,
    )
    again = Circuit.load(circuit.save(tmp_path / "c.json"))
    assert all(torch.equal(again.values[site], value) for site, value in values.items())
    assert again.ablation == "resample"


A, Q, K, OUT = Node(0, "attn_in", 1), Node(0, "attn_q", 2), Node(0, "attn_k", 2), Node(0, "attn_out", 3)


def whole(**changes):
    facts = {A: NodeFacts(0.5, float("nan"))}
    io = (IOEdge("embed", "'", A, 1.0), IOEdge("unembed", "\n", OUT, -1.0))
    return make(
        [A, Q, K, OUT],
        **{"edges": [Edge(A, Q, 0.5), Edge(K, Q, 0.25)], "io_edges": io, "facts": facts, **changes},
    )


def test_circuits_are_equal_when_they_are_the_same():
    circuit = whole()
    back = Circuit.from_json(json.loads(json.dumps(circuit.to_json())))
    assert back == circuit
    assert len({circuit, back, circuit.with_metrics(seconds=3.0)}) == 1
    values = {site: value.clone() for site, value in circuit.values.items()}
    values[Site(1, "mlp_out")][2] += 1
    for other in (
        whole(values=values), whole(edges=[Edge(A, Q, 0.75)]), whole(io_edges=()), whole(facts={}),
        whole(model_hash="abd"), whole(criterion=Criterion(task="quotes", seed=1)),
    ):  # fmt: skip
        assert other != circuit
    assert circuit != "circuit"


def test_a_graph_can_be_written_and_laid_out():
    graph = whole().to_networkx()
    assert (
        nx.node_link_graph(
            json.loads(json.dumps(nx.node_link_data(graph, edges="edges"))), edges="edges"
        ).edges
        == graph.edges
    )
    assert set(nx.parse_gml(list(nx.generate_gml(graph)))) == set(graph)
    assert set(nx.multipartite_layout(graph, subset_key="layer")) == set(graph)
    columns = nx.multipartite_layout(graph)
    assert (
        columns["token:'"][0]
        < columns["0.attn_in.1"][0]
        < columns["0.attn_out.3"][0]
        < columns["logit:\n"][0]
    )
    assert graph.nodes["0.attn_in.1"] == {"layer": 0, "site": "attn_in", "index": 1, "subset": 1, "mean": 0.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges": [Edge(A, Q, 0.5), Edge(A, Q, 0.25)]}, "edges: 0.attn_in.1 -> 0.attn_q.2 is there twice"),
        ({"edges": [Edge(A, Q, 0.0)]}, "edges: 0.attn_in.1 -> 0.attn_q.2 has weight 0.0"),
        ({"edges": [Edge(A, Q, float("nan"))]}, "has weight nan; expected a finite number"),
        ({"edges": [Edge(A, Node(1, "attn_q", 1), 0.5)]}, "1.attn_q.1 is no node"),
        ({"io_edges": [IOEdge("embed", "a", OUT, 1.0)]}, "io_edges: got 'embed' of token 'a' at 0.attn_out.3"),
        ({"io_edges": [IOEdge("other", "a", A, 1.0)]}, "io_edges: got 'other'"),
    ],
)  # fmt: skip
def test_parts_that_count_twice_or_hang_on_nothing_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        whole(**{name: tuple(value) for name, value in changes.items()})


def test_a_file_is_unified_or_refused():
    data = whole().to_json()
    doubled = {**data, **{name: data[name] * 2 for name in ("nodes", "edges", "io_edges")}}
    assert Circuit.from_json(doubled) == whole()
    with pytest.raises(ValueError, match="io_edges has one at 1.mlp_in.0, which is none of its nodes"):
        Circuit.from_json({**data, "io_edges": [["embed", "a", "1.mlp_in.0", 1.0]]})
