"""The TransformerLens contract: its tools run on our model and give the right numbers."""

import pytest
import torch
from transformer_lens import ActivationCache, patching
from transformer_lens.tools.analysis import logit_lens
from transformer_lens.utilities import Slice

from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer
from tasks import load_corpus

CONFIG = ModelConfig(
    d_vocab=load_corpus("mini").tokenizer.d_vocab,
    n_layers=2, d_model=16, n_heads=2, d_head=8, d_mlp=24, n_ctx=12, topk_fraction=None,
)  # fmt: skip


@pytest.fixture
def model() -> SparseTransformer:
    model = SparseTransformer(CONFIG, seed=2, tokenizer=load_corpus("mini").tokenizer).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    return model


@pytest.fixture
def run(model):
    tokens = model.to_tokens(["a = 'bc'", "d = 'ef'"])
    logits, cache = model.run_with_cache(tokens)
    return tokens, logits, cache


def test_cache_is_an_activation_cache_and_can_be_a_dict(model, run):
    tokens, _, cache = run
    assert isinstance(cache, ActivationCache)
    assert isinstance(model.run_with_cache(tokens, return_cache_object=False)[1], dict)


def test_residual_stream_decomposes_exactly(model, run):
    _, _, cache = run
    parts = cache.decompose_resid(-1, apply_ln=False)
    final = cache["blocks.1.hook_resid_post"]
    torch.testing.assert_close(parts.sum(0), final, atol=1e-5, rtol=1e-5)
    normed = cache.decompose_resid(-1, apply_ln=True).sum(0)
    torch.testing.assert_close(normed, cache["ln_final.hook_normalized"], atol=1e-5, rtol=1e-5)
    stages = cache.accumulated_resid(-1, incl_mid=True)
    torch.testing.assert_close(stages[-1], final)


def test_head_results_and_neurons_sum_to_the_stream(model, run):
    _, _, cache = run
    heads = cache.stack_head_results(-1, incl_remainder=True)
    torch.testing.assert_close(heads.sum(0), cache["blocks.1.hook_resid_post"], atol=1e-4, rtol=1e-4)
    full = cache.get_full_resid_decomposition(-1, expand_neurons=True)
    torch.testing.assert_close(full.sum(0), cache["blocks.1.hook_resid_post"], atol=1e-4, rtol=1e-4)


SPARSE = ModelConfig(**{**CONFIG.to_json(), "topk_fraction": 0.25, "topk_sites": ("attn_out", "mlp_out")})


@pytest.fixture
def sparse_run():
    model = SparseTransformer(SPARSE, seed=2).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    tokens = torch.randint(0, CONFIG.d_vocab, (2, 9))
    return model, tokens, model.run_with_cache(tokens)[1]


@pytest.mark.parametrize("options", [{}, {"pos_slice": -1}, {"apply_ln": True, "pos_slice": (2, 5)}])
@pytest.mark.parametrize(("layer", "mlp_input"), [(0, True), (1, False), (1, True), (-1, False)])
def test_every_decomposition_sums_to_the_stream_where_abs_topk_acts(sparse_run, layer, mlp_input, options):
    _, _, cache = sparse_run
    name = f"blocks.{layer}.hook_resid_{'mid' if mlp_input else 'pre'}"
    stream = cache["blocks.1.hook_resid_post" if layer == -1 else name]
    expected = Slice(options.get("pos_slice")).apply(stream, dim=-2)
    if options.get("apply_ln"):
        given = {"mlp_input": mlp_input, "pos_slice": options["pos_slice"]}
        expected = cache.apply_ln_to_stack(expected[None], layer, **given)[0]
    onto = torch.randn(16, 3)
    for neurons in (True, False):
        given = {"mlp_input": mlp_input, "expand_neurons": neurons, **options}
        full, labels = cache.get_full_resid_decomposition(layer, return_labels=True, **given)
        torch.testing.assert_close(full.sum(0), expected, atol=1e-4, rtol=1e-4)
        assert len(labels) == len(full)
        for direction in (onto, onto[:, 0]):
            seen = cache.get_full_resid_decomposition(layer, project_output_onto=direction, **given)
            torch.testing.assert_close(seen, full @ direction, atol=1e-4, rtol=1e-4)
    parts = cache.decompose_resid(layer, mlp_input=mlp_input, **options)
    torch.testing.assert_close(parts.sum(0), expected, atol=1e-4, rtol=1e-4)


