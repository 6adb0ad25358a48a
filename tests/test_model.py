"""The model: its equations by hand, its sites, its errors."""

import inspect
import math
from dataclasses import replace
from functools import partial
from typing import get_args

import pytest
import torch

from circuits.model.config import Activation, ModelConfig
from circuits.model.layers import AbsTopK, Linear, Matrix, RMSNorm
from circuits.model.mixers import MIXERS, Attention, sink_softmax
from circuits.model.sites import SITES, Site
from circuits.model.transformer import SparseTransformer

TINY = ModelConfig(d_vocab=11, n_layers=2, d_model=12, n_heads=3, d_head=4, d_mlp=20, n_ctx=10)


@pytest.fixture
def model() -> SparseTransformer:
    return SparseTransformer(TINY, seed=3)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 11, (4, 10))


def by_hand(model: SparseTransformer, tokens: torch.Tensor) -> torch.Tensor:
    """The forward pass of the module docstring, written once more with loops over heads."""
    config = model.config
    gelu = torch.nn.functional.gelu
    acts = {"gelu": gelu, "gelu_new": partial(gelu, approximate="tanh"), "relu": lambda x: x.clamp(min=0)}
    act = acts[config.act]

    def norm(x):
        return x / (x.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt()

    def topk(x, site):
        k = config.topk(Site(0, site))
        if k is None:
            return x
        kept = torch.zeros_like(x)
        best = x.abs().topk(k, dim=-1).indices
        return kept.scatter(-1, best, x.gather(-1, best))

    x = model.W_E[tokens] + model.W_pos[: tokens.shape[1]]
    for block in model.blocks:
        a = block.attn
        inp = topk(norm(x), "attn_in")
        q, k, v = (
            topk(inp @ w.weight + w.bias, site)
            for w, site in ((a.q, "attn_q"), (a.k, "attn_k"), (a.v, "attn_v"))
        )
        out = []
        for h in range(config.n_heads):
            cut = slice(h * config.d_head, (h + 1) * config.d_head)
            scores = q[..., cut] @ k[..., cut].transpose(1, 2) / math.sqrt(config.d_head)
            weights = scores.exp().tril()
            total = weights.sum(-1, keepdim=True) + (a.sink[h].exp() if a.sink is not None else 0)
            out.append(weights / total @ v[..., cut])
        x = x + topk(torch.cat(out, -1) @ a.o.weight + a.o.bias, "attn_out")
        m = block.mlp
        neurons = topk(act(topk(norm(x), "mlp_in") @ m.W_in + m.b_in), "mlp_neuron")
        x = x + topk(neurons @ m.W_out + m.b_out, "mlp_out")
    logits = norm(x) @ model.W_U + model.b_U
    return logits if model.bigram is None else logits + model.bigram[tokens]


@pytest.mark.parametrize("fraction", [0.25, None])
@pytest.mark.parametrize("extras", [True, False])
@pytest.mark.parametrize("act", get_args(Activation))
def test_forward_is_what_the_docstring_says(fraction, extras, act, tokens):
    config = ModelConfig(
        d_vocab=11,
        d_model=12,
        n_heads=3,
        d_head=4,
        d_mlp=20,
        n_ctx=10,
        topk_fraction=fraction,
        sink=extras,
        bigram=extras,
        act=act,
    )
    model = SparseTransformer(config, seed=1).double()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.5)
    torch.testing.assert_close(model(tokens), by_hand(model, tokens), atol=1e-10, rtol=1e-9)


