"""Sparse compute inside the model: the dense model's outputs and gradients, hooks, masks and cuts included."""

import math
from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch

from circuits import kernels
from circuits.circuit.ablation import mean_values
from circuits.circuit.masked import run_masked
from circuits.kernels import causal_attention
from circuits.model.compute import compact, sparse_compute
from circuits.model.config import ModelConfig
from circuits.model.sites import WEIGHTS, WeightAt
from circuits.model.transformer import SparseTransformer
from circuits.training.config import TrainConfig
from circuits.training.loop import train
from circuits.training.projection import project_topk
from circuits.training.updates import Updates

CONFIG = ModelConfig(d_vocab=13, n_layers=2, d_model=24, n_heads=3, d_head=5, d_mlp=37, n_ctx=9)


@pytest.fixture
def model() -> SparseTransformer:
    """Every matrix at density 1/10, one with a row and a column of zeros, in float64."""
    model = SparseTransformer(CONFIG, seed=1).double()
    for matrix in model.matrices():
        matrix.parameter.data.normal_(std=0.5)
        project_topk(matrix.parameter.data, max(1, matrix.parameter.numel() // 10))
    model.linear(0, "W_in").weight.data[3] = 0
    model.linear(0, "W_in").weight.data[:, 5] = 0
    return model


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 13, (6, 9))


def loss_and_gradients(model, tokens):
    loss = model(tokens, return_type="loss")
    return loss.detach(), torch.autograd.grad(loss, list(model.parameters()))


def test_loss_and_every_gradient_are_the_dense_models(model, tokens):
    with sparse_compute(model) as chosen:
        assert set(chosen.values()) == {"cpu"}
        loss, gradients = loss_and_gradients(model, tokens)
    expected, dense = loss_and_gradients(model, tokens)
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
    for (name, _), ours, theirs in zip(model.named_parameters(), gradients, dense, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10, msg=name)


def test_on_the_support_the_gradient_is_exact_and_elsewhere_zero(model, tokens):
    with sparse_compute(model, "support"):
        _, on_support = loss_and_gradients(model, tokens)
    _, dense = loss_and_gradients(model, tokens)
    maps = {id(linear.weight) for _, linear in model.linears()}
    for parameter, ours, theirs in zip(model.parameters(), on_support, dense, strict=True):
        expected = theirs * (parameter != 0) if id(parameter) in maps else theirs
        torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-10)


def test_one_token_and_a_single_nonzero(model):
    weight = model.linear(1, "W_out").weight
    weight.data.zero_()
    weight.data[4, 7] = 1.5
    token = torch.tensor([[3]])
    with sparse_compute(model):
        ours = model(token)
    torch.testing.assert_close(ours, model(token), atol=1e-12, rtol=1e-12)


def test_matrices_above_the_crossover_stay_dense(model):
    model.linear(0, "W_Q").weight.data.normal_()
    with sparse_compute(model) as chosen:
        assert chosen["0.W_Q"] == "dense"
        assert chosen["0.W_K"] == "cpu"
    assert all(linear.sparse is None for _, linear in model.linears())
    assert kernels.DENSE_FROM["cpu"] < 1
    with sparse_compute(model.to(torch.bfloat16)) as chosen:
        assert set(chosen.values()) == {"dense"}


def test_inside_itself_it_goes_on_and_after_an_error_it_is_off(model):
    linear = model.linear(0, "W_K")

    def fails():
        with sparse_compute(model):
            held = linear.sparse
            with sparse_compute(model):
                assert linear.sparse is held
            assert linear.sparse is held is not None
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fails()
    assert linear.sparse is None


def test_weights_may_change_between_two_uses(model, tokens):
    with sparse_compute(model):
        before = model(tokens)
    model.linear(0, "W_V").weight.data[2, 3] = 4.0
    with sparse_compute(model):
        after = model(tokens)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, model(tokens), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("frozen", [True, False])
