"""Ablation that chooses: what is left out takes the worst values, or random ones, between its mean and its own."""

import math
from dataclasses import replace

import pytest
import torch

from circuits.circuit.ablation import mean_values
from circuits.circuit.adversary import Attack, drawn, worst
from circuits.circuit.criterion import Criterion
from circuits.circuit.evaluator import Evaluator
from circuits.circuit.nodes import Node, all_nodes
from circuits.circuit.scope import scope
from circuits.circuit.score import disorder, margin_correlation, margin_correlations, margin_error
from circuits.handmade import Handmade, quotes
from circuits.model.sites import Site
from circuits.pruning.config import PruneConfig
from circuits.pruning.minimal import minimal
from circuits.pruning.procedure import prune
from circuits.trust import TrustConfig, run_checks
from circuits.trust.checks import under_attack
from circuits.trust.workbench import Bench
from circuits.zoo import load
from tasks import load_task, other_prompts

A, B = Site(0, "attn_in"), Site(0, "mlp_in")


@pytest.fixture(scope="module")
def leaning() -> Handmade:
    """The quote model with two neurons more, whose outputs cancel: either alone would turn answers around."""
    made = quotes(1)
    model, circuit = made.model, made.circuit
    ins = model.linear(0, "W_in").weight
    outs = model.linear(0, "W_out").weight
    with torch.no_grad():
        read = next(node.index for node in circuit.nodes if node.site == "mlp_in")
        wrote = next(node.index for node in circuit.nodes if node.site == "mlp_out")
        used = {node.index for node in circuit.nodes if node.site == "mlp_neuron"}
        free = [i for i in range(ins.shape[1]) if i not in used][:2]
        for neuron, sign in zip(free, (1.0, -1.0), strict=True):
            ins[:, neuron], outs[neuron] = 0.0, 0.0
            model.linear(0, "W_in").bias[neuron] = 0.0
            ins[read, neuron], outs[neuron, wrote] = 4.0, 4.0 * sign
    return replace(made, circuit=replace(circuit, model_hash=model.fingerprint()))


def judge(made: Handmade, **changes: object) -> Evaluator:
    criterion = replace(made.circuit.criterion, n_eval=32, n_test=32, **changes)
    return Evaluator(made.model, made.task, criterion, dict(made.circuit.values))


def test_the_worst_shares_of_a_known_loss_are_found() -> None:
    slopes = {A: torch.tensor([1.0, -2.0, 3.0, -4.0]), B: torch.tensor([[0.5, -0.5]])}
    kept = {A: torch.tensor([0.0, 0.0, 0.0, 1.0]), B: torch.zeros(1, 2)}
    found = worst(kept, lambda shares: sum((shares[k] * slopes[k]).sum() for k in kept))
    assert found.loss == pytest.approx(1.0 + 3.0 - 4.0 + 0.5)  # what is kept stays whole, whatever it costs
    assert found.shares[A].tolist() == [1.0, 0.0, 1.0, 1.0]


def test_longer_attacks_never_find_less_and_mean_ablation_is_among_them() -> None:
    kept = {A: torch.zeros(4)}

    def loss(shares: dict) -> torch.Tensor:
        return -shares[A].square().sum() + 2.0  # best left where it is

    assert worst(kept, loss, Attack(starts=1, steps=1)).loss == pytest.approx(2.0)
    assert worst(kept, loss, Attack(starts=3)).loss >= worst(kept, loss, Attack(starts=1)).loss


