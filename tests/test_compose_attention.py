"""Composable attention: equal to the explicit map, causal, exactly plain where its maps are closed."""

import json
from functools import partial

import pytest
import torch

from circuits.composition import (
    ComposePruneConfig,
    compose_gates,
    composition_maps,
    composition_scores,
    folded_circuits,
    head_mixing,
    prune_compositions,
    run_composed,
)
from circuits.model.checkpoint import load_checkpoint, save_checkpoint
from circuits.model.config import ModelConfig
from circuits.model.mixers import Compose, sink_softmax
from circuits.model.mixers.compose import explicit_map, n_parameters
from circuits.model.transformer import SparseTransformer
from circuits.training.config import TrainConfig
from circuits.training.updates import project
from tasks import Batch
from tasks.tokenizer import WordTokenizer

KINDS = ("static", "gate", "qw", "kw", "full")
TOKENS = torch.tensor([[3, 1, 7, 7, 2, 9], [0, 4, 4, 10, 5, 6]])


def model_of(kind: str, *, loud: bool = True, seed: int = 0, **changes) -> SparseTransformer:
    options = dict(d_vocab=11, n_layers=2, d_model=16, n_heads=4, d_head=4, d_mlp=8, n_ctx=8) | changes
    model = SparseTransformer(ModelConfig(attention="compose", compose=kind, **options), seed=seed).eval()
    if loud:  # far from plain attention, so that equalities say something
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "compose" in name:
                    parameter.copy_(torch.randn_like(parameter) * 0.5)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_compose_is_the_einsum_over_the_explicit_map(kind):
    compose = Compose(kind, 16, 4, 2).double()
    for parameter in compose.parameters():
        parameter.data.normal_()
    a, x = torch.randn(2, 4, 5, 5).double(), torch.randn(2, 5, 16).double()
    C = explicit_map(
        4,
        static=compose.static,
        query=None if compose.query is None else compose.query(x),
        key=None if compose.key is None else compose.key(x),
        like=x,
    )
    torch.testing.assert_close(compose(a, x), torch.einsum("bnij,bijnm->bmij", a, C), atol=1e-12, rtol=1e-12)


def test_the_five_branches_by_their_published_equation():
    compose = Compose("full", 16, 4, 2).double()
    for parameter in compose.parameters():
        parameter.data.normal_()
    a, x = torch.randn(1, 4, 3, 3).double(), torch.randn(1, 3, 16).double()
    expected = a.clone()
    for side, positions in ((compose.query, "i"), (compose.key, "j")):
        w = torch.nn.functional.gelu(x @ side.dw1) @ side.qkw
        w = w.view(1, 3, 4, 4)
        w1, w2 = w[:, :, :2], w[:, :, 2:]
        w1 = w1 / (w1.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        hidden = torch.einsum(f"bnij,b{positions}rn->brij", a, w1)
        expected = expected + torch.einsum(f"brij,b{positions}rm->bmij", hidden, w2)
        gate = torch.tanh(x @ side.dd).permute(0, 2, 1)
        expected = expected + a * (gate[:, :, :, None] if positions == "i" else gate[:, :, None, :])
    torch.testing.assert_close(compose(a, x), expected, atol=1e-12, rtol=1e-12)


def test_the_default_has_no_composition_and_the_same_weights():
    plain, composed = model_of("none"), model_of("full", loud=False)
    assert not [name for name, _ in plain.named_parameters() if "compose" in name]
    weights = dict(composed.named_parameters())
    assert all(bool((weights[name] == value).all()) for name, value in plain.named_parameters())
    assert ModelConfig(d_vocab=5).attention == "softmax"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["branches", "maps", "weights"])
