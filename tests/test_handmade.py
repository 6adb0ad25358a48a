"""Hand-made models: they do their task, their circuit is 1-minimal, and pruning finds exactly it."""

from dataclasses import replace

import pytest
import torch

from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import run_circuit
from circuits.circuit.score import margins, score_margins, task_score
from circuits.handmade import METHODS, MODELS, Handmade, build, rank_metrics, recover
from circuits.pruning import PruneConfig

NAMES = sorted(MODELS)
TARGET = 0.15


def circuit_loss(made: Handmade, circuit: Circuit) -> float:
    targets = made.task.batch(96, split="val", seed=3).tokens_and_targets()
    with torch.no_grad():
        return score_margins(margins(run_circuit(made.model, circuit, targets.tokens), targets)).loss


def without_one(circuit: Circuit) -> list[tuple[str, Circuit]]:
    """The circuit without each of its nodes, and without each weight."""
    smaller = []
    for node in circuit.nodes:
        nodes = tuple(n for n in circuit.nodes if n != node)
        edges = tuple(e for e in circuit.edges if node not in (e.source, e.target))
        smaller.append((str(node), replace(circuit, nodes=nodes, edges=edges)))
    for edge in circuit.edges:
        if edge.source.site != "attn_k":
            rest = tuple(e for e in circuit.edges if e != edge)
            smaller.append((f"{edge.source} > {edge.target}", replace(circuit, edges=rest)))
    return smaller


@pytest.mark.parametrize("name", NAMES)
def test_true_circuit_is_enough_and_no_part_can_go(name: str) -> None:
    made = MODELS[name](1)
    assert task_score(made.model, made.task.batch(96, split="test", seed=0)).loss < 0.01
    assert circuit_loss(made, made.circuit) < 0.01
    for part, smaller in without_one(made.circuit):
        assert circuit_loss(made, smaller) > 1.5 * TARGET, part


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_second_task_leaves_the_first_alone(name: str) -> None:
    other = "copying" if name != "copying" else "quotes"
    made = MODELS[name](2, second=other)
    assert task_score(made.model, made.task.batch(96, split="test", seed=0)).loss < 0.01
    assert made.second is not None
    assert task_score(made.model, made.second.batch(96, split="test", seed=0)).loss < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quotes", "copying"])
def test_pruning_returns_the_true_circuit(name: str) -> None:
    """Two of the six, at one seed, from one start: the whole proof takes many minutes and is `circuits verify`."""
    result = recover(MODELS[name](0), 0, PruneConfig(starts=1))
    assert result.exact, result


def test_same_seed_same_bits_and_decoys_differ_by_seed() -> None:
    a, b, c = MODELS["quotes"](3), MODELS["quotes"](3), MODELS["quotes"](4)
    assert a.model.fingerprint() == b.model.fingerprint() != c.model.fingerprint()
    assert a.circuit.nodes == c.circuit.nodes


def test_abs_topk_keeps_the_true_values() -> None:
    made = build("quotes", 1, topk_fraction=0.5)
    assert task_score(made.model, made.task.batch(128, split="test", seed=0)).loss < 0.01


@pytest.mark.parametrize("bad", [{"name": "nothing"}, {"name": "quotes", "second": "quotes"}])
def test_bad_arguments(bad: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected"):
        build(**bad)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.slow
def test_rankings_hold_every_node_once(method: str) -> None:
    made = MODELS["majority"](0)
    ranking = METHODS[method](made.model, made.task)
    assert len(ranking) == len(set(ranking)) == sum(made.model.config.widths.values())
    metrics = rank_metrics(ranking, made.circuit)
    assert 0 <= metrics["auroc"] <= 1


def test_attribution_beats_chance() -> None:
    made = MODELS["majority"](0)
    scores = {m: rank_metrics(METHODS[m](made.model, made.task), made.circuit)["auroc"] for m in METHODS}
    assert scores["integrated gradients"] > max(0.8, scores["random"])


def test_rank_metrics_of_a_perfect_and_of_a_reversed_ranking() -> None:
    made = MODELS["quotes"](0)
    every = METHODS["random"](made.model, made.task)
    best = sorted(every, key=lambda node: node not in made.circuit.nodes)
    assert rank_metrics(best, made.circuit) == {"precision": 1.0, "recall": 1.0, "auroc": 1.0}
    assert rank_metrics(best[::-1], made.circuit)["auroc"] == 0.0
