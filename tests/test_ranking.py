"""Rankings of nodes and edges: each score by its own definition, one evaluator for all, ours and wrapped models."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from induction_model import bridge

from circuits.circuit.ablation import mean_values
from circuits.circuit.evaluator import MaskedModel
from circuits.circuit.masked import run_masked
from circuits.circuit.nodes import Node
from circuits.circuit.score import margins, two_way_loss
from circuits.handmade import MODELS
from circuits.interop import LensSubject
from circuits.model.config import ModelConfig
from circuits.model.sites import Site, WeightAt
from circuits.model.transformer import SparseTransformer
from circuits.plots.rankings import rankings_figure
from circuits.ranking import METHODS, Curve, RankConfig, Ranking, curve, curves, rank
from circuits.trust.yardsticks import SHARES
from tasks import Batch
from tasks.base import Targets
from tasks.tokenizer import WordTokenizer

FEW = RankConfig(n_pairs=4, n_mean=8, steps=6)
NODE_METHODS = sorted(name for name, (kind, _) in METHODS.items() if kind == "nodes")
EDGE_METHODS = sorted(set(METHODS) - set(NODE_METHODS))
OF_ANY = sorted(set(METHODS) - {"weight magnitude"})


@dataclass(frozen=True, kw_only=True)
class Copy:
    """Say the first word again."""

    name: str = "first"
    n_ctx: int = 5
    n_words: int = 50

    @property
    def tokenizer(self):
        return WordTokenizer(name="w", words=tuple(f"w{i}" for i in range(self.n_words)))

    def solve(self, text):
        return text.split()[0]

    def batch(self, n, *, split, seed):
        generator = torch.Generator().manual_seed(100 * len(split) + seed)
        clean = torch.randint(4, self.n_words, (n, 5), generator=generator)
        corrupt = clean.clone()
        clean[:, 0], corrupt[:, 0] = 2, 3
        ones = torch.ones(n, dtype=torch.int64)
        return Batch(clean=clean, corrupt=corrupt, answer=2 * ones, foil=3 * ones, position=4 * ones)


def ours() -> SparseTransformer:
    config = ModelConfig(
        d_vocab=9, n_layers=2, d_model=6, n_heads=2, d_head=2, d_mlp=5, n_ctx=5, topk_fraction=None
    )
    model = SparseTransformer(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))
        for _, linear in model.linears():
            linear.weight.mul_(torch.rand(linear.weight.shape, generator=generator) < 0.5)
    return model.eval()


TASK = Copy(n_words=9)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def wrapped(request) -> LensSubject:
    model = bridge(request.param).eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)
    return LensSubject(model)


@pytest.mark.parametrize("method", NODE_METHODS)
def test_every_method_ranks_every_node_once(method):
    model = ours()
    ranking = rank(model, TASK, method=method, config=FEW)
    assert {site: len(score) for site, score in ranking.scores.items()} == model.widths
    nodes = ranking.nodes()
    assert len(set(nodes)) == len(nodes) == ranking.n_parts == sum(model.widths.values())
    scores = [float(ranking.scores[node.at][node.index]) for node in nodes]
    assert all(later <= earlier for earlier, later in pairwise(scores))
    kept = ranking.kept(7)
    assert {n for n in nodes if kept[n.at][n.index]} == set(nodes[:7])
    assert sum(int(mask.sum()) for mask in kept.values()) == 7
    with pytest.raises(ValueError, match="kind: got a ranking of nodes"):
        ranking.edges({})


@pytest.mark.parametrize("method", EDGE_METHODS)
def test_every_method_ranks_every_nonzero_weight_once(method):
    model = ours()
    ranking = rank(model, TASK, method=method, config=FEW)
    weights = {at: model.linear(*at).weight.detach() for at in ranking.scores}
    edges = ranking.edges(weights)
    assert len(edges) == ranking.n_parts == sum(int(w.count_nonzero()) for w in weights.values())
    assert all(edge.weight != 0 for edge in edges)
    assert len({(e.source, e.target) for e in edges}) == len(edges)
    kept = ranking.kept(5)
    best = {(e.source, e.target) for e in edges[:5]}
    assert {
        (Node.of(at.source, i), Node.of(at.target, j))
        for at, m in kept.items()
        for i, j in m.nonzero().tolist()
    } == best
    with pytest.raises(ValueError, match="kind: got a ranking of edges"):
        ranking.nodes()


def test_edge_scores_are_first_order_effects_of_corrupting_one_weights_input():
    """By finite differences in float64: a weight whose input moves a little from its clean to its corrupted value."""
    model = ours().double()
    config = RankConfig(n_pairs=1)
    ranking = rank(model, TASK, method="EAP", config=config)
    batch = TASK.batch(1, split="train", seed=0)
    clean = Targets(batch.clean, batch.answer, batch.foil, batch.position)
    for at in (WeightAt(0, "W_V"), WeightAt(1, "W_in"), WeightAt(1, "W_out")):
        inputs = []
        handle = model.linear(*at).register_forward_hook(lambda m, x, y, kept=inputs: kept.append(x[0]))
        with torch.no_grad():
            model(batch.clean)
            model(batch.corrupt)
        handle.remove()
        weight = model.linear(*at).weight.detach()
        for i, j in weight.nonzero()[::5].tolist():
            effect = [
                loss_moved(model, clean, at, (i, j), e * (inputs[1] - inputs[0])[..., i])
                for e in (1e-5, -1e-5)
            ]
            slope = abs(effect[0] - effect[1]) / 2e-5
            assert float(ranking.scores[at][i, j]) == pytest.approx(slope, rel=1e-4, abs=1e-9)
        assert bool((ranking.scores[at].isinf() == (weight == 0)).all())


def loss_moved(model, clean, at, entry, change) -> float:
    """Loss with one column's output moved by what one weight makes of a change [batch, pos] of its input."""
    i, j = entry

    def add(module, x, y):
        y = y.clone()
        y[..., j] += change * module.weight[i, j]
        return y

    handle = model.linear(*at).register_forward_hook(add)
    with torch.no_grad():
        loss = float(two_way_loss(margins(model(clean.tokens), clean)))
    handle.remove()
    return loss


