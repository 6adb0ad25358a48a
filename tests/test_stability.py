"""What comes back when a circuit is looked for again."""

import json
from dataclasses import replace

import pytest

from circuits.circuit.circuit import Circuit
from circuits.handmade import build_hard, quotes
from circuits.pruning import PruneConfig
from circuits.pruning.stability import SETTINGS, _judged, _scaled, stability, stability_card

FEW = PruneConfig(starts=1, steps=60, n_eval=32, n_test=32, n_mean=64)


def less(circuit: Circuit, i: int) -> Circuit:
    nodes = tuple(node for j, node in enumerate(circuit.nodes) if j != i)
    edges = tuple(e for e in circuit.edges if e.source in nodes and e.target in nodes)
    return replace(circuit, nodes=nodes, edges=edges, io_edges=())


def test_parts_by_how_many_circuits_have_them() -> None:
    circuit = quotes(1).circuit
    card = stability({"a": circuit, "b": circuit, "c": circuit, "d": less(circuit, 0)})
    assert card.nodes[circuit.nodes[0]].n == 3
    assert card.nodes[circuit.nodes[0]].kind == "contingent"
    assert card.nodes[circuit.nodes[-1]].kind == "core"
    assert sum(card.counts()["nodes"].values()) == circuit.n_nodes
    assert card.sizes[0] == (circuit.n_nodes, circuit.n_edges)
    assert json.loads(json.dumps(card.to_json()))["runs"] == ["a", "b", "c", "d"]
    assert str(circuit.nodes[0]) in str(card)
    assert card._repr_html_().count("<tr>") == circuit.n_nodes + 1


@pytest.mark.parametrize(
    ("n", "of", "kind"), [(8, 8, "core"), (3, 3, "contingent"), (5, 8, "contingent"), (1, 9, "noise")]
)
def test_a_kind_needs_enough_runs(n: int, of: int, kind: str) -> None:
    kept = _judged(n, of)
    assert kept.kind == kind
    assert 0 <= kept.low <= n / of <= kept.high <= 1


def test_circuits_of_two_models_are_not_compared() -> None:
    with pytest.raises(ValueError, match="got 2 of 2 models"):
        stability({"a": quotes(1).circuit, "b": quotes(2).circuit})
    with pytest.raises(ValueError, match="got 1 of 1 models"):
        stability({"a": quotes(1).circuit})


def test_settings_are_scaled_and_stay_of_their_kind() -> None:
    changed = _scaled(FEW, SETTINGS["longer and slower"])
    assert (changed.steps, changed.lr) == (120, FEW.lr / 2)


@pytest.mark.slow
def test_what_has_a_double_is_not_core() -> None:
    """One of two heads is enough, and which one is kept depends on the run or on the model's decoys."""
    made = build_hard("redundant", 0)
    card = stability_card(
        made.model, made.task, FEW, seeds=4, settings={"as given": {}}, corpus=made.corpus, progress=False
    )
    assert len(card.runs) == 4
    core = {node for node, kept in card.nodes.items() if kept.kind == "core"}
    assert set(made.core) <= core
