"""Pruning on a model whose circuit is known, and its errors."""

import math
import sys

import jaxtyping
import pytest
import torch
from quote_model import CORPUS, TRUE_NODES, quote_closer

from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import run_circuit
from circuits.circuit.nodes import Edge, IOEdge, Node
from circuits.circuit.parts import edges_between, io_edges
from circuits.circuit.score import (
    Score,
    fitted_scale,
    margins,
    score_against,
    score_margins,
    task_score,
    two_way_kl,
    two_way_loss,
)
from circuits.model.compute import frozen
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer
from circuits.pruning.config import PruneConfig
from circuits.pruning.learn import _prompts
from circuits.pruning.minimal import FINEST, minimal, thinned
from circuits.pruning.procedure import prune
from circuits.pruning.search import Search
from circuits.zoo import load
from tasks import load_task


@pytest.fixture(scope="module")
def found() -> tuple[SparseTransformer, Circuit]:
    model = quote_closer()
    config = PruneConfig(starts=2, steps=60, n_eval=32, n_test=200, n_mean=64, calibrate=False)
    return model, prune(model, load_task("quotes"), config, corpus=CORPUS, progress=False)


def test_exactly_the_circuit_that_was_built(found):
    _, circuit = found
    assert circuit.nodes == tuple(sorted(TRUE_NODES))
    a, b, k, v, o = TRUE_NODES
    assert circuit.edges == tuple(sorted([Edge(a, k, 8.0), Edge(b, v, 2.0), Edge(v, o, 4.0)]))
    assert IOEdge("unembed", "'", o, 4.0) in circuit.io_edges
    assert IOEdge("embed", '"', b, -4.0) in circuit.io_edges
    assert circuit.metrics["one_minimal"] is True
    assert circuit.metrics["task_loss"] <= 0.15
    assert circuit.metrics["task_accuracy"] == 1.0


def test_its_score_can_be_measured_again(found, tmp_path):
    model, circuit = found
    again = Circuit.load(circuit.save(tmp_path / "c.json"))
    targets = load_task("quotes").batch(200, split="test", seed=0).tokens_and_targets()
    with torch.no_grad():
        score = score_margins(margins(run_circuit(model, again, targets.tokens), targets))
    assert score.loss == pytest.approx(circuit.metrics["task_loss"], abs=1e-6)


def test_effects_are_what_leaving_the_node_out_costs(found):
    _, circuit = found
    assert all(facts.effect > 0 for facts in circuit.facts.values())
    assert set(circuit.facts) == set(circuit.nodes)


def test_the_model_is_left_as_it_was(found):
    model, _ = found
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


@pytest.mark.slow
def test_same_seed_same_circuit(found):
    model, circuit = found
    config = PruneConfig(starts=2, steps=60, n_eval=32, n_test=200, n_mean=64, calibrate=False)
    again = prune(model, load_task("quotes"), config, corpus=CORPUS, progress=False)
    assert again.nodes == circuit.nodes
    assert again.metrics["history"] == circuit.metrics["history"]


def test_edges_between_counts_weights_and_score_pairs():
    model = quote_closer()
    nodes = [*TRUE_NODES, Node(0, "attn_q", 1)]
    edges = edges_between(model, nodes)
    assert Edge(Node(0, "attn_k", 1), Node(0, "attn_q", 1), 0.5) in edges
    assert len(edges) == 4
    batch = load_task("quotes").batch(4, split="val", seed=0)
    assert {e.token for e in io_edges(model, nodes, batch, CORPUS.tokenizer)} == {"'", '"'}


def test_a_task_the_model_cannot_do_is_refused_at_once():
    model = SparseTransformer(quote_closer().config, seed=0)
    with pytest.raises(
        ValueError, match=r"the whole model's loss on 'quotes' is .* expected at most target_loss = 0.15"
    ):
        prune(model, load_task("quotes"), PruneConfig(steps=10**6), corpus=CORPUS, progress=False)


