"""Facts that count together, parts that two tasks share, decoys on the circuit's channels: truths, and wrong ones."""

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch

from circuits.circuit.circuit import Circuit
from circuits.circuit.compare import intersection
from circuits.circuit.evaluator import Evaluator
from circuits.circuit.nodes import AllBut, Edge, Node
from circuits.circuit.parts import edges_between
from circuits.circuit.score import task_score
from circuits.handmade import HARD, METHODS, Handmade, build_hard, proof, quotes, rank_metrics, recover
from circuits.handmade.board import Board, nodes_of
from circuits.handmade.hard import Laid
from circuits.handmade.rankings import _of_ends
from circuits.handmade.rules import opened_task, xor_task
from circuits.pruning import PruneConfig, Rivals
from circuits.ranking import rank

NEW = ("xor", "shared", "superposed")
QUICK = PruneConfig(starts=1, steps=60, n_eval=32, n_test=32, n_mean=128)


@cache
def hard(name: str) -> Handmade:
    return build_hard(name, 1)


def wholes(name: str) -> list[Handmade]:
    """A model with each of its tasks as the first."""
    made = hard(name)
    return [made] if made.other is None else [made, made.turned]


@cache
def laid(name: str) -> Laid:
    made = hard(name)
    return HARD[name].lay(Board(made.model.config, made.task.tokenizer))


def judge_of(made: Handmade) -> Evaluator:
    return Evaluator(
        made.model, made.task, replace(made.circuit.criterion, n_eval=32), dict(made.circuit.values)
    )


def spare(made: Handmade, nodes: Iterable[Node]) -> list[Node | Edge] | None:
    """What can go of these nodes and all weights between them; None where they are not enough."""
    judge, kept = judge_of(made), sorted(nodes)
    edges = edges_between(made.model, kept)
    return judge.spare(kept, edges) if judge.solved(kept, edges) else None


def change(made: Handmade, nodes: Iterable[Node]) -> torch.Tensor:
    """How far each margin of the whole model moves when these nodes are ablated."""
    judge = judge_of(made)
    return (judge.margins(AllBut(judge.widths, list(nodes)), "all") - judge.full_margins).abs()


def having(circuit: Circuit, nodes: Iterable[Node]) -> Circuit:
    """Of these nodes, and the edges among them that the circuit has."""
    kept = tuple(sorted(nodes))
    edges = tuple(e for e in circuit.edges if e.source in kept and e.target in kept)
    return replace(circuit, nodes=kept, edges=edges, io_edges=())


@pytest.mark.parametrize("name", NEW)
def test_the_model_does_its_tasks_and_its_truth_is_enough_and_1_minimal(name: str) -> None:
    for made in wholes(name):
        assert task_score(made.model, made.task.batch(96, split="test", seed=0)).loss < 0.01
        judge = judge_of(made)
        assert judge.criterion.objective == "margins"
        assert judge.solved(made.circuit.nodes, made.circuit.edges)
        assert judge.spare(made.circuit.nodes, made.circuit.edges) == []
        for node in made.core:
            assert not judge.meets(judge.score(AllBut(judge.widths, [node]), "all")), node


@pytest.mark.parametrize("name", NEW)
def test_a_truth_that_lacks_a_node_or_has_one_too_many_is_found_out(name: str) -> None:
    for made in wholes(name):
        nodes = set(made.circuit.nodes)
        judge = judge_of(made)
        decoy = max(node for node in judge.every if node not in nodes and node.site == "mlp_neuron")
        assert spare(made, nodes - {min(nodes)}) is None
        assert decoy in (spare(made, nodes | {decoy}) or [])


def test_xor_holds_one_fact_against_the_other() -> None:
    task = xor_task()
    answers = {(a, b): task.solve(f"k{a}d{b}q=") for a, b in product("'\"", "+-")}
    assert answers == {("'", "+"): "y", ("'", "-"): "n", ('"', "+"): "n", ('"', "-"): "y"}
    batch = task.batch(200, split="test", seed=0)
    text = [task.tokenizer.decode(row.tolist()) for row in batch.clean]
    yes = batch.answer == task.tokenizer.id("y")
    for mark in "'+":
        have = torch.tensor([mark in prompt for prompt in text])
        assert abs(float(yes[have].float().mean()) - 0.5) < 0.15


