"""The report: true circuits pass, false ones fail, and each check answers to what it is for."""

import json
import random
from dataclasses import replace

import pytest
import torch

from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import run_circuit
from circuits.circuit.nodes import Node
from circuits.handmade import MODELS, Handmade, quotes
from circuits.trust import TrustConfig, TrustReport, trust_report
from circuits.trust.margins import margin_agreement
from circuits.trust.workbench import Bench
from circuits.trust.yardsticks import _binomial_tail, _shuffled_within

QUICK = TrustConfig(n_pairs=32, n_random=19, n_knockouts=4, n_greedy=1, control_steps=0)
ITEMS = {
    "sufficiency",
    "task loss, uncalibrated",
    "necessity",
    "KL, clean",
    "KL, corrupted",
    "top-1, clean",
    "top-1, corrupted",
    "margin ratio",
    "margin correlation",
    "completeness, sampled",
    "completeness, worst found",
    "interchange",
    "1-minimality",
    "random circuits",
    "adversarial ablation",
    "stochastic ablation",
    "ablation values",
    "swapped answers",
    "unrelated answers",
    "random model",
    "overlap over seeds",
    "CPR",
    "CMD",
    "equivalence test",
    "independence test",
    "minimality test",
}


@pytest.fixture(scope="module")
def made() -> Handmade:
    return quotes(1)


@pytest.fixture(scope="module")
def report(made: Handmade) -> TrustReport:
    return trust_report(
        made.model,
        made.circuit,
        made.task,
        replace(QUICK, control_steps=60),
        others=[made.circuit],
        corpus=made.corpus,
    )


def with_nodes(circuit: Circuit, nodes: list[Node]) -> Circuit:
    kept = set(nodes)
    edges = tuple(e for e in circuit.edges if e.source in kept and e.target in kept)
    return replace(circuit, nodes=tuple(nodes), edges=edges)


def test_a_true_circuit_passes_everything(report: TrustReport) -> None:
    assert report.failed == []
    assert {entry.name for entry in report.entries} == ITEMS
    unread = [entry.name for entry in report.entries if entry.verdict == "not run"]
    assert unread == ["margin correlation"]  # its margins are all of one size: there is no order to have
    assert "passed" in report.verdict
    for entry in report.entries:
        assert entry.meaning.endswith(".")


@pytest.mark.parametrize("name", ["modular", "induction"])
@pytest.mark.slow
def test_other_true_circuits_pass(name: str) -> None:
    made = MODELS[name](0)
    assert trust_report(made.model, made.circuit, made.task, replace(QUICK, n_pairs=96)).failed == []


def test_report_is_json_html_and_text(report: TrustReport) -> None:
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert len(data["entries"]) == len(ITEMS)
    page = report._repr_html_()
    assert page.count("<tr>") == len(ITEMS) + 1
    assert "sufficiency" in str(report)
    assert report["sufficiency"].value < 0.01
    with pytest.raises(KeyError, match="expected one of"):
        report["nothing"]


def test_a_circuit_that_lacks_a_node_is_not_sufficient(made: Handmade) -> None:
    report = trust_report(
        made.model, with_nodes(made.circuit, list(made.circuit.nodes[1:])), made.task, QUICK
    )
    assert {"sufficiency", "KL, clean"} <= set(report.failed)
    assert "checks failed" in report.verdict


@pytest.mark.slow
def test_a_node_too_many_is_not_minimal(made: Handmade) -> None:
    spare = next(
        Node(0, "mlp_in", i)
        for i in range(made.model.config.d_model)
        if Node(0, "mlp_in", i) not in made.circuit.nodes
    )
    report = trust_report(
        made.model, with_nodes(made.circuit, [*made.circuit.nodes, spare]), made.task, QUICK
    )
    assert report["1-minimality"].details["spare"] == [str(spare)]
    assert {"1-minimality", "minimality test"} <= set(report.failed)