def test_node_and_edge_masks_and_their_gradients_are_those_of_the_dense_path(model, tokens, frozen):
    model.requires_grad_(not frozen)
    values = mean_values(model, tokens)
    masks = {site: torch.rand_like(value).round().requires_grad_() for site, value in values.items()}
    edges = {
        WeightAt(layer, name): torch.rand_like(model.linear(layer, name).weight.detach()).requires_grad_()
        for layer in range(2)
        for name in WEIGHTS
    }
    leaves = [*masks.values(), *edges.values()]
    with sparse_compute(model):
        ours = run_masked(model, tokens, masks, values, edges)
        our_gradients = torch.autograd.grad(ours.square().sum(), leaves)
    theirs = run_masked(model, tokens, masks, values, edges)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)
    for a, b in zip(our_gradients, torch.autograd.grad(theirs.square().sum(), leaves), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-9)
    assert all(linear.sparse is None for _, linear in model.linears())


def test_all_open_is_the_model_bit_for_bit_sparse_or_not(model, tokens):
    values = mean_values(model, tokens)
    masks = {site: torch.ones_like(value) for site, value in values.items()}
    edges = {WeightAt(0, name): torch.ones_like(model.linear(0, name).weight) for name in WEIGHTS}
    model.requires_grad_(False)
    for way in (sparse_compute(model), nullcontext()):
        with way:
            plain = model(tokens)
            assert torch.equal(run_masked(model, tokens, masks, values), plain)
            assert torch.equal(run_masked(model, tokens, masks, values, edges), plain)


def test_every_hook_sees_what_it_sees_in_the_dense_model(model, tokens):
    with sparse_compute(model):
        _, ours = model.run_with_cache(tokens)
    _, theirs = model.run_with_cache(tokens)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("sink", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 7, 3, 5), (3, 40, 4, 8), (1, 65, 1, 16)])