def test_the_prompts_of_a_pair_differ_in_one_mark_that_decides() -> None:
    for task in (xor_task(), opened_task()):
        batch = task.batch(50, split="val", seed=1)
        for clean, corrupt, answer in zip(batch.clean, batch.corrupt, batch.answer, strict=True):
            assert int((clean != corrupt).sum()) == 1
            prompt = task.tokenizer.decode(clean.tolist()).rstrip("\n")
            assert task.solve(prompt) == task.tokenizer.decode([int(answer)])


def test_neither_fact_alone_says_anything_in_xor() -> None:
    made = hard("xor")
    judge, head = judge_of(made), made.model.config.d_head
    for first in (0, head):
        kept = [n for n in made.circuit.nodes if n.site not in ("attn_k", "attn_v") or n.index != first]
        score = judge.score(kept, edges_between(made.model, kept))
        assert 0.3 < score.accuracy < 0.7
        assert score.loss > 0.9


def test_two_tasks_share_just_the_head() -> None:
    made = hard("shared")
    assert made.other is not None
    common = intersection(made.circuit, made.other)
    assert [str(node) for node in common.nodes] == [
        *("0.attn_in.1", "0.attn_in.2", "0.attn_k.0", "0.attn_out.3", "0.attn_v.0", "0.mlp_in.3")
    ]
    assert len(common.edges) == 3
    assert (made.circuit.n_nodes, made.other.n_nodes) == (8, 15)
    assert made.turned.turned.circuit.nodes == made.circuit.nodes
    with pytest.raises(ValueError, match="shares its model with no task of a known circuit"):
        _ = quotes(1).turned


@pytest.mark.slow
def test_what_two_tasks_share_is_recovered_and_a_truth_declared_wrong_is_found_out() -> None:
    made = hard("shared")
    assert made.other is not None
    wrong = replace(made, other=having(made.other, made.other.nodes[1:]))
    result = recover(wrong, 1, QUICK)
    assert not result.exact
    assert result.missing == result.extra == []
    assert result.shared is not None
    assert result.shared.second.circuit is not None
    assert result.shared.second.circuit.nodes == made.other.nodes
    assert result.shared.second.extra[0] == str(made.other.nodes[0])
    assert result.shared.nodes == intersection(made.circuit, made.other).nodes
    assert result.shared.nodes != result.shared.true


def test_superposed_decoys_move_margins_as_far_as_the_weakest_node_and_not_together() -> None:
    made = hard("superposed")
    weakest = min(float(change(made, [node]).mean()) for node in made.circuit.nodes)
    heads, neurons, rare = laid("superposed").traps
    for values, share in ((_at(heads, "attn_v"), 1.0), (_at(neurons, "mlp_neuron"), 0.5)):
        alone = [change(made, [node]) for node in values]
        assert all(float(one.max()) > share * weakest for one in alone)
        assert float(change(made, values).max()) < 0.05 * weakest
    silent = change(made, _at(rare, "attn_v"))
    assert float(silent.max()) > 0.9 * weakest
    assert float((silent > weakest / 2).float().mean()) < 0.4
    assert float(silent.median()) < 0.2 * weakest


def _at(edges: Iterable[Edge], site: str) -> list[Node]:
    return [node for node in nodes_of(edges) if node.site == site]


def test_two_neurons_that_cancel_may_stay_in_a_1_minimal_circuit_that_is_not_the_smallest() -> None:
    """Fed by nothing that is kept, both shift the margin, one up and one down: whether one can go is a near thing."""
    made = build_hard("superposed", 0)
    pair = _at(laid("superposed").traps[1], "mlp_neuron")
    for nodes in (made.circuit.nodes, sorted((*made.circuit.nodes, *pair))):
        judge = Evaluator(
            made.model, made.task, replace(made.circuit.criterion, n_eval=256), dict(made.circuit.values)
        )
        assert judge.spare(nodes, edges_between(made.model, list(nodes))) == []


def test_of_two_heads_that_cancel_none_can_go_but_what_both_read_can() -> None:
    made = hard("superposed")
    heads, _, rare = laid("superposed").traps
    left = spare(made, {*made.circuit.nodes, *nodes_of(heads)})
    assert left is not None
    assert not {*_at(heads, "attn_v"), *_at(heads, "attn_k")} & set(left)
    assert set(left) & set(_at(heads, "attn_in"))
    assert set(_at(rare, "attn_v")) <= set(spare(made, {*made.circuit.nodes, *nodes_of(rare)}) or [])


