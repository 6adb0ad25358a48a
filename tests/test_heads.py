"""Heads: factors that multiply out to the definition, and scores that find the heads of a hand-made model."""

import math

import pytest
import torch
from induction_model import D_VOCAB, INDUCTION, PREVIOUS, bridge, induction_model

from circuits.heads import (
    HeadReport,
    copying_scores,
    duplicate_scores,
    full_ov,
    full_qk,
    head_report,
    head_weights,
    induction_scores,
    ov_circuit,
    pattern_scores,
    previous_scores,
    qk_circuit,
    repeated_tokens,
)
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer


@pytest.fixture(scope="module")
def model():
    return induction_model()


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def bridged(request):
    return bridge(request.param)


def dense(seed: int = 0) -> SparseTransformer:
    config = ModelConfig(
        d_vocab=11, n_layers=2, d_model=16, n_heads=2, d_head=4, d_mlp=8, n_ctx=10, topk_fraction=None
    )
    return SparseTransformer(config, seed=seed).eval()


def test_circuits_equal_those_of_transformer_lens(bridged):
    for ours, theirs in ((qk_circuit(bridged), bridged.QK), (ov_circuit(bridged), bridged.OV)):
        torch.testing.assert_close(ours.AB, theirs.AB)


def test_full_circuits_multiply_out_to_their_definition():
    model, tokens = dense(), torch.tensor([3, 1, 7])
    attn, E = model.blocks[1].attn, model.W_E.detach()[tokens]
    qk = full_qk(model, tokens, layer=1, head=1, normed=False)
    ov = full_ov(model, tokens, layer=1, head=1, normed=False)
    torch.testing.assert_close(qk.AB, E @ attn.W_Q[1] @ attn.W_K[1].T @ E.T / 2)
    torch.testing.assert_close(ov.AB, E @ attn.W_V[1] @ attn.W_O[1] @ model.W_U[:, tokens])


def test_full_qk_is_the_score_of_the_first_layer(model):
    tokens = torch.arange(D_VOCAB)
    lone = induction_model()
    lone.W_pos.data.zero_()
    _, cache = lone.run_with_cache(tokens[None])
    scores = cache["blocks.0.attn.hook_attn_scores"][0, 2]
    seen = scores.isfinite()
    torch.testing.assert_close(scores[seen], full_qk(lone, tokens, layer=0, head=2).AB[seen])


def test_copying_is_the_eigenvalue_ratio_of_the_whole_product():
    model = dense()
    attn, E = model.blocks[0].attn, model.W_E.detach()
    E = E / (E.square().mean(1, keepdim=True) + model.cfg.eps).sqrt()
    values = torch.linalg.eigvals(E @ attn.W_V[0] @ attn.W_O[0] @ model.W_U).detach()
    assert float(copying_scores(model)[0, 0]) == pytest.approx(
        float(values.real.sum() / values.abs().sum()), abs=1e-4
    )


def test_a_dead_head_scores_zero():
    model = dense()
    for parameter in model.blocks[0].parameters():
        parameter.data.zero_()
    assert bool((copying_scores(model)[0] == 0).all())
    assert bool((duplicate_scores(model)[0] == 0).all())


def test_duplicate_score_is_diagonal_minus_mean():
    model = dense()
    qk = full_qk(model, torch.arange(11), layer=1, head=0).AB
    expected = qk.diagonal().mean() - qk.mean()
    torch.testing.assert_close(duplicate_scores(model)[1, 0], expected, atol=1e-5, rtol=1e-4)


def test_induction_score_is_the_mean_preference_through_the_earlier_head():
    model, previous = dense(), torch.tensor([[0.5, 1.0], [0.0, 0.0]])
    E = model.W_E.detach()
    E = E / (E.square().mean(1, keepdim=True) + model.cfg.eps).sqrt()
    early, late = model.blocks[0].attn, model.blocks[1].attn
    scores = E @ late.W_Q[1] @ late.W_K[1].T @ (E @ early.W_V[0] @ early.W_O[0]).T / 2
    expected = 0.5 * (scores.diagonal().mean() - scores.mean())
    torch.testing.assert_close(induction_scores(model, previous)[0, 0, 1, 1], expected, atol=1e-6, rtol=1e-4)