def test_closed_compositions_are_plain_attention_exactly(kind, which):
    composed = model_of(kind)
    # Composed heads write their pattern out; so do plain ones when someone looks at it. The fused kernel, which
    # they use otherwise, sums in another order.
    plain, _ = model_of("none").run_with_cache(TOKENS)
    torch.testing.assert_close(plain, model_of("none")(TOKENS))
    if which == "weights":
        for name, parameter in composed.named_parameters():
            if "compose" in name:
                parameter.data.zero_()
        assert bool((composed(TOKENS) == plain).all())
        return
    assert not torch.allclose(composed(TOKENS), plain)
    level = {"branches": "branch", "maps": "edge"}[which]
    masks = {name: torch.zeros(shape) for name, shape in compose_gates(composed, level).items()}
    assert bool((run_composed(composed, TOKENS, masks) == plain).all())


def test_open_gates_change_nothing_and_have_gradients():
    model = model_of("full")
    masks = {n: torch.ones(s, requires_grad=True) for n, s in compose_gates(model).items()}
    logits = run_composed(model, TOKENS, masks)
    assert bool((logits == model(TOKENS)).all())
    logits.square().sum().backward()
    assert all(mask.grad is not None and bool((mask.grad != 0).any()) for mask in masks.values())
    assert len([shape for shape in compose_gates(model).values() if shape == ()]) == 2 * 2 * 2 * 2


def test_without_edges_between_heads_only_gates_are_left():
    model = model_of("full")
    eye = {n: torch.eye(4) for n, s in compose_gates(model).items() if s == (4, 4)}
    out = run_composed(model, TOKENS, eye)
    assert not torch.allclose(out, model(TOKENS))


@pytest.mark.parametrize("kind", KINDS)
def test_later_tokens_do_not_change_earlier_logits(kind):
    model, changed = model_of(kind), TOKENS.clone()
    changed[:, 4:] = 8
    assert bool((model(TOKENS)[:, :4] == model(changed)[:, :4]).all())
    assert not torch.allclose(model(TOKENS)[:, 4:], model(changed)[:, 4:])


def test_the_sink_joins_after_composition_and_is_not_composed():
    model = model_of("full", topk_fraction=None, n_layers=1)
    _, cache = model.run_with_cache(TOKENS)
    maps, attn = composition_maps(model, TOKENS), model.blocks[0].attn
    q, k = (cache[f"blocks.0.attn.hook_{name}"] for name in "qk")
    scores = torch.einsum("bpnh,bsnh->bnps", q, k) / 2
    scores = torch.einsum("bnij,bijnm->bmij", scores, maps.pre)
    scores = scores.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -torch.inf)
    pattern = sink_softmax(scores, attn.sink)
    torch.testing.assert_close(cache["blocks.0.attn.hook_pattern"], pattern)
    z = torch.einsum("bnij,bijnm,bjmh->bimh", pattern, maps.post, cache["blocks.0.attn.hook_v"])
    torch.testing.assert_close(cache["blocks.0.attn.hook_z"], z)


@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_branches_add_up_to_the_whole_map(kind):
    maps = composition_maps(model_of(kind), TOKENS, layer=1)
    for stage, whole in (("pre", maps.pre), ("post", maps.post)):
        parts = [value for name, value in maps.branches.items() if name.startswith(stage)]
        torch.testing.assert_close(whole, torch.eye(4).expand_as(whole) + sum(parts))
    names = {"none": 0, "static": 2, "gate": 4, "qw": 4, "kw": 4, "full": 8}
    assert len(maps.branches) == names[kind]


def test_mixing_of_a_plain_model_is_diagonal():
    model = model_of("none")
    mixing = head_mixing(model, TOKENS)
    assert bool((mixing - mixing.diag().diag() == 0).all())
    _, cache = model.run_with_cache(TOKENS)
    share = cache["blocks.0.attn.hook_pattern"].sum(-1).mean((0, 2))
    norms = (model.blocks[0].attn.W_V @ model.blocks[0].attn.W_O).flatten(1).norm(dim=1)
    torch.testing.assert_close(mixing.diag(), (share * norms).detach())
    assert float(head_mixing(model_of("full"), TOKENS)[0, 1]) > 0