@pytest.mark.slow
def test_activation_patching_and_single_ablation_by_their_definition(wrapped):
    for model, task in ((ours(), TASK), (wrapped, Copy())):
        patched = rank(model, task, method="activation patching", config=FEW)
        ablated = rank(model, task, method="single ablation", config=FEW)
        batch = task.batch(2, split="train", seed=1)
        clean = Targets(batch.clean, batch.answer, batch.foil, batch.position)
        full = margins(model(batch.clean), clean)
        text = task.batch(8, split="train", seed=0)
        means = mean_values(model, text.clean)
        both = batch.tokens_and_targets()
        for site in (Site(0, "mlp_neuron"), Site(1, "attn_k")):
            corrupted = []
            hook = (model.hook_name(site), lambda x, hook, kept=corrupted: kept.append(x.flatten(2)))
            with torch.no_grad(), model.hooks(fwd_hooks=[hook]):
                model(batch.corrupt)
            for i in (0, 3):

                def put(x, hook, i=i, value=corrupted[0]):
                    flat = x.flatten(2).clone()
                    flat[..., i] = value[..., i]
                    return flat.view(x.shape)

                with torch.no_grad(), model.hooks(fwd_hooks=[(model.hook_name(site), put)]):
                    moved = margins(model(batch.clean), clean) - full
                assert float(patched.scores[site][i]) == pytest.approx(float(moved.abs().mean()), abs=1e-5)
                mask = torch.ones(model.widths[site])
                mask[i] = 0
                with torch.no_grad():
                    gone = margins(run_masked(model, both.tokens, {site: mask}, means), both)
                    there = margins(model(both.tokens), both)
                assert float(ablated.scores[site][i]) == pytest.approx(
                    float((gone - there).abs().mean()), abs=1e-5
                )


@pytest.mark.parametrize("method", OF_ANY)
@pytest.mark.slow
def test_wrapped_models_are_ranked_by_what_runs_them(method, wrapped):
    task = Copy()
    ranking = rank(wrapped, task, method=method, config=FEW)
    assert {site: len(score) for site, score in ranking.scores.items()} == dict(wrapped.widths)
    if method != "random":
        assert len({float(s) for score in ranking.scores.values() for s in score}) > 20
    again = rank(wrapped, task, method=method, config=FEW)
    assert all(torch.equal(ranking.scores[site], again.scores[site]) for site in ranking.scores)


