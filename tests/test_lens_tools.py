"""Every family of TransformerLens's tools on a model of ours: it runs with the right numbers, or is refused by name.

Runs as it is: caches and decompositions (see test_lens), direct logit attribution, activation, path and attribution
patching (nodes and edges), head detector, interchange in a subspace, subspace affinity (with rank=), singular vectors,
factored matrices, composition scores. Refused: attribution of edges where AbsTopK follows the sum of heads; the logit
lens of a model with a bigram table, which `circuits.model.logit_lens` has.
"""

import pytest
import torch
from transformer_lens import FactoredMatrix, SVDInterpreter, head_detector, patching
from transformer_lens.tools import analysis
from transformer_lens.tools.analysis import attribution_patching, interchange
from transformer_lens.tools.analysis.projection_kernel import attention_head_subspace_affinity
from transformer_lens.utilities import composition_scores

from circuits.composition import composition_scores as with_labels
from circuits.model.config import ModelConfig
from circuits.model.logit_lens import logit_lens
from circuits.model.transformer import SparseTransformer
from tasks import load_corpus

TOKENIZER = load_corpus("mini").tokenizer
SHAPE = dict(d_vocab=TOKENIZER.d_vocab, n_layers=2, d_model=16, n_heads=2, d_head=8, d_mlp=24, n_ctx=12)
TEXTS = ["a = 'bc'", "d = 'ef'"]


def made(**options) -> SparseTransformer:
    config = ModelConfig(**{**SHAPE, "topk_fraction": None, **options})
    model = SparseTransformer(config, seed=2, tokenizer=TOKENIZER).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    return model


@pytest.fixture(scope="module")
def model() -> SparseTransformer:
    return made()


@pytest.fixture(scope="module")
def tokens(model):
    return model.to_tokens(TEXTS)


def test_a_text_runs_and_is_told_token_by_token(model, tokens):
    assert torch.equal(model(TEXTS), model(tokens))
    assert torch.equal(model(TEXTS[0])[0], model(tokens)[0])
    pieces = model.to_str_tokens(TEXTS[0])
    assert "".join(pieces) == TEXTS[0] == model.to_string(tokens[0])
    assert pieces == model.to_str_tokens(tokens[0])
    assert model.to_string(tokens) == TEXTS
    with pytest.raises(ValueError, match="tokenizer: this model has none"):
        SparseTransformer(ModelConfig(**SHAPE))("a")


def test_a_text_goes_on_greedily(model, tokens):
    text = tokens[:1, :4]
    for new in model.generate(text, 3)[0]:
        assert new == int(model(text)[0, -1].argmax())
        text = torch.cat([text, torch.tensor([[new]])], dim=1)


def test_the_stream_can_be_had_before_any_layer(model, tokens):
    _, cache = model.run_with_cache(tokens)
    for layer, name in (
        (0, "blocks.0.hook_resid_pre"),
        (1, "blocks.1.hook_resid_pre"),
        (2, "blocks.1.hook_resid_post"),
    ):
        torch.testing.assert_close(model(tokens, stop_at_layer=layer), cache[name])
    torch.testing.assert_close(model(tokens, stop_at_layer=-1), cache["blocks.1.hook_resid_pre"])
    with pytest.raises(ValueError, match="stop_at_layer: got 3; expected -2 to 2"):
        model(tokens, stop_at_layer=3)


def test_hooks_and_filters(model, tokens):
    seen = []
    hook = ("blocks.0.attn.hook_pattern", lambda x, hook: seen.append(x))
    model.run_with_hooks(tokens, fwd_hooks=[hook])
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
    assert set(cache.keys()) == {f"blocks.{i}.attn.hook_pattern" for i in range(2)}
    assert torch.equal(seen[0], cache["pattern", 0])


def test_weights_are_stacked_and_multiply_out(model):
    assert model.W_Q.shape == model.W_K.shape == model.W_V.shape == (2, 2, 16, 8)
    assert model.W_O.shape == (2, 2, 8, 16)
    torch.testing.assert_close(model.QK.AB[1, 0], model.W_Q[1, 0] @ model.W_K[1, 0].T)
    torch.testing.assert_close(model.OV.AB[0, 1], model.W_V[0, 1] @ model.W_O[0, 1])
    assert isinstance(model.OV, FactoredMatrix)
    u, s, v = model.OV.svd()
    torch.testing.assert_close(u @ torch.diag_embed(s) @ v.mT, model.OV.AB, atol=1e-4, rtol=1e-3)
    assert model.all_head_labels() == ["L0H0", "L0H1", "L1H0", "L1H1"]