def test_static_composition_folds_into_weights():
    model = model_of("static", topk_fraction=None, n_layers=1)
    QK, OV = folded_circuits(model, layer=0)
    _, cache = model.run_with_cache(TOKENS)
    x = cache["blocks.0.attn.hook_in"]
    scores = torch.einsum("bid,mde,bje->bmij", x, QK.AB, x) / 2
    scores = scores.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -torch.inf)
    pattern = sink_softmax(scores, model.blocks[0].attn.sink)
    out = torch.einsum("bnij,bjd,nde->bie", pattern, x, OV.AB)
    torch.testing.assert_close(cache["blocks.0.hook_attn_out"], out, atol=1e-6, rtol=1e-4)
    assert QK.mdim == OV.mdim == 16


def test_scores_of_static_composition_are_those_of_the_folded_weights():
    model = model_of("static")
    parts, scores = composition_scores(model)
    OV, QK = folded_circuits(model, layer=0)[1].AB, folded_circuits(model, layer=1)[0].AB
    writer = [str(w) for w in parts.writers].index("L0H1")
    for port, matrix in (("Q", QK[2]), ("K", QK[2].T)):
        reader = [str(r) for r in parts.readers].index(f"L1H2.{port}")
        expected = (OV[1] @ matrix).norm() / OV[1].norm() / matrix.norm()
        torch.testing.assert_close(scores[writer, reader], expected)
    plain = composition_scores(model_of("none"))[1]
    assert not torch.allclose(scores, plain)
    for block in model.blocks:
        block.attn.compose_pre.static.data.zero_()
        block.attn.compose_post.static.data.zero_()
    torch.testing.assert_close(composition_scores(model)[1], plain)


class FirstToken:
    """Says again at the end what came first, `a` or `b`."""

    name, n_ctx = "first", 5
    tokenizer = WordTokenizer(name="first", words=tuple("abcdefghijk"))

    def solve(self, text):
        return text[0]

    def batch(self, n, *, split, seed):
        tokens = torch.randint(2, 11, (n, 5), generator=torch.Generator().manual_seed(seed))
        clean, corrupt = tokens.clone(), tokens.clone()
        clean[:, 0], corrupt[:, 0] = 0, 1
        ones = torch.ones(n, dtype=torch.int64)
        return Batch(clean=clean, corrupt=corrupt, answer=0 * ones, foil=ones, position=4 * ones)


@pytest.fixture(scope="module")
def crossed() -> SparseTransformer:
    """Head 0 finds the first token but carries nothing; head 1 carries tokens but looks at its sink."""
    model = model_of("static", loud=False, topk_fraction=None, n_layers=1, bigram=False)
    attn = model.blocks[0].attn
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.W_E[:, :11], model.W_pos[0, 11], model.W_U[12:14, :2] = torch.eye(11), 1.0, 5 * torch.eye(2)
        model.W_pos[:, 14] = 1.0
        attn.W_Q[0, 14, 0], attn.W_K[0, 11, 0] = 10.0, 10.0
        attn.W_V[1, [0, 1], [0, 1]], attn.W_O[1, [0, 1], [12, 13]] = 1.0, 1.0
        attn.sink[1] = 20.0
        attn.compose_post.static[0, 1] = 1.0
        attn.compose_post.static[2, 3], attn.compose_pre.static[3, 2] = 0.5, 0.5
    return model


