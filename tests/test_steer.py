"""Steering: the move that is added, its controls, and a sweep that moves the dense model where it should."""

from dataclasses import replace

import pytest
import torch

from circuits.bridges import identity_bridges
from circuits.bridges.sides import Side
from circuits.bridges.steering import _like, channel_effects, circuit_channels, steer
from circuits.circuit.circuit import Circuit
from circuits.circuit.criterion import Criterion
from circuits.circuit.nodes import Node
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer
from circuits.plots import steering_figure
from tasks.quotes import Quotes

MODEL = ModelConfig(
    d_vocab=50, d_model=16, n_layers=1, n_heads=1, d_head=4, d_mlp=8, n_ctx=16, topk_fraction=None
)
QUOTE, BROAD = 3, 5
"""Channel that holds the quote's sign at its own position; channel into which the head writes its mean."""


@pytest.fixture(scope="module")
def task():
    return Quotes()


@pytest.fixture(scope="module")
def model(task):
    """Compiled by hand: +1 for a single quote, -1 for a double one, averaged over the context, read at the end."""
    model = SparseTransformer(replace(MODEL, sink=False, bigram=False), tokenizer=task.tokenizer)
    single, double = task.tokenizer.id("'"), task.tokenizer.id('"')
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.W_E[:, 0] = 1.0
        model.W_E[single, QUOTE], model.W_E[double, QUOTE] = 1.0, -1.0
        attn = model.blocks[0].attn
        attn.v.weight[QUOTE, 0] = 1.0
        attn.o.weight[0, BROAD] = 20.0
        model.unembed.W_U[BROAD, single], model.unembed.W_U[BROAD, double] = 3.0, -3.0
    return model


@pytest.fixture(scope="module")
def batch(task):
    return task.batch(12, split="val", seed=0)


def test_channel_effects_find_the_channel_that_decides(model, batch):
    effects = channel_effects(model, batch, "0.attn")
    assert int(effects.argmax()) == BROAD
    assert effects[torch.arange(16) != BROAD].abs().max() < 1
    assert int(channel_effects(model, batch, "embed").argmax()) == QUOTE
    with pytest.raises(ValueError, match=r"location: got '3\.mlp'"):
        channel_effects(model, batch, "3.mlp")


def test_a_circuit_names_the_channels_to_move():
    nodes = tuple(sorted([Node(0, "attn_in", QUOTE), Node(0, "attn_out", BROAD), Node(0, "mlp_neuron", 1)]))
    values = {site: torch.zeros(width) for site, width in MODEL.widths.items()}
    circuit = Circuit(
        nodes=nodes,
        edges=(),
        widths=MODEL.widths,
        n_layers=1,
        criterion=Criterion(task="quotes"),
        model_hash="0",
        values=values,
    )
    assert circuit_channels(circuit, "embed") == [QUOTE]
    assert circuit_channels(circuit, "0.attn") == [BROAD]
    assert circuit_channels(circuit, "0.mlp") == []
    with pytest.raises(ValueError, match=r"location: got '1\.attn'; expected one of \('embed', '0\.attn'"):
        circuit_channels(circuit, "1.attn")


def test_strength_one_over_an_identity_bridge_is_the_counterfactual(model, batch):
    result = steer(identity_bridges(model), batch, "0.attn", [BROAD], n_controls=2)
    one = result.strengths.index(1.0)
    n = len(batch)
    start = result.steered.p_foil[0]
    assert torch.allclose(result.steered.p_answer[one], start, atol=1e-5)
    assert torch.allclose(result.steered.p_foil[one].roll(n), result.steered.p_foil[one], atol=0.2)
    assert torch.allclose(result.steered.p_foil, result.sparse.p_foil, atol=1e-6)
    assert torch.equal(result.steered.between_two()[0], result.random_channel.between_two()[0, 0])


def test_summary_curve_and_controls(model, batch):
    result = steer(identity_bridges(model), batch, "0.attn", [BROAD], n_controls=3)
    summary = result.summary()
    assert summary["p_foil_before"] < 0.1 < 0.9 < summary["p_foil_after"]
    assert summary["monotone"]
    assert summary["strength"] <= 2
    assert summary["control_change"] < 0.1
    assert result.random_channel.p_foil.shape == (3, 9, 24)
    data = result.to_json()
    assert len(data["curves"]["random_direction"]) == 9
    assert data["channels"] == [BROAD]
    assert len(steering_figure(data).data) == 3 + 4


def test_the_same_seed_draws_the_same_controls(model, batch):
    first, second = (steer(identity_bridges(model), batch, "embed", [QUOTE], n_controls=2) for _ in range(2))
    assert torch.equal(first.random_direction.p_foil, second.random_direction.p_foil)


def test_controls_have_the_norm_of_the_move():
    move = torch.randn(2, 3, 4)
    move[0, 0] = 0
    scaled = _like(torch.randn(2, 3, 4), move)
    assert torch.allclose(scaled.norm(dim=-1), move.norm(dim=-1), atol=1e-5)
    assert torch.equal(scaled[0, 0], torch.zeros(4))


def test_an_amount_and_the_last_position(model, batch):
    bridges = identity_bridges(model)
    up = steer(
        bridges, batch, "0.attn", [BROAD], strengths=(0.0, 1.0), amount=50.0, positions="last", n_controls=1
    )
    single = model.tokenizer.id("'")
    targets = batch.tokens_and_targets()
    share = up.steered.between_two()[1]
    assert (share[targets.foil == single] > 0.9).all()
    assert (share[targets.foil != single] < 0.1).all()


def test_the_dense_model_is_left_alone(model, batch):
    before = Side(model, "dense").fingerprint()
    steer(identity_bridges(model), batch, "embed", [QUOTE], strengths=(0.0, 1.0), n_controls=1)
    assert Side(model, "dense").fingerprint() == before
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(channels=[]), "channels: got"),
        (dict(channels=[16]), "expected distinct channels of 0 to 15"),
        (dict(channels=[2, 2]), "expected distinct channels"),
        (dict(channels=list(range(9))), "expected at most half"),
        (dict(location="5.mlp"), r"location: got '5\.mlp'"),
        (dict(strengths=(1.0,)), "expected numbers with 0 among them"),
        (dict(n_controls=0), "expected at least 1 draw"),
    ],
)
def test_bad_input_is_refused(model, batch, change, message):
    options = {"location": "embed", "channels": [QUOTE], **change}
    with pytest.raises(ValueError, match=message):
        steer(identity_bridges(model), batch, **options)