def test_a_task_of_another_vocabulary_or_length_is_refused():
    small = SparseTransformer(ModelConfig(d_vocab=7, d_model=8, n_heads=1, d_head=4, d_mlp=8))
    with pytest.raises(ValueError, match="has a vocabulary of 50 tokens, the model one of 7"):
        prune(small, load_task("quotes"), progress=False)
    short = SparseTransformer(ModelConfig(d_vocab=50, d_model=8, n_heads=1, d_head=4, d_mlp=8, n_ctx=4))
    with pytest.raises(ValueError, match="the longest prompt of 'quotes' has 15 tokens; expected at most"):
        prune(short, load_task("quotes"), progress=False)


def test_config_errors():
    with pytest.raises(ValueError, match="target_loss: got 0.0; expected a positive number"):
        PruneConfig(target_loss=0.0)
    with pytest.raises(ValueError, match=r"PruneConfig: unknown key \['penalti'\]"):
        PruneConfig.from_json({"penalti": 1})
    assert PruneConfig.from_json(PruneConfig().to_json()) == PruneConfig()


def test_the_score_by_hand():
    model = quote_closer()
    batch = load_task("quotes").batch(64, split="val", seed=0)
    score = task_score(model, batch)
    assert score.accuracy == 1.0
    assert 0 < score.loss < 0.05


def test_calibration_finds_the_best_factor_within_its_bounds():
    margin = torch.tensor([0.3, 0.5, -0.1, 0.4])
    scale = fitted_scale(margin)
    losses = {s: float(two_way_loss(margin * s)) for s in (scale, scale * 1.02, scale / 1.02, 1.0)}
    assert min(losses, key=losses.__getitem__) == scale
    assert fitted_scale(torch.tensor([0.2, 0.3])) == pytest.approx(10, rel=1e-3)  # separable: the bound
    assert fitted_scale(torch.tensor([-0.2, -0.3])) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.slow
def test_edge_gates_lead_to_the_same_circuit(found):
    model, circuit = found
    config = PruneConfig(starts=1, steps=60, n_eval=32, n_test=64, n_mean=64, edge_gates=0, calibrate=False)
    gated = prune(model, load_task("quotes"), config, corpus=CORPUS, progress=False)
    assert gated.edges == circuit.edges


def test_gates_that_close_too_fast_learn_again_at_a_weaker_penalty():
    shipped = load("quotes-128")
    few = dict(starts=1, steps=40, n_eval=64, n_mean=64, batch_size=16, prune_edges=False)

    def open_at(penalty: float) -> tuple[int, list[dict[str, float]]]:
        with frozen(shipped.model):
            search = Search(shipped.model, shipped.task, PruneConfig(penalty=penalty, **few), shipped.corpus)
            return len(search.nodes_by_gates(0, lambda **_: None)), search.history

    n_open, history = open_at(0.1)
    assert n_open < sum(shipped.model.widths.values())
    assert open_at(1.0) == (n_open, history), "all gates close at 1; the second try is at 0.1"


def test_faithful_pruning_matches_the_model_where_the_model_is_wrong():
    """A model that closes every quote with the other one: hopeless at the task, and explained all the same."""
    model = quote_closer()
    model.W_U.data.neg_()
    config = PruneConfig(starts=1, steps=60, n_eval=32, n_test=64, n_mean=64, objective="faithful")
    circuit = prune(model, load_task("quotes"), config, corpus=CORPUS, progress=False)
    assert circuit.nodes == tuple(sorted(TRUE_NODES))
    assert circuit.metrics["full_task_accuracy"] == 0.0
    assert circuit.metrics["kl_to_model"] <= 0.15
    assert circuit.metrics["agreement_with_model"] == 1.0


def test_an_unknown_objective_is_refused():
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(
            ValueError, match="objective: got 'kind'; expected 'margins', 'task' or 'faithful'"
        ):
            PruneConfig(objective="kind")
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_kl_by_hand():
    margin, reference = torch.tensor([0.0, 2.0]), torch.tensor([math.log(3), 2.0])
    by_hand = (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)) / 2
    assert float(two_way_kl(margin, reference)) == pytest.approx(by_hand, rel=1e-5)
    assert score_against(margin, reference) == pytest.approx((by_hand, 0.5), rel=1e-5)
    assert float(two_way_kl(margin, None)) == pytest.approx(float(two_way_loss(margin)))