def test_attention_is_naive_attention_in_outputs_and_gradients(shape, sink):
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    logit = torch.randn(shape[2], dtype=torch.float64, requires_grad=True) if sink else None
    leaves = [*inputs, *([logit] if sink else [])]
    upstream = torch.randn(shape, dtype=torch.float64)
    fast, naive = (causal_attention(*inputs, logit, impl=impl) for impl in ("cpu", "naive"))
    torch.testing.assert_close(fast, naive, atol=1e-12, rtol=1e-11)
    for a, b in zip(
        torch.autograd.grad(fast, leaves, upstream), torch.autograd.grad(naive, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-10)


def test_a_sink_at_the_ends_of_the_line():
    q = torch.randn(1, 4, 2, 3)
    out = causal_attention(q, q, q, torch.tensor([-math.inf, 80.0]))
    torch.testing.assert_close(out[:, :, 0], causal_attention(q, q, q, None)[:, :, 0])
    assert float(out[:, :, 1].abs().max()) < 1e-20


def test_attention_says_what_is_wrong():
    q = torch.randn(1, 4, 2, 3)
    with pytest.raises((ValueError, TypeError), match="sink"):
        causal_attention(q, q, q, torch.zeros(3))
    with pytest.raises(ValueError, match="impl is 'gpu'"):
        causal_attention(q, q, q, None, impl="gpu")
    with pytest.raises(ValueError, match="takes float32 or float64"):
        causal_attention(*3 * [q.to(torch.bfloat16)], None, impl="cpu")


SMALL = ModelConfig(n_layers=1, d_model=32, n_heads=2, d_head=8, d_mlp=48, n_ctx=16)
QUICK = dict(model=SMALL, steps=30, batch_size=4, density=0.05, embed_density=0.2, n_val=8, val_every=15)


@pytest.mark.parametrize("grad", ["exact", "support"])
def test_training_repeats_bit_for_bit_with_either_gradient(grad):
    config = TrainConfig(**QUICK, weight_gradient=grad, refresh=4)
    first, second = train(config, progress=False), train(config, progress=False)
    assert first.model.fingerprint() == second.model.fingerprint()
    assert all(linear.sparse is None for _, linear in first.model.linears())


def test_exact_training_keeps_the_survivors_of_dense_training(monkeypatch):
    """In float32 the two sum in other orders, so weights agree to rounding; which of them survive must agree."""
    ours = train(TrainConfig(**QUICK), progress=False).model
    monkeypatch.setitem(kernels.DENSE_FROM, "cpu", 0.0)
    theirs = train(TrainConfig(**QUICK), progress=False).model
    for a, b in zip(ours.matrices(), theirs.matrices(), strict=True):
        same = (a.parameter != 0) == (b.parameter != 0)
        assert float(same.double().mean()) > 0.999, a.name
        torch.testing.assert_close(a.parameter, b.parameter, atol=2e-3, rtol=1e-2)


def test_support_gradients_let_dropped_weights_return():
    """Between refreshes only survivors learn; at refreshes others may take their place."""
    always, never = (
        train(TrainConfig(**QUICK, weight_gradient="support", refresh=refresh), progress=False).model
        for refresh in (1, 1000)
    )
    exact = train(TrainConfig(**QUICK), progress=False).model
    assert always.fingerprint() == exact.fingerprint()
    assert never.fingerprint() != exact.fingerprint()


def test_a_compact_model_is_the_same_model_without_dense_matrices(model, tokens):
    plain, hash_before = model(tokens), model.fingerprint()
    names = {name for name, _ in model.named_parameters()}
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    n_nonzero = model.n_nonzero()
    assert compact(model) is model
    assert {name.rpartition(".")[2] for name in names - {n for n, _ in model.named_parameters()}} == {
        "weight",
        "W_U",
    }
    assert all(linear.is_compact for _, linear in model.linears())
    torch.testing.assert_close(model(tokens), plain, atol=1e-12, rtol=1e-12)
    assert model.fingerprint() == hash_before
    assert model.n_nonzero() == n_nonzero
    assert all(torch.equal(value, dense[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.float().W_U, dense["unembed.W_U"].float())
    with pytest.raises(ValueError, match="it is compact, its matrices cannot train"):
        Updates(model, TrainConfig())


def test_a_compact_model_takes_a_state_dict_as_a_dense_one_does(model, tokens):
    other = deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    own, theirs = model(tokens).detach(), other(tokens).detach()
    small = compact(deepcopy(model))
    small.load_state_dict(small.state_dict())
    torch.testing.assert_close(small(tokens), own)
    small.load_state_dict(other.state_dict())
    torch.testing.assert_close(small(tokens), theirs)
    assert all(linear.is_compact for _, linear in small.linears())
    assert small.fingerprint() == other.fingerprint()
    model.load_state_dict(small.state_dict())
    assert torch.equal(model(tokens), theirs)
    for given, message in (
        ({k: v for k, v in other.state_dict().items() if k != "unembed.W_U"}, "Missing key.*unembed.W_U"),
        (
            {**other.state_dict(), "unembed.W_U": torch.zeros(2, 3)},
            r"unembed.W_U: got shape \(2, 3\); expected",
        ),
        ({**other.state_dict(), "more": torch.zeros(2)}, "Unexpected key.*more"),
    ):
        with pytest.raises(RuntimeError, match=message):
            small.load_state_dict(given)


@pytest.mark.parametrize("per_head", [False, True])
def test_a_compact_model_is_masked_and_cut_like_any_other(model, tokens, per_head):
    model.requires_grad_(False).set_use_attn_result(per_head)
    values = mean_values(model, tokens)
    masks = {site: torch.rand_like(value).round().requires_grad_() for site, value in values.items()}
    edges = {
        WeightAt(layer, name): torch.rand_like(model.linear(layer, name).weight)
        for layer in range(2)
        for name in WEIGHTS
    }

    def outcome():
        logits = run_masked(model, tokens, masks, values, edges)
        return logits.detach(), torch.autograd.grad(logits.square().sum(), list(masks.values()))

    (expected, gradients), (ours, our_gradients) = outcome(), (compact(model), outcome())[1]
    torch.testing.assert_close(ours, expected, atol=1e-11, rtol=1e-11)
    for one, other in zip(our_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)