@pytest.mark.parametrize("mode", ["Q", "K", "V"])
def test_composition_scores_are_transformer_lenss_and_never_nan(mode):
    model = made()
    found = model.all_composition_scores(mode).detach()
    assert found.shape == (2, 2, 2, 2)
    assert not found[1].any()
    assert not found[:, :, 0].any()
    read = {"Q": model.QK, "K": model.QK.T, "V": model.OV}[mode]
    for a in range(2):
        for b in range(2):
            own = composition_scores(model.OV[0, a], read[1, b], broadcast_dims=False)
            assert float(found[0, a, 1, b]) == pytest.approx(own.item(), abs=1e-5)
    parts, scores = with_labels(model)
    columns = [i for i, reader in enumerate(parts.readers) if reader.port == mode]
    torch.testing.assert_close(found.flatten(0, 1).flatten(1), scores[:, columns], atol=1e-5, rtol=1e-4)
    model.blocks[0].attn.v.weight.data.zero_()
    assert not model.all_composition_scores(mode).isnan().any()
    with pytest.raises(ValueError, match="mode: got 'X'"):
        model.all_composition_scores("X")


def test_the_logit_lens_knows_the_bigram_table(model, tokens):
    found = logit_lens(model, tokens)
    assert found.labels == ("0_pre", "0_mid", "1_pre", "1_mid", "final")
    torch.testing.assert_close(found.values[-1], model(tokens), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.bigram, model.bigram[tokens])
    plain = made(bigram=False)
    theirs = analysis.logit_lens(plain, tokens, positions=None).values
    ours = logit_lens(plain, tokens)
    assert ours.bigram is None
    torch.testing.assert_close(ours.values[-1], theirs[-1], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="differs from the model's own logits"):
        analysis.logit_lens(model, tokens)


@pytest.mark.parametrize("unit", ["component", "layer", "head"])
def test_direct_logit_attribution(model, tokens, unit):
    found = analysis.direct_logit_attribution(model, tokens, "'", '"', unit=unit)
    logits, (answer, foil) = model(tokens)[:, -1], (model.to_single_token(t) for t in ("'", '"'))
    whole = logits[:, answer] - logits[:, foil] - (model.b_U[answer] - model.b_U[foil])
    whole = whole - (model.bigram[tokens[:, -1], answer] - model.bigram[tokens[:, -1], foil])
    values = found.attribution
    own = values[-1] if unit == "layer" else values.sum(0)
    torch.testing.assert_close(own.flatten(), whole, atol=1e-3, rtol=1e-3)


def test_every_patch_of_a_model_into_itself_changes_nothing(model, tokens):
    _, cache = model.run_with_cache(tokens)
    before = float(model(tokens)[:, -1, 3].detach().mean())

    def metric(logits):
        return logits[:, -1, 3].mean()

    for name in ("resid_pre", "attn_out", "mlp_out", "attn_head_out_all_pos", "attn_head_pattern_all_pos"):
        with torch.no_grad():
            found = getattr(patching, f"get_act_patch_{name}")(model, tokens, cache, metric)
        torch.testing.assert_close(found, torch.full_like(found, before), atol=1e-4, rtol=1e-4)


def test_attribution_patching_of_nodes_and_edges(model, tokens):
    def metric(logits):
        return logits[0, -1, 3] - logits[0, -1, 4]

    clean, corrupt = tokens[:1], tokens[1:]
    config = attribution_patching.EdgeAttributionConfig
    nodes = attribution_patching.attribution_patch(model, clean, corrupt, metric, config(granularity="node"))
    edges = attribution_patching.attribution_patch(model, clean, corrupt, metric, config(granularity="edge"))
    assert len(edges.edge_scores) > len(nodes.node_scores) > 0
    mixed = made(topk_fraction=0.25, topk_sites=("attn_out",))
    with pytest.raises(ValueError, match="hook_attn_out|head"):
        attribution_patching.attribution_patch(mixed, clean, corrupt, metric, config(granularity="edge"))


def test_heads_are_detected_by_their_patterns(model):
    found = head_detector.detect_head(model, TEXTS[0], "previous_token_head")
    assert found.shape == (2, 2)
    _, cache = model.run_with_cache(model.to_tokens(TEXTS[0]))
    same = cache["pattern", 1][0, 0]
    assert float(
        head_detector.detect_head(model, TEXTS[0], same, error_measure="abs")[1, 0]
    ) == pytest.approx(1, abs=0.01)


def test_subspaces_and_singular_vectors(model):
    basis = interchange.random_basis(16, 3, seed=0)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3), atol=1e-5, rtol=1e-5)
    affinity = attention_head_subspace_affinity(model, target_role="K", rank=4)
    assert affinity.scores.shape == (2, 2, 2, 2)
    vectors = SVDInterpreter(model).get_singular_vectors("OV", layer_index=0, head_index=0, num_vectors=3)
    assert vectors.shape[-1] == 3