def test_one_head_one_token_by_hand():
    """d_model 1, one head, one token: the whole attention output is v * e^s / (e^b + e^s) by pencil."""
    config = ModelConfig(
        d_vocab=2,
        n_layers=1,
        d_model=1,
        n_heads=1,
        d_head=1,
        d_mlp=1,
        n_ctx=1,
        topk_fraction=None,
        norm_eps=1e-12,
    )
    model = SparseTransformer(config)
    attention = model.blocks[0].attn
    for linear, weight in ((attention.q, 2.0), (attention.k, 0.5), (attention.v, 3.0), (attention.o, 1.0)):
        linear.weight.data.fill_(weight)
    attention.sink.data.fill_(0.5)
    model.W_E.data.fill_(4.0)  # normed to 1
    model.W_pos.data.zero_()
    _, cache = model.run_with_cache(torch.zeros(1, 1, dtype=torch.long))
    share = math.exp(1.0) / (math.exp(1.0) + math.exp(0.5))
    assert float(cache["blocks.0.attn.hook_pattern"]) == pytest.approx(share, rel=1e-5)
    assert float(cache["blocks.0.hook_attn_out"]) == pytest.approx(3.0 * share, rel=1e-5)


def test_sink_takes_the_rest(tokens):
    scores = torch.randn(2, 3, 5, 5)
    pattern = sink_softmax(scores, torch.tensor([0.0, 5.0, -torch.inf]))
    rows = pattern.sum(-1)
    assert (rows[:, :2] < 1).all()
    torch.testing.assert_close(rows[:, 2], torch.ones(2, 5))
    torch.testing.assert_close(pattern[:, 2], scores[:, 2].softmax(-1))


def test_every_site_has_at_most_k_nonzeros(model, tokens):
    _, cache = model.run_with_cache(tokens)
    for site in model.sites():
        value = cache[model.hook_name(site)].flatten(2)
        assert value.shape[-1] == TINY.widths[site]
        assert int((value != 0).sum(-1).max()) <= TINY.topk(site)


def test_same_seed_same_bits_and_global_generator_untouched():
    state = torch.random.get_rng_state()
    a, b = SparseTransformer(TINY, seed=5), SparseTransformer(TINY, seed=5)
    assert torch.equal(state, torch.random.get_rng_state())
    assert a.fingerprint() == b.fingerprint() != SparseTransformer(TINY, seed=6).fingerprint()


def test_later_tokens_do_not_reach_earlier_logits(model, tokens):
    other = tokens.clone()
    other[:, 6:] = (other[:, 6:] + 1) % 11
    assert torch.equal(model(tokens)[:, :6], model(other)[:, :6])


def test_loss_is_next_token_cross_entropy(model, tokens):
    logits, loss = model(tokens, return_type="both")
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert torch.equal(loss, expected)
    assert torch.equal(model(tokens, return_type="loss"), expected)


def test_a_pass_can_be_run_for_its_hooks_alone_and_an_unknown_return_type_is_refused(model, tokens):
    seen = []
    hooks = [("hook_embed", lambda value, hook: seen.append(value.shape))]
    assert model.run_with_hooks(tokens, return_type=None, fwd_hooks=hooks) is None
    assert seen == [(*tokens.shape, model.config.d_model)]
    with pytest.raises(ValueError, match="return_type: got 'logit'; expected one of"):
        inspect.unwrap(SparseTransformer.forward)(model, tokens, return_type="logit")


def test_matrices_cover_every_parameter_but_bigram_and_sinks(model):
    counted = {id(m.parameter) for m in model.matrices()}
    left_out = {name for name, p in model.named_parameters() if id(p) not in counted}
    assert left_out == {"bigram", "blocks.0.attn.sink", "blocks.1.attn.sink"}
    assert [m.unit_axis for m in model.matrices() if m.name in ("0.W_O", "0.W_out", "0.W_V")] == [1, 0, 0]


def test_config_round_trip_and_errors():
    assert ModelConfig.from_json(TINY.to_json()) == TINY
    with pytest.raises(ValueError, match=r"ModelConfig: unknown key \['depth'\]"):
        ModelConfig.from_json({**TINY.to_json(), "depth": 3})
    with pytest.raises(ValueError, match=r"topk_fraction: got 0.0.*k = 0"):
        ModelConfig(d_vocab=3, topk_fraction=0.0)
    with pytest.raises(ValueError, match="n_layers: got 0; expected a whole number"):
        ModelConfig(d_vocab=3, n_layers=0)
    unhooked = replace(TINY)  # past the types that tests check and users do not
    object.__setattr__(unhooked, "act", "swish")
    with pytest.raises(ValueError, match=r"act: got 'swish'; expected one of \('gelu', 'gelu_new', 'relu'\)"):
        unhooked.__post_init__()
    with pytest.raises((ValueError, TypeError), match="topk_sites"):
        ModelConfig.from_json({"topk_sites": ["resid"]})
    with pytest.raises(ValueError, match=r"config.d_vocab: got None"):
        SparseTransformer(ModelConfig())