def test_bench_agrees_with_run_circuit(made: Handmade) -> None:
    bench = Bench(made.model, made.circuit, made.task, replace(QUICK, n_pairs=8))
    with torch.no_grad():
        logits = run_circuit(made.model, made.circuit, bench.targets.tokens)
    at_end = logits[torch.arange(len(logits)), bench.targets.position]
    torch.testing.assert_close(bench.logits(*bench.circuit_without()), at_end)


def test_patching_every_way_in_gives_the_corrupted_answer(made: Handmade) -> None:
    bench = Bench(made.model, made.circuit, made.task, replace(QUICK, n_pairs=8))
    output = next(node for node in made.circuit.nodes if node.site == "mlp_out")
    moved = bench.patched_margins([output], in_circuit=True)
    corrupted = bench.circuit_margins()[8:]
    # The margin of a corrupted prompt is that of its own answer, which is the foil of the clean one.
    torch.testing.assert_close(moved, -corrupted, rtol=1e-3, atol=1e-3)
    untouched = bench.patched_margins([output], in_circuit=True, share=0.0)
    torch.testing.assert_close(untouched, bench.circuit_margins()[:8])


@pytest.mark.slow
def test_nothing_of_the_model_is_changed(made: Handmade) -> None:
    before = made.model.fingerprint()
    trust_report(made.model, made.circuit, made.task, replace(QUICK, control_steps=2, n_random=2))
    assert made.model.fingerprint() == before


@pytest.mark.slow
def test_same_seed_same_report(made: Handmade) -> None:
    a, b = (
        trust_report(made.model, made.circuit, made.task, replace(QUICK, n_random=4)).to_json()
        for _ in range(2)
    )
    assert a["entries"] == b["entries"]


def test_errors_say_what_is_wrong(made: Handmade) -> None:
    with pytest.raises(ValueError, match="belongs to model"):
        trust_report(quotes(2).model, made.circuit, made.task)
    with pytest.raises(ValueError, match="got copy"):
        trust_report(made.model, made.circuit, MODELS["copying"](0).task)
    with pytest.raises(ValueError, match="no nodes"):
        trust_report(made.model, with_nodes(made.circuit, []), made.task)
    with pytest.raises(ValueError, match="n_pairs"):
        TrustConfig(n_pairs=0)


def test_binomial_tail_by_hand() -> None:
    assert _binomial_tail(0, 5, 0.3) == pytest.approx(1.0)
    assert _binomial_tail(5, 5, 0.5) == pytest.approx(1 / 32)


def test_shuffling_keeps_to_groups() -> None:
    groups = torch.tensor([3, 1, 3, 1, 2])
    order = _shuffled_within(groups, torch.Generator().manual_seed(random.randrange(100)))
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4]
    assert groups[order].tolist() == groups.tolist()


def test_margins_tell_a_faint_circuit_and_one_that_orders_prompts_at_random() -> None:
    """The true circuit has the model's margins; one that knows only the sign has neither their size nor their order."""
    made = MODELS["modular"](1)
    bench = Bench(made.model, made.circuit, made.task, replace(QUICK, n_pairs=64))
    ratio, order = margin_agreement(bench, random.Random(0))
    assert ratio.verdict == order.verdict == "pass"
    assert ratio.value == pytest.approx(1.0, abs=0.2)
    assert abs(ratio.baseline) < 0.1
    assert order.value > 0.8 > order.baseline
    sign = Bench(made.model, made.circuit, made.task, replace(QUICK, n_pairs=64))
    runs = sign.judge.test
    noise = torch.rand(2 * runs.n_pairs, generator=torch.Generator().manual_seed(0))
    runs.margins = lambda nodes, edges: 0.1 + 0.01 * noise  # type: ignore[method-assign]
    ratio, order = margin_agreement(sign, random.Random(0))
    assert ratio.value < 0.1
    assert abs(order.value) < 0.4
    assert ratio.verdict == order.verdict == "fail"