def test_a_wrapped_models_gradients_are_those_of_finite_differences(wrapped):
    task = Copy()
    ranking = rank(wrapped, task, method="attribution patching", config=RankConfig(n_pairs=1))
    batch = task.batch(1, split="train", seed=0)
    clean = Targets(batch.clean, batch.answer, batch.foil, batch.position)
    site, seen = Site(1, "mlp_neuron"), []
    hook = (wrapped.hook_name(site), lambda x, hook: seen.append(x))
    with torch.no_grad(), wrapped.hooks(fwd_hooks=[hook]):
        wrapped(batch.clean)
        wrapped(batch.corrupt)
    step = 1e-2
    for i in ranking.scores[site].topk(3).indices.tolist():
        loss = []
        for e in (step, -step):
            moved = seen[0].clone()
            moved[..., i] += e * (seen[1] - seen[0])[..., i]
            put = (wrapped.hook_name(site), lambda x, hook, moved=moved: moved)
            with torch.no_grad(), wrapped.hooks(fwd_hooks=[put]):
                loss.append(float(two_way_loss(margins(wrapped(batch.clean), clean))))
        slope = abs(loss[0] - loss[1]) / (2 * step)
        assert float(ranking.scores[site][i]) == pytest.approx(slope, rel=0.05, abs=1e-4)


def test_a_curve_is_what_the_evaluator_says_of_the_best_parts():
    made = MODELS["copying"](0)
    model, task = made.model, made.task
    ranking = rank(model, task, method="attribution patching")
    found = curve(model, task, ranking, n_pairs=16)
    text = task.batch(256, split="train", seed=0)
    runs = MaskedModel(
        model, mean_values(model, text.clean, lengths=text.lengths), task.batch(16, split="test", seed=0)
    )
    empty, full = (float(runs.margins(nodes, "all").mean()) for nodes in ([], runs.every))
    n = max(1, round(found.shares[4] * ranking.n_parts))
    f = (float(runs.margins(ranking.nodes()[:n], "all").mean()) - empty) / (full - empty)
    assert found.faithfulness[4] == pytest.approx(f, abs=1e-4)
    assert found.faithfulness[-1] == pytest.approx(1.0, abs=1e-4)
    edges = curve(model, task, rank(model, task, method="EAP-IG"), n_pairs=16)
    assert edges.kind == "edges"
    assert edges.faithfulness[-1] == pytest.approx(1.0, abs=1e-4)
    for one in (found, edges):
        assert one.cmd >= 0


@pytest.mark.slow
def test_gates_find_a_known_circuit_and_no_part_of_it_ranks_low():
    """Every node is needed for anything, so that no ranking's curve can rise before the last one is there."""
    made = MODELS["copying"](0)
    config = RankConfig(n_pairs=16)
    ranking = rank(made.model, made.task, method="gates", config=config)
    assert set(ranking.nodes()[: made.circuit.n_nodes]) == set(made.circuit.nodes)
    found = {c.method: c for c in curves(made.model, made.task, ["gates", "EAP-IG", "random"], config=config)}
    assert found["gates"].cpr > 0.9 > found["random"].cpr
    assert found["EAP-IG"].cpr > found["random"].cpr
    assert found["gates"].cmd < 0.1 < found["random"].cmd


def test_what_cannot_be_ranked_is_refused_by_name(wrapped):
    with pytest.raises(ValueError, match="method: got 'acdc'; expected one of"):
        rank(ours(), TASK, method="acdc")
    with pytest.raises(ValueError, match="model: got a LensSubject; .* expected a SparseTransformer"):
        rank(wrapped, Copy(), method="weight magnitude")
    with pytest.raises(ValueError, match="vocabulary of 50 tokens, the model one of 9"):
        rank(ours(), Copy(), method="random")


def test_parts_of_equal_score_keep_their_order():
    ranking = Ranking(
        method="by hand", kind="nodes", scores={Site(0, "attn_q"): torch.tensor([1.0, 2.0, 1.0, 2.0])}
    )
    assert [node.index for node in ranking.nodes()] == [1, 3, 0, 2]


def test_the_figure_has_a_line_for_each_method_and_says_its_areas():
    def made(method, values):
        return Curve(method=method, kind="nodes", shares=SHARES, faithfulness=tuple(values))

    flat, none = made("flat", [1.0] * 10), made("none", [float("nan")] * 10)
    rising = made("rising", [0.0] * 9 + [1.0])
    figure = rankings_figure([none, rising, flat])
    assert [line.name.split()[0] for line in figure.data] == ["flat", "rising", "none"]
    assert "CPR +0.999, CMD +0" in figure.data[0].name
    assert "CPR +0.25, CMD +0.749" in figure.data[1].name
    assert "CPR \u2013" in figure.data[2].name
    assert list(figure.data[1].x) == pytest.approx([100 * share for share in SHARES])
    with pytest.raises(ValueError, match="curves: got none"):
        rankings_figure([])
