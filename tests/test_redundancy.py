"""Models that hold a task twice, in parts, or with a head that subtracts: core and situation are told."""

from dataclasses import replace

import pytest

from circuits.circuit.masked import run_circuit
from circuits.circuit.score import margins, score_margins, task_score
from circuits.handmade import HARD, Handmade, build_hard, quotes
from circuits.handmade.rankings import METHODS
from circuits.pruning import NoCircuitError, PruneConfig, prune, rivals
from circuits.trust import TrustConfig, run_checks
from circuits.trust.checks import completeness
from circuits.trust.workbench import Bench

FEW = PruneConfig(starts=1, n_eval=64, n_test=64, n_mean=128)


@pytest.mark.parametrize("name", sorted(HARD))
def test_the_whole_model_and_its_laid_circuit_do_the_task(name: str) -> None:
    made = build_hard(name, 1)
    assert made.model.config.topk_fraction == 0.5
    batch = made.task.batch(64, split="test", seed=0)
    assert task_score(made.model, batch).loss < 0.01
    targets = batch.tokens_and_targets()
    assert score_margins(margins(run_circuit(made.model, made.circuit, targets.tokens), targets)).loss < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(HARD))
def test_the_situation_is_named_and_the_core_is_core(name: str) -> None:
    made = build_hard(name, 0)
    found = prune(made.model, made.task, FEW, corpus=made.corpus, progress=False)
    assert found.core
    assert set(found.core) <= set(made.core)
    assert made.loose or set(found.core) == set(made.core)
    told = rivals(made.model, made.task, found, corpus=made.corpus, progress=False)
    kept = set(found.nodes) - set(told.idle)
    assert kept <= set(made.circuit.nodes)
    assert told.situation == made.situation
    assert told.verdict.startswith(made.situation.capitalize())
    if told.situation == "redundant":
        assert told.rival is not None
        assert set(told.rival.nodes) & set(found.nodes) == set(found.core)
        assert told.rival.criterion == found.criterion
    if told.situation == "distributed":
        assert told.loss_without is not None
        assert told.loss_without > found.criterion.target
    if told.situation == "unique":
        assert kept == set(made.circuit.nodes)


@pytest.mark.slow
def test_what_everything_needs_cannot_be_avoided() -> None:
    made = quotes(1)
    with pytest.raises(NoCircuitError, match="all nodes but these 1 have loss .* expected at most 0.03"):
        prune(made.model, made.task, FEW, corpus=made.corpus, without=made.circuit.nodes[:1], progress=False)


def test_a_circuit_whose_nodes_were_never_measured_is_refused() -> None:
    made = quotes(1)
    with pytest.raises(
        ValueError, match="the loss of the model without each of its nodes is not among its facts"
    ):
        rivals(made.model, made.task, made.circuit, corpus=made.corpus)
    assert made.circuit.core == ()


def _one_of_two(made: Handmade) -> Handmade:
    """Without the second of the two heads that do the same."""
    second = max(node.index for node in made.loose) // made.model.config.d_head
    nodes = [
        n for n in made.circuit.nodes if n not in made.loose or n.index // made.model.config.d_head != second
    ]
    edges = tuple(e for e in made.circuit.edges if e.source in nodes and e.target in nodes)
    return replace(made, circuit=replace(made.circuit, nodes=tuple(nodes), edges=edges, io_edges=()))


def test_knocking_a_circuit_out_shows_its_double() -> None:
    import random

    config = TrustConfig(n_pairs=32, n_knockouts=4, n_greedy=2)
    double = _one_of_two(build_hard("redundant", 1))
    failed = run_checks(Bench(double.model, double.circuit, double.task, config), (completeness,))
    assert failed[1].verdict == "fail"
    both = build_hard("redundant", 1)
    passed = completeness(Bench(both.model, both.circuit, both.task, config), random.Random(0))
    assert [entry.verdict for entry in passed] == ["pass", "pass"]


@pytest.mark.slow
def test_ablating_single_nodes_finds_an_island_and_only_the_core_of_what_has_doubles() -> None:
    """Nothing much happens when one of two goes, so what matters comes after everything that single nodes decide."""
    rank = METHODS["single ablation"]
    island, double = quotes(1), build_hard("redundant", 1)
    assert set(rank(island.model, island.task)[: island.circuit.n_nodes]) == set(island.circuit.nodes)
    assert set(rank(double.model, double.task)[: len(double.core)]) == set(double.core)