def test_random_shares_leave_what_is_kept_and_repeat() -> None:
    kept = {A: torch.tensor([1.0, 0.0, 0.0])}
    first, again = (drawn(kept, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first[A], again[A])
    assert first[A][0] == 1
    assert bool((first[A][1:] < 1).all())


def test_a_circuit_that_leans_on_what_cancels_outside_is_found_out(leaning: Handmade) -> None:
    ev, parts = judge(leaning), (leaning.circuit.nodes, leaning.circuit.edges)
    assert ev.score(*parts).loss < 0.04  # at the mean, where both are still, nothing shows
    assert ev.under_attack(ev, *parts).loss > 0.5
    sound = quotes(1)
    ours = judge(sound)
    assert ours.under_attack(ours, sound.circuit.nodes, sound.circuit.edges).loss < 0.04


def test_the_criterion_decides_whether_the_attack_counts(leaning: Handmade) -> None:
    parts = (leaning.circuit.nodes, leaning.circuit.edges)
    assert judge(leaning).solved(*parts) is not None
    hostile = judge(leaning, ablation="adversarial")
    assert hostile.solved(*parts) is None
    found = hostile.under_attack(hostile, *parts)
    assert hostile.score(*parts) == found  # worse than the plain score in both
    drawn_ones = judge(leaning, ablation="stochastic")
    assert drawn_ones.score(*parts).loss > judge(leaning).score(*parts).loss


def test_where_nothing_is_left_out_there_is_nothing_to_attack(leaning: Handmade) -> None:
    ev = judge(leaning)
    every = ev.every
    assert ev.under_attack(ev, every, "all") == ev.score(every, "all")


def test_the_report_says_what_the_attack_found(leaning: Handmade) -> None:
    config = TrustConfig(n_pairs=16)
    note = run_checks(Bench(leaning.model, leaning.circuit, leaning.task, config), (under_attack,))
    assert [entry.verdict for entry in note] == ["note", "note"]
    assert note[0].value > 0.5 > note[0].baseline
    asked = replace(leaning.circuit, criterion=replace(leaning.circuit.criterion, ablation="adversarial"))
    failed = run_checks(Bench(leaning.model, asked, leaning.task, config), (under_attack,))
    assert [entry.verdict for entry in failed] == ["fail", "note"]


@pytest.mark.slow
def test_pruning_against_the_adversary_takes_in_what_cancels(leaning: Handmade) -> None:
    config = PruneConfig(ablation="adversarial", starts=1, steps=60, n_eval=16, n_test=32, n_mean=64)
    found = prune(leaning.model, leaning.task, config, corpus=leaning.corpus, progress=False)
    assert found.metrics["one_minimal"]
    assert found.metrics["adversarial_loss"] < 0.1
    neurons = {node.index for node in found.nodes if node.site == "mlp_neuron"}
    assert len(neurons) == 3


def test_margin_error_by_hand() -> None:
    margin, reference = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])
    assert float(margin_error(margin, reference)) == pytest.approx(0.25)
    assert float(margin_error(torch.zeros(2), reference)) == 1.0
    assert float(margin_error(margin, reference, power=8.0)) == pytest.approx(0.125)


def test_order_within_an_answer_is_not_that_between_answers() -> None:
    reference = torch.cat([torch.linspace(1, 3, 10), torch.linspace(4, 6, 10)])
    answer = torch.tensor([0] * 10 + [1] * 10)
    backwards = torch.cat([torch.linspace(3, 1, 10), torch.linspace(6, 4, 10)])
    assert margin_correlations(backwards, reference, answer) == pytest.approx({0: -1.0, 1: -1.0}, abs=1e-6)
    assert margin_correlations(reference.clone(), reference, answer) == pytest.approx(
        {0: 1.0, 1: 1.0}, abs=1e-6
    )
    assert margin_correlations(answer.float(), reference, answer) == {0: 0.0, 1: 0.0}
    flat = torch.where(answer == 0, reference, torch.tensor(5.0))
    assert set(margin_correlations(reference, flat, answer)) == {
        0
    }  # where the model has no order there is none to have