@pytest.mark.slow
def test_pruning_drops_two_that_cancel() -> None:
    made = build_hard("superposed", 0)
    result = recover(made, 0, PruneConfig(starts=1))
    assert result.exact, result


@pytest.mark.slow
def test_single_ablation_takes_a_pair_that_cancels_for_parts() -> None:
    found = {
        name: rank_metrics(METHODS["single ablation"](made.model, made.task), made.circuit)["precision"]
        for name, made in ((name, hard(name)) for name in NEW)
    }
    assert found["superposed"] < 1
    assert found["xor"] == found["shared"] == 1


def rivals_of(idle: bool) -> Rivals:
    """A circuit with two nodes that are no core, and a rival: what is left of it, or that with a node of its own."""
    made = hard("superposed")
    pair = _at(laid("superposed").traps[1], "mlp_neuron")
    core, every = made.circuit.nodes, list(judge_of(made).every)
    own = [] if idle else [next(n for n in every if n not in core and n not in pair)]
    return Rivals(
        circuit=replace(made.circuit, nodes=tuple(sorted((*core, *pair)))),
        core=core,
        rival=replace(made.circuit, nodes=tuple(sorted((*core, *own)))),
        loss_without=None,
    )


def test_nodes_that_do_nothing_together_are_idle_and_no_double() -> None:
    told = rivals_of(idle=True)
    assert told.situation == "unique"
    assert len(told.idle) == 2
    assert told.verdict.startswith(
        "Unique: the model needs each of 10 nodes, and they are enough; the other 2"
    )
    double = rivals_of(idle=False)
    assert double.situation == "redundant"
    assert double.idle == ()


def test_a_nodes_share_of_edges_is_what_it_reads_and_writes() -> None:
    made = hard("xor")
    by_edges = rank(made.model, made.task, method="EAP-IG")
    scores = _of_ends(made.model, by_edges).scores
    total = sum(float(matrix.clamp(min=0).sum()) for matrix in by_edges.scores.values())
    assert sum(float(own.sum()) for own in scores.values()) == pytest.approx(2 * total, rel=1e-4)
    metrics = rank_metrics(METHODS["EAP-IG"](made.model, made.task), made.circuit)
    assert metrics["auroc"] > 0.8


def run(**changed: object) -> dict[str, object]:
    """One run of the proof."""
    second = {
        "missing": [],
        "extra": [],
        "situation": "unique",
        "core_right": True,
        "shared_nodes": ["0.attn_k.0", "0.attn_v.0"],
        "true_shared_nodes": ["0.attn_k.0", "0.attn_v.0"],
    }
    plain = {
        **{"seed": 1, "exact": True, "missing": [], "extra": [], "situation": "unique", "core_right": True},
        **{"true_situation": "unique", "n_nodes": 8, "n_edges": 5, "n_nodes_model": 240},
        **{"seconds_prune": 1.0, "methods": {"random": {"auroc": 0.5}}, "second": second},
    }
    return {**plain, **changed, "second": {**second, **changed.get("second", {})}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ({}, (1, 1, 1, 2)),
        ({"exact": False, "extra": ["0.attn_v.9"]}, (0, 1, 1, 2)),
        ({"exact": False, "situation": "redundant"}, (0, 0, 1, 2)),
        ({"exact": False, "second": {"situation": "redundant"}}, (0, 0, 1, 2)),
        ({"exact": False, "core_right": False}, (0, 1, 0, 2)),
        ({"exact": False, "second": {"core_right": False}}, (0, 1, 0, 2)),
        ({"exact": False, "second": {"shared_nodes": ["0.attn_k.0", "0.attn_k.1"]}}, (0, 1, 1, 1)),
    ],
)
def test_the_proof_counts_what_each_run_missed(
    changed: dict[str, object], counts: tuple[int, int, int, int]
) -> None:
    told = proof._summary([run(**changed)])
    found = (told["recovered"], told["situations_named"], told["cores_right"], told["shared"][0]["both"])
    assert found == counts
    assert len(told["misses"]) == 1 - counts[0]
