"""Set operations on circuits and circuits run on other tasks."""

import json

import pytest

from circuits.circuit.circuit import Circuit
from circuits.circuit.compare import difference, intersection, overlap, transplant, union
from circuits.circuit.masked import check_belongs
from circuits.handmade import MODELS, Handmade, build
from circuits.handmade.board import Board, nodes_of
from circuits.handmade.catalogue import _RECIPES, _true_circuit


@pytest.fixture(scope="module")
def made() -> Handmade:
    return build("majority", 0, second="copying")


@pytest.fixture(scope="module")
def other(made: Handmade) -> Circuit:
    """The circuit of the second task, which is laid after the first."""
    board = Board(made.model.config, made.model.tokenizer)
    _RECIPES["majority"].lay(board)
    edges = _RECIPES["copying"].lay(board)
    assert made.second is not None
    assert not set(nodes_of(edges)) & set(made.circuit.nodes)
    return _true_circuit(made.model, made.second, _RECIPES["copying"].corpus(), edges)


def test_set_operations(made: Handmade, other: Circuit) -> None:
    both = union(made.circuit, other)
    assert both.n_nodes == made.circuit.n_nodes + other.n_nodes
    assert intersection(both, other).nodes == other.nodes
    assert intersection(made.circuit, other).n_nodes == 0
    assert difference(both, other).nodes == made.circuit.nodes
    assert difference(both, other).edges == made.circuit.edges
    assert both.task == "majority | copy"
    check_belongs(made.model, both)
    assert Circuit.from_json(json.loads(json.dumps(both.to_json()))).nodes == both.nodes


def test_overlap(made: Handmade, other: Circuit) -> None:
    assert overlap(made.circuit, made.circuit) == {"nodes": 1.0, "edges": 1.0}
    assert overlap(made.circuit, other) == {"nodes": 0.0, "edges": 0.0}
    both = union(made.circuit, other)
    assert overlap(both, other)["nodes"] == pytest.approx(other.n_nodes / both.n_nodes)


def test_transplant_tells_which_circuit_does_which_task(made: Handmade, other: Circuit) -> None:
    assert made.second is not None
    circuits = {"majority": made.circuit, "copy": other, "both": union(made.circuit, other)}
    table = transplant(made.model, circuits, {"majority": made.task, "copy": made.second}, n_pairs=32)
    solved = [[loss < 0.05 for loss in row] for row in table.loss]
    assert solved == [[True, False], [False, True], [True, True]]
    assert max(table.full_loss) < 0.05
    assert table.overlap[0][:2] == (1.0, 0.0)
    assert len(str(table).splitlines()) == 5
    assert json.loads(json.dumps(table.to_json()))["tasks"] == ["majority", "copy"]


def test_errors(made: Handmade) -> None:
    stranger = MODELS["copying"](0).circuit
    with pytest.raises(ValueError, match="belongs to model"):
        union(made.circuit, stranger)
    with pytest.raises(ValueError, match="at least one"):
        transplant(made.model, {}, {"majority": made.task})
    with pytest.raises(ValueError, match="belongs to model"):
        transplant(made.model, {"copy": stranger}, {"majority": made.task})