def test_bad_tokens_are_refused(model):
    with pytest.raises(ValueError, match="sequence of 11 tokens; expected at most n_ctx = 10"):
        model(torch.zeros(1, 11, dtype=torch.long))
    with pytest.raises(ValueError, match="ids from 0 to 11; expected 0 to 10"):
        model(torch.tensor([[0, 11]]))


def test_small_parts():
    assert torch.equal(AbsTopK(2)(torch.tensor([[1.0, -3.0, 2.0]])), torch.tensor([[0.0, -3.0, 2.0]]))
    x = torch.randn(5, 7)
    torch.testing.assert_close(RMSNorm(1e-12)(x).pow(2).mean(-1), torch.ones(5))
    linear = Linear(7, 3, 1.0)
    torch.testing.assert_close(linear(x), x @ linear.weight + linear.bias)
    assert Site(0, "attn_in").name in SITES


@pytest.mark.parametrize("feature_major", [False, True])
def test_rms_norm_has_the_gradients_of_its_formula_in_its_inputs_layout(feature_major):
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    if feature_major:
        x = x.movedim(-1, 0).contiguous().movedim(0, -1)
    x.requires_grad_()
    ours, plain = RMSNorm(1e-5)(x), x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert torch.equal(ours, plain)
    upstream = torch.randn_like(x)
    (gradient,), (expected,) = (torch.autograd.grad(y, x, upstream) for y in (ours, plain))
    torch.testing.assert_close(gradient, expected, atol=1e-14, rtol=1e-13)
    assert gradient.stride() == x.stride()
    assert torch.autograd.gradgradcheck(RMSNorm(1e-5), (x,))


@pytest.mark.parametrize("act", get_args(Activation))
def test_the_activation_is_known_to_transformer_lens_and_part_of_the_fingerprint(act):
    model = SparseTransformer(ModelConfig(**{**TINY.to_json(), "act": act}), seed=3)
    assert model.cfg.act_fn == act
    assert (model.fingerprint() == SparseTransformer(TINY, seed=3).fingerprint()) == (act == "gelu")


def test_every_attention_of_the_config_has_a_mixer():
    assert set(get_args(ModelConfig.__annotations__["attention"])) == set(MIXERS)


def test_a_mixer_brings_its_parameters_hooks_and_matrices(monkeypatch, tokens):
    class Window(Attention):
        """Each position takes a learned share of its own v, and looks at the layer's input on the way."""

        reads_input = True

        def __init__(self, config, lens, layer, **given):
            super().__init__(config, lens, layer, **given)
            self.share = torch.nn.Parameter(torch.full((config.n_heads, 1), 0.5))
            self.hook_share = torch.nn.Identity()

        def mix(self, q, k, v, x):
            assert x.shape == (4, 10, 12)
            return v * self.hook_share(self.share)

        def own_matrices(self):
            yield Matrix("share", self.share, "block", None)

    monkeypatch.setitem(MIXERS, "softmax", Window)
    model = SparseTransformer(TINY, seed=3)
    plain, cache = model.run_with_cache(tokens)
    torch.testing.assert_close(cache["blocks.1.attn.hook_z"], cache["blocks.1.attn.hook_v"] / 2)
    assert [m.name for m in model.matrices() if "share" in m.name] == ["0.share", "1.share"]
    assert "blocks.0.attn.share" in model.weight_names()
    model.set_use_split_qkv_input(True)
    torch.testing.assert_close(model(tokens), plain, atol=1e-6, rtol=1e-5)
    with pytest.raises(TypeError, match="abstract"):
        Attention(TINY, model.cfg, 0)