def test_thinning_by_rank_keeps_what_is_needed():
    every = [Node(0, "mlp_in", i) for i in range(300)]
    needed = {every[i] for i in (3, 40, 170)}
    tried = []

    def solved(parts):
        tried.append(len(parts))
        return Score(0.1, 1.0) if needed <= set(parts) else None

    ranked = sorted(every, key=lambda node: (node not in needed, node))
    few = thinned(ranked, solved)
    assert needed <= set(few)
    assert len(few) <= len(needed) + FINEST
    assert len(tried) < 30
    assert set(minimal(every, solved, lambda n: None)) == needed


@pytest.mark.slow
def test_a_search_tries_the_config_first_and_keeps_the_smallest(found):
    model, _ = found
    config = PruneConfig(steps=40, n_eval=16, n_test=16, n_mean=16, calibrate=False)
    best = prune(model, load_task("quotes"), config, corpus=CORPUS, search=2, progress=False)
    tried = best.metrics["search"]
    assert len(tried) == 2
    assert (tried[0]["lr"], tried[0]["penalty"]) == (config.lr, config.penalty)
    assert best.n_nodes + best.n_edges == min(one["n_nodes"] + one["n_edges"] for one in tried)
    with pytest.raises(ValueError, match="search: got 0; expected at least 1 pruning run"):
        prune(model, load_task("quotes"), config, corpus=CORPUS, search=0, progress=False)


def test_without_optuna_a_search_says_what_to_install(found, monkeypatch):
    monkeypatch.delitem(sys.modules, "circuits.pruning.tune", raising=False)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        ValueError, match=r'search: it needs Optuna.* `pip install "sparse-circuits\[search\]"`'
    ):
        prune(found[0], load_task("quotes"), PruneConfig(), corpus=CORPUS, search=2, progress=False)


def test_few_positions_and_shared_tokens_are_named_and_many_are_counted():
    model, node = quote_closer(), TRUE_NODES[0]
    batch = load_task("quotes").batch(4, split="val", seed=0)
    name = CORPUS.tokenizer.token
    others = [t for t in range(CORPUS.tokenizer.d_vocab) if name(t) not in ("'", '"')]
    greatest = float(model.W_E.detach().abs().max())
    with torch.no_grad():
        model.W_pos[3, node.index] = 0.7
        model.W_E[others[0], node.index] = -0.5 * greatest
        model.W_E[others[1], node.index] = 0.005 * greatest
    found = {e for e in io_edges(model, [node], batch, CORPUS.tokenizer) if e.kind != "embed"}
    expected = {("position", "position 3"): 0.7, ("shared", name(others[0])): -0.5 * greatest}
    assert {(e.kind, e.token): e.weight for e in found} == pytest.approx(expected)
    with torch.no_grad():
        model.W_E[others[:5], node.index] = -0.5 * greatest
        model.W_pos[:4, node.index] = 0.7
    found = {e for e in io_edges(model, [node], batch, CORPUS.tokenizer) if e.kind != "embed"}
    assert {(e.kind, e.token) for e in found} == {("several", "5 other tokens"), ("several", "4 positions")}


def test_a_step_reads_both_prompts_of_a_pair_or_one_with_its_own_answer():
    pool = load_task("quotes").batch(6, split="train", seed=0)
    every, rows = pool.tokens_and_targets(), torch.tensor([4, 0, 0, 2])
    seen = set()
    for prompts, n in (("both", 8), ("either", 4)):
        sides = torch.Generator().manual_seed(0)
        for _ in range(5):
            targets, places = _prompts(pool, rows, PruneConfig(prompts=prompts), sides)
            assert len(places) == n
            for part, whole in zip(targets, every, strict=True):
                assert torch.equal(part, whole[places])
            assert {int(place) % 6 for place in places} == {0, 2, 4}
            seen |= {int(place) // 6 for place in places if prompts == "either"}
    assert seen == {0, 1}