def test_weights_tell_the_heads_of_the_hand_made_model(model):
    previous = previous_scores(model)
    induction = induction_scores(model)
    assert float(previous[PREVIOUS]) > 0.99
    assert float(previous.sum() - previous[PREVIOUS]) < 0.3 * (previous.numel() - 1)
    assert int(induction.sum((0, 1)).flatten().argmax()) == 4
    assert int(induction[:, :, 1, 0].flatten().argmax()) == 0
    assert float(copying_scores(model)[INDUCTION]) == pytest.approx(1.0, abs=1e-5)


def test_patterns_tell_the_same(model):
    report = head_report(model)
    assert [row.label for row in report.rows if row.kind == "previous token"] == ["L0H0"]
    assert [row.label for row in report.rows if row.kind == "induction"] == ["L1H0"]
    assert report.top("induction", 1)[0].partner == "L0H0"
    assert report.top("induction_nats", 1)[0].label == "L1H0"
    assert "L1H0 induction" in repr(report)
    assert "<td>L1H0</td>" in report._repr_html_()


def test_pattern_scores_by_hand():
    model = dense()
    for block in model.blocks:
        block.attn.q.weight.data.zero_()
        block.attn.sink.data.fill_(-1e9)
    scores = pattern_scores(model, torch.tensor([[4, 5, 4, 5]]))
    # Attention is uniform over the positions seen so far: 1/2, 1/3 and 1/4 on each of them.
    assert float(scores.previous[0, 0]) == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert float(scores.duplicate[0, 0]) == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert float(scores.induction[0, 0]) == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert float(scores.sink[0, 0]) == 0


def test_the_sink_takes_what_rows_lack():
    model = dense()
    model.blocks[0].attn.q.weight.data.zero_()
    scores = pattern_scores(model, torch.tensor([[4]]))
    assert float(scores.sink[0, 0]) == pytest.approx(1 / 2)
    assert math.isnan(float(scores.duplicate[0, 0]))


def test_report_of_a_bridge_and_its_json(bridged):
    report = head_report(bridged, "w5 w6 w7 w5 w6 w7")
    assert len(report.rows) == 8
    assert report.n_tokens == 7
    assert HeadReport.from_json(report.to_json()) == report
    rotary = bridged.cfg.positional_embedding_type == "rotary"
    assert (report.rows[0].previous_from_weights is None) == rotary
    assert all(abs(row.copying) <= 1 + 1e-5 for row in report.rows)


def test_norm_weights_are_part_of_what_a_head_reads():
    model = bridge("llama")
    before = duplicate_scores(model)[0].clone()
    with torch.no_grad():
        model.blocks[0].ln1.weight.mul_(2)
    torch.testing.assert_close(duplicate_scores(model)[0], 4 * before)


def test_repeated_tokens_repeat_and_fit():
    tokens = repeated_tokens(dense())
    assert tokens.shape == (16, 10)
    assert bool((tokens[:, :5] == tokens[:, 5:]).all())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: full_qk(dense(), torch.tensor([0]), layer=2, head=0), "layer, head: got 2, 0"),
        (lambda: full_ov(dense(), torch.tensor([11]), layer=0, head=0), "tokens: got \\[11\\]"),
        (lambda: head_weights(torch.nn.Linear(2, 2)), "model: found no attention"),
        (lambda: induction_scores(bridge("llama")), "previous: got None"),
        (lambda: head_report(dense(), torch.zeros(1, 0, dtype=torch.int64)), "text: got no tokens"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_figures_of_heads(model):
    from circuits.plots import head_report_figure, pattern_figure, token_map_figure

    report = head_report(model)
    assert len(report.plot().data) == 6
    assert "L1H0 induction" in head_report_figure(report).layout.title.text
    tokens = repeated_tokens(model, n=1)
    _, cache = model.run_with_cache(tokens)
    pattern = cache["blocks.1.attn.hook_pattern"][0]
    figure = pattern_figure(pattern, [str(t) for t in tokens[0].tolist()])
    assert figure.layout.xaxis.ticktext[0] == "sink"
    sink = [row[0] for row in figure.data[0].z]
    assert sink == pytest.approx((1 - pattern[0].sum(-1)).clamp_min(0).tolist(), abs=1e-6)
    names = ["a", " ", "\n"]
    qk = full_qk(model, torch.arange(3), layer=0, head=1).AB
    assert token_map_figure(qk, names, names, title="QK").layout.xaxis.ticktext == ("a", "·", "⏎")
    with pytest.raises(ValueError, match="tokens: got 1"):
        pattern_figure(pattern, ["a"])
    with pytest.raises(ValueError, match="values: got shape"):
        token_map_figure(qk, names, ["a"], title="QK")