def test_pruning_keeps_the_one_edge_between_heads_that_the_task_needs(crossed):
    found = prune_compositions(crossed, FirstToken(), ComposePruneConfig(level="edge", steps=30, n_eval=64))
    assert found.kept == ("0.post.static 0 -> 1",)
    assert found.n_gates == 32
    assert found.score.loss <= found.full.loss + 0.05 < found.plain.loss
    branches = prune_compositions(crossed, FirstToken(), ComposePruneConfig(steps=30, n_eval=64))
    assert branches.kept == ("0.post.static",)
    assert "1 of 2 gates" in repr(branches)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_count_in_the_budget(kind):
    model = model_of(kind)
    listed = {id(m.parameter): m for m in model.matrices()}
    mine = [p for name, p in model.named_parameters() if "compose" in name]
    assert all(id(parameter) in listed for parameter in mine)
    assert sum(p.numel() for p in mine) == 2 * n_parameters(kind, 16, 4)
    project(model, TrainConfig(density=0.25, min_alive=0, anneal=(0.0, 0.5)), 1.0)
    for parameter in mine:
        assert int(parameter.count_nonzero()) == max(1, int(0.25 * parameter.numel()))
    assert bool(model(TOKENS).isfinite().all())


def test_published_size():
    assert n_parameters("full", 64, 4) == 20 * 64 * 4 + 64 * 16
    assert n_parameters("qw", 64, 4) == 10 * 64 * 4 + 32 * 16


def test_dead_rows_stay_dead():
    compose = Compose("full", 8, 2, 2)
    compose.query.dw1.data.zero_()
    out = compose(torch.randn(1, 2, 3, 3), torch.randn(1, 3, 8))
    assert bool(out.isfinite().all())