def test_a_head_adds_what_abs_topk_let_through(sparse_run):
    model, _, cache = sparse_run
    out, attn = cache["blocks.0.hook_attn_out"], model.blocks[0].attn
    heads = torch.einsum("bphd,hdm->hbpm", cache["blocks.0.attn.hook_z"], attn.W_O)
    found, labels = cache.stack_head_results(1, return_labels=True)
    torch.testing.assert_close(found, heads * (out != 0))
    assert labels == ["L0H0", "L0H1"]
    torch.testing.assert_close(found.sum(0) + attn.b_O * (out != 0), out, atol=1e-5, rtol=1e-5)
    rest = cache.stack_head_results(1, incl_remainder=True)
    torch.testing.assert_close(rest.sum(0), cache["blocks.0.hook_resid_post"], atol=1e-4, rtol=1e-4)
    one = cache.apply_slice_to_batch_dim(0)
    torch.testing.assert_close(one.stack_head_results(1), found[:, 0])
    neuron = cache.get_neuron_results(0, neuron_slice=3)
    torch.testing.assert_close(neuron, cache.get_neuron_results(0)[..., 3, :])


def test_a_cache_without_what_abs_topk_let_through_says_so(sparse_run):
    model, tokens, _ = sparse_run
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_z"))
    with pytest.raises(ValueError, match="cache: it holds no blocks.0.hook_attn_out"):
        cache.stack_head_results(1)


def test_direct_path_patching_names_abs_topk_where_it_comes_between(sparse_run, model):
    sparse, tokens, cache = sparse_run
    with pytest.raises(ValueError, match="hook_attn_out reads topk_attn_out.hook_out, after the head sum"):
        patching.get_act_patch_direct_path(sparse, tokens, cache, cache, torch.mean, 0, 0, verbose=False)
    with torch.no_grad():
        _, own = model.run_with_cache(tokens)
        found = patching.get_act_patch_direct_path(model, tokens, own, own, torch.mean, 0, 0, verbose=False)
        torch.testing.assert_close(found[1], model(tokens).mean().expand(2))


def test_logit_attribution_adds_up_to_the_logit_without_bias_and_bigram(model, run):
    tokens, logits, cache = run
    attribution = cache.logit_attrs(cache.decompose_resid(-1), tokens=tokens).sum(0)
    own = logits.gather(-1, tokens[..., None])[..., 0]
    outside = model.b_U[tokens] + model.bigram[tokens, tokens]
    torch.testing.assert_close(attribution, own - outside, atol=1e-4, rtol=1e-4)


def test_logit_lens_ends_at_the_logits_and_refuses_what_it_cannot_see():
    plain = SparseTransformer(ModelConfig(**{**CONFIG.to_json(), "bigram": False}), seed=2).eval()
    tokens = torch.randint(0, CONFIG.d_vocab, (2, 9))
    last = logit_lens(plain, tokens, positions=None).values[-1]
    torch.testing.assert_close(last, plain(tokens), atol=1e-4, rtol=1e-4)
    with_bigram = SparseTransformer(CONFIG, seed=2).eval()
    with_bigram.bigram.data.normal_()
    with pytest.raises(ValueError, match="differs from the model's own logits"):
        logit_lens(with_bigram, tokens)


def test_activation_patching_of_residual_and_heads(model):
    clean, corrupt = model.to_tokens("a = 'bc"), model.to_tokens('a = "bc')
    _, cache = model.run_with_cache(clean)

    def metric(logits):
        return logits[0, -1, 3] - logits[0, -1, 4]

    resid = patching.get_act_patch_resid_pre(model, corrupt, cache, metric)
    torch.testing.assert_close(resid[0, 4], metric(model(clean)))
    heads = patching.get_act_patch_attn_head_out_all_pos(model, corrupt, cache, metric)
    assert heads.shape == (2, 2)
    assert torch.isfinite(heads).all()


@pytest.mark.parametrize("topk_fraction", [None, 0.25])
def test_switches_do_not_change_the_output(model, topk_fraction):
    model = SparseTransformer(ModelConfig(**{**CONFIG.to_json(), "topk_fraction": topk_fraction}), seed=4)
    tokens = torch.randint(0, CONFIG.d_vocab, (2, 9))
    plain = model(tokens)
    for switch in (model.set_use_split_qkv_input, model.set_use_attn_result, model.set_use_hook_mlp_in):
        switch(True)
        torch.testing.assert_close(model(tokens), plain, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="use_attn_in: got True"):
        model.set_use_attn_in(True)


def test_tokens_and_directions(model):
    assert model.to_single_token("]]") == model.tokenizer.id("]]")
    torch.testing.assert_close(
        model.tokens_to_residual_directions("]]"), model.W_U[:, model.tokenizer.id("]]")]
    )
    with pytest.raises(ValueError, match="expected one length"):
        model.to_tokens(["a", "ab"])
    with pytest.raises(ValueError, match="tokenizer: this model has none"):
        SparseTransformer(CONFIG).to_tokens("a")