def test_order_over_all_answers_takes_off_what_each_is_on_average() -> None:
    reference = torch.cat([torch.linspace(1, 3, 10), torch.linspace(4, 4.2, 10)])
    answer = torch.tensor([0] * 10 + [1] * 10)
    assert margin_correlation(reference + 5 * answer, reference, answer) == pytest.approx(1.0)
    assert margin_correlation(5.0 * answer, reference, answer) == 0.0
    # An answer whose prompts the model is equally sure of has little to say, and says it without a jump.
    half = torch.where(answer == 0, reference, -reference)
    assert 0.95 < margin_correlation(half, reference, answer) < 1.0
    flat = torch.where(answer == 0, 2.0, 5.0)
    assert math.isnan(margin_correlation(reference, flat, answer))


def test_disorder_is_what_the_correlation_lacks_and_has_a_slope() -> None:
    generator = torch.Generator().manual_seed(0)
    reference, noise = (torch.randn(40, generator=generator) for _ in range(2))
    answer = torch.arange(40) % 3
    margin = (reference + 5 * answer + noise).requires_grad_()
    lost = disorder(margin, reference, answer)
    assert lost.item() == pytest.approx(1 - margin_correlation(margin.detach(), reference, answer), abs=1e-6)
    (slope,) = torch.autograd.grad(lost, margin)
    assert disorder(margin - 0.1 * slope / slope.norm(), reference, answer).item() < lost.item()
    constant = answer.float().requires_grad_()
    lost = disorder(constant, reference, answer)
    assert lost.item() == 1.0
    assert torch.autograd.grad(lost, constant)[0].isfinite().all()


def test_a_criterion_asks_for_the_order() -> None:
    """A part that meets the other targets does not pass while it is equally sure of every prompt of an answer."""
    task, loose = load_task("quotes"), dict(target_loss=99.0, target_accuracy=0.0, n_eval=32)
    model = load("mini-python").model
    values = {site: torch.zeros(width) for site, width in model.widths.items()}
    unordered, ordered = (
        Evaluator(model, task, Criterion.of(task, target_order=order, **loose), values)
        for order in (0.0, 0.8)
    )
    assert unordered.solved([], []) is not None
    assert ordered.solved([], []) is None
    assert ordered.solved(ordered.every, "all") is not None
    assert ordered.criterion.aim_order == pytest.approx(0.85), "stricter where choices are made"
    assert Criterion.of(task, objective="task").aim_order == 0.0, (
        "the published objective asks for signs alone"
    )


def test_minimal_ends_where_no_single_part_can_go() -> None:
    """Any part may go once another has: what could not go at first is tried again."""
    from circuits.circuit.score import Score

    nodes = [Node(0, "attn_in", i) for i in range(6)]

    def solved(kept: list[Node]) -> Score | None:
        rest = {node.index for node in kept}
        # 0 is needed while 5 is there; 1 and 2 stand in for each other; 3 is always needed
        good = 3 in rest and (rest & {1, 2}) and (0 in rest or 5 not in rest)
        return Score(0.1 * len(rest), 1.0) if good else None

    left = minimal(nodes, solved, lambda n: None)
    assert all(solved([n for n in left if n != node]) is None for node in left)
    assert len(left) == 2


def test_scope_says_where_else_a_circuit_holds() -> None:
    assert set(other_prompts(load_task("quotes"))) == {"an earlier line", "two earlier lines"}
    assert other_prompts(load_task("quotes", context_lines=1)) == {}
    zoo = load("mini-python")
    values = mean_values(zoo.model, zoo.corpus.val[:640].view(16, 40))
    every = all_nodes(zoo.model.widths)
    whole = scope(zoo.model, values, every, "all", load_task("quotes"))
    assert all(h.margin_error == 0 and h.accuracy == h.model_accuracy for h in whole.values())
    assert (
        whole["an earlier line"].model_accuracy > 0.9
    )  # prompts that do not fit the model's 40 tokens are left out
    nothing = scope(zoo.model, values, [], [], load_task("quotes"))
    assert all(holds.margin_error > 0.5 for holds in nothing.values())