def test_checkpoints_and_split_inputs(tmp_path):
    model = model_of("full")
    loaded = load_checkpoint(save_checkpoint(tmp_path / "m.safetensors", model)).model
    assert loaded.fingerprint() == model.fingerprint()
    assert bool((loaded(TOKENS) == model(TOKENS)).all())
    before = model(TOKENS)
    model.set_use_split_qkv_input(True)
    torch.testing.assert_close(model(TOKENS), before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ModelConfig(compose_rank=0), "compose_rank: got 0"),
        (lambda: ModelConfig(compose="full"), "attention: got 'softmax' with compose='full'"),
        (lambda: composition_maps(model_of("full"), TOKENS, layer=2), "layer: got 2"),
        (lambda: folded_circuits(model_of("full"), layer=0), "got compose='full'"),
        (lambda: ComposePruneConfig(tolerance=0.0), "tolerance: got 0.0"),
        (lambda: prune_compositions(model_of("none"), FirstToken()), "model: got compose='none'"),
        (lambda: run_composed(model_of("qw"), TOKENS, {"hook_x": torch.ones(())}), "unknown hook 'hook_x'"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_figure_of_the_maps_of_a_prompt():
    from circuits.plots import composition_maps_figure

    maps = composition_maps(model_of("full"), TOKENS)
    figure = composition_maps_figure(maps, list("dbhhcj"))
    assert len(figure.data) == 4
    mean = (maps.pre[0] - torch.eye(4)).mul(torch.ones(6, 6).tril()[:, :, None, None])
    mean = (mean.sum(1) / torch.arange(1, 7)[:, None, None]).mean(0)
    assert figure.data[0].z[1][2] == pytest.approx(float(mean[1, 2]), abs=1e-5)
    with pytest.raises(ValueError, match="tokens: got 1"):
        composition_maps_figure(maps, ["a"])


def test_variants_of_the_experiment_are_comparable():
    from docs.experiments.heads import VARIANTS, interval, variant_config

    sizes = {}
    for variant in VARIANTS:
        config = variant_config(variant, seed=0, steps=1).model
        with torch.device("meta"):
            model = SparseTransformer(ModelConfig(**{**config.to_json(), "d_vocab": 60}))
        sizes[variant] = sum(parameter.numel() for parameter in model.parameters())
    assert abs(sizes["plain_equal"] / sizes["full"] - 1) < 0.002
    assert sizes["plain"] < sizes["static"] < sizes["gate"] < sizes["qw"] < sizes["full"]
    assert interval([1.0, 2.0, 3.0]) == pytest.approx([2 - 2.484, 2 + 2.484], abs=1e-3)
    with pytest.raises(ValueError, match="variant: got 'loud'"):
        variant_config("loud", seed=0, steps=1)


@pytest.mark.slow
def test_the_experiment_runs_and_is_not_run_twice(tmp_path, monkeypatch):
    from docs.experiments import heads
    from docs.experiments.heads import run_dynamic
    from tasks.composition import composition_corpus

    text = composition_corpus(n_train_lines=400, n_val_lines=60)
    monkeypatch.setattr(heads, "load_corpus", lambda name: text)
    monkeypatch.setattr(heads, "accuracy", partial(heads.accuracy, n=48))
    options = dict(seeds=[0], steps=2, variants=("full",), out=tmp_path, results=tmp_path / "results.json")
    first = run_dynamic(**options)
    assert set(first["variants"]["full"]) >= {"seen", "held_out", "held_out_ci", "n_edges", "steps_to_90"}
    assert set(first["runs"][0]["ablated"]) == {"query", "key", "pre", "post", "mixing"}
    assert run_dynamic(**options)["minutes"] == first["minutes"]


@pytest.mark.parametrize(
    ("ci", "verdict"),
    [
        ([0.01, 0.2], "better"),
        ([-0.2, -0.01], "worse"),
        ([-0.07, 0.07], "equivalent"),
        ([-0.07, 0.09], "undecided"),
        ([0.1, 0.1], "undecided"),
    ],
)
def test_a_verdict_goes_no_further_than_its_interval(ci, verdict):
    from docs.experiments.heads import judged

    assert judged(ci) == verdict


def test_the_page_takes_its_tables_from_results(tmp_path):
    from docs.experiments.heads_page import TABLES, write_tables

    results, page = tmp_path / "results", tmp_path / "explanation" / "heads.md"
    results.mkdir()
    page.parent.mkdir()
    marks = "".join(f"<!-- table of {n}: begin --><!-- table of {n}: end -->\n" for n in TABLES)
    page.write_text(f"before\n{marks}after\n")
    made = {"command": "python -m x y", "machine": "m", "minutes": 1.0, "date": "2026-01-01"}
    full = {"seen": 0.5, "seen_ci": [0.25, 0.75], "held_out": 0.125, "held_out_ci": [0.0, 0.25]}
    report = {
        **made,
        "variants": {
            "full": {**full, "n_compositions": 3.0, "n_seeds": 2, "n_learned": 1, "steps_to_90": None},
            "static": {**full, "n_compositions": 3.0, "n_seeds": 2, "n_learned": 2, "steps_to_90": 1200},
        },
        "contrasts": {
            "full - static, seen": {"mean": 0.1, "ci": [-0.1, 0.3]},
            "full - static, held_out": {"mean": 0.02, "ci": [-0.03, 0.07]},
        },
        "verdict": {"full - static, held_out": "equivalent"},
    }
    (results / "dynamic_heads.json").write_text(json.dumps(report))
    for _ in range(2):
        assert write_tables(tmp_path) == ["dynamic_heads"]
    text = page.read_text()
    assert "| full | 0.500 (0.250 to 0.750) | 0.125 (0.000 to 0.250) | not all | 1 of 2 | 3 |" in text
    assert "| static | 0.500 (0.250 to 0.750) | 0.125 (0.000 to 0.250) | 1,200 | 2 of 2 | 3 |" in text
    assert text.count("full - static, seen | 0.100 (-0.100 to 0.300) |  |") == 1
    assert text.count("full - static, held_out | 0.020 (-0.030 to 0.070) | equivalent |") == 1
    assert text.startswith("before")
    assert text.endswith("after\n")
    page.write_text("no marks")
    with pytest.raises(ValueError, match="table of dynamic_heads: begin"):
        write_tables(tmp_path)


def test_the_time_of_a_head_report_is_measured(tmp_path):
    from docs.experiments.heads import run_report

    report = run_report(model_of("none").config, results=tmp_path / "r.json")
    assert report["n_rows"] == 8
    assert 0 < report["report_seconds"] < 60
    assert report["peak_gb"] > 0.05
