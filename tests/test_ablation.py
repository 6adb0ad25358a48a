"""Leaving parts out: bit-identical when nothing is, true means, and honest cuts."""

from dataclasses import replace

import pytest
import torch

from circuits.circuit.ablation import ablation_values, mean_values
from circuits.circuit.circuit import Circuit
from circuits.circuit.criterion import Criterion
from circuits.circuit.masked import check_belongs, run_circuit, run_masked
from circuits.circuit.nodes import Edge, Node
from circuits.circuit.parts import edges_between
from circuits.decompile import describe, to_python
from circuits.model.config import ModelConfig
from circuits.model.sites import WEIGHTS, Site, WeightAt
from circuits.model.transformer import SparseTransformer
from circuits.pruning.gates import Gates, hard_mask
from circuits.trust import trust_report
from tasks import load_task

CONFIG = ModelConfig(d_vocab=13, n_layers=2, d_model=16, n_heads=2, d_head=4, d_mlp=24, n_ctx=9)


@pytest.fixture
def model() -> SparseTransformer:
    model = SparseTransformer(CONFIG, seed=1).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.4)
    return model


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 13, (6, 9))


def masks_of(model, fill):
    return {site: torch.full((CONFIG.widths[site],), fill) for site in model.sites()}


def edge_masks_of(model, fill):
    return {
        WeightAt(layer, name): torch.full_like(model.linear(layer, name).weight, fill)
        for layer in range(CONFIG.n_layers)
        for name in WEIGHTS
    }


def test_all_open_is_the_model_bit_for_bit(model, tokens):
    values = mean_values(model, tokens)
    with torch.no_grad():
        plain = model(tokens)
        assert torch.equal(run_masked(model, tokens, masks_of(model, 1.0), values), plain)
        both = run_masked(model, tokens, masks_of(model, 1.0), values, edge_masks_of(model, 1.0))
        assert torch.equal(both, plain)


def test_all_closed_is_the_fully_ablated_model(model, tokens):
    values = mean_values(model, tokens)
    closed = run_masked(model, tokens, masks_of(model, 0.0), values)
    stream = model.W_E[tokens] + model.W_pos[:9]
    for layer in range(2):
        stream = stream + values[Site(layer, "attn_out")] + values[Site(layer, "mlp_out")]
    expected = model.unembed(model.ln_final(stream)) + model.bigram[tokens]
    torch.testing.assert_close(closed, expected)


def test_means_are_those_of_an_explicit_hook_run(model, tokens):
    values = mean_values(model, tokens, batch_size=4)
    _, cache = model.run_with_cache(tokens)
    for site in model.sites():
        explicit = cache[model.hook_name(site)].flatten(2).mean(dim=(0, 1))
        torch.testing.assert_close(values[site], explicit, atol=1e-6, rtol=1e-5)
    zeros = ablation_values(model, tokens, "zero")
    assert all(not value.any() for value in zeros.values())


def test_a_cut_weight_passes_its_sources_mean(model, tokens):
    values = mean_values(model, tokens)
    edges = edge_masks_of(model, 1.0)
    edges[WeightAt(0, "W_in")][3, 5] = 0
    out = run_masked(model, tokens, masks_of(model, 1.0), values, edges)
    weight = model.linear(0, "W_in").weight
    kept = float(weight[3, 5].detach())

    stored = {}

    def by_hand(pre, hook):
        pre = pre.clone()
        pre[..., 5] += kept * (values[Site(0, "mlp_in")][3] - stored["in"][..., 3])
        return pre

    def keep(x, hook):
        stored["in"] = x
        return x

    hooks = [("blocks.0.mlp.hook_in", keep), ("blocks.0.mlp.hook_pre", by_hand)]
    torch.testing.assert_close(model.run_with_hooks(tokens, fwd_hooks=hooks), out, atol=1e-5, rtol=1e-4)


def whole_circuit(model, tokens):

    nodes = tuple(
        Node(site.layer, site.name, i) for site in model.sites() for i in range(CONFIG.widths[site])
    )
    return Circuit(
        nodes=nodes, edges=tuple(edges_between(model, nodes)), widths=CONFIG.widths, n_layers=2,
        criterion=Criterion(task="t"), model_hash=model.fingerprint(), values=mean_values(model, tokens),
    )  # fmt: skip


def test_the_whole_model_as_a_circuit_is_the_model(model, tokens):
    circuit = whole_circuit(model, tokens)
    with torch.no_grad():
        assert torch.equal(run_circuit(model, circuit, tokens), model(tokens))


def test_a_circuit_of_another_model_is_refused(model, tokens):
    circuit = whole_circuit(model, tokens)
    model.W_E.data[0, 0] += 1
    with pytest.raises(ValueError, match="it belongs to model .* expected the same"):
        check_belongs(model, circuit)


def test_a_circuit_with_another_weight_than_the_model_is_refused(model, tokens):
    circuit = whole_circuit(model, tokens)
    at = next(i for i, edge in enumerate(circuit.edges) if edge.source.site != "attn_k")
    pair = next(i for i, edge in enumerate(circuit.edges) if edge.source.site == "attn_k")
    task = load_task("quotes")
    for i, factor in ((at, 100.0), (at, 1.001), (pair, 2.0)):
        edge = circuit.edges[i]
        edges = (*circuit.edges[:i], edge._replace(weight=factor * edge.weight), *circuit.edges[i + 1 :])
        changed = replace(circuit, edges=edges)
        said = (
            f"edge {edge.source} -> {edge.target} has weight .*, but the model's is {edge.weight:g}; expected"
        )
        for ask in (
            lambda c: run_circuit(model, c, tokens), lambda c: to_python(model, c, task),
            lambda c: describe(model, c, task), lambda c: trust_report(model, c, task),
            lambda c: c.plot(model=model),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=said):
                ask(changed)
    with torch.no_grad():
        model.linear(0, "W_in").weight[:2, :2] = 0
    more = Edge(Node(0, "mlp_in", 0), Node(0, "mlp_neuron", 1), 0.5)
    circuit = whole_circuit(model, tokens)
    with pytest.raises(ValueError, match="has weight 0.5, but the model's is 0;"):
        check_belongs(model, replace(circuit, edges=(*circuit.edges, more)))


def test_gates():
    gate = torch.tensor([-0.5, 0.0, 0.5], requires_grad=True)
    mask = hard_mask(gate)
    assert mask.tolist() == [0, 0, 1]
    mask.sum().backward()
    s = torch.tensor([-0.5, 0.0, 0.5]).sigmoid()
    torch.testing.assert_close(gate.grad, s * (1 - s))
    gates = Gates({"a": (1000,)}, seed=0, like=torch.zeros(1))
    assert gates.n_open() == 1000
    start = gates.parameters["a"].detach()
    assert 0.1 <= float(start.min()) < 0.11
    assert 0.99 < float(start.max()) <= 1
    gates.parameters["a"].data += 5
    gates.clamp()
    assert float(gates.parameters["a"].detach().max()) == 1


def test_gradients_reach_the_masks(model, tokens):
    values = mean_values(model, tokens)
    masks = {site: mask.requires_grad_() for site, mask in masks_of(model, 1.0).items()}
    run_masked(model, tokens, masks, values).square().mean().backward()
    assert all(mask.grad is not None and torch.isfinite(mask.grad).all() for mask in masks.values())


@pytest.mark.parametrize("sparse", [True, False])
def test_a_value_for_each_place_that_is_everywhere_the_same_is_a_mean(sparse):
    model = small(sparse)
    tokens = torch.randint(7, (5, 6), generator=torch.Generator().manual_seed(0))
    mean = mean_values(model, tokens)
    generator = torch.Generator().manual_seed(1)
    masks = {site: (torch.rand(v.shape, generator=generator) < 0.5).float() for site, v in mean.items()}
    edges = {
        WeightAt(0, name): (torch.rand(model.linear(0, name).weight.shape, generator=generator) < 0.5).float()
        for name in ("W_Q", "W_V", "W_O", "W_in", "W_out")
    }
    with torch.no_grad():
        plain = run_masked(model, tokens, masks, mean, edges)
        for shape in ((6,), (3, 6)):
            spread = {site: value.expand(*shape, -1) for site, value in mean.items()}
            torch.testing.assert_close(run_masked(model, tokens, masks, spread, edges), plain)


def test_resampling_a_prompt_from_itself_changes_nothing():
    model = small(True)
    tokens = torch.randint(7, (5, 6), generator=torch.Generator().manual_seed(0))
    own = ablation_values(model, tokens, "resample")
    closed = {site: torch.zeros(value.shape[-1]) for site, value in own.items()}
    cut = {
        WeightAt(0, name): torch.zeros_like(model.linear(0, name).weight) for name in ("W_Q", "W_V", "W_out")
    }
    with torch.no_grad():
        full = model(tokens)
        torch.testing.assert_close(run_masked(model, tokens, closed, own), full)
        torch.testing.assert_close(run_masked(model, tokens, closed, own, cut), full)
        other = run_masked(model, tokens.roll(1, 0), closed, own)
        turned = {site: value.roll(1, 0) for site, value in own.items()}
        torch.testing.assert_close(run_masked(model, tokens.roll(1, 0), closed, turned), full.roll(1, 0))
    assert not torch.allclose(other, full.roll(1, 0), atol=0.1), "each row meets another text"


def test_position_means_are_means_over_the_batch():
    model = small(False)
    tokens = torch.randint(7, (5, 6), generator=torch.Generator().manual_seed(0))
    at_place = ablation_values(model, tokens, "position")
    everywhere = mean_values(model, tokens)
    for site, value in at_place.items():
        assert value.shape == (6, model.config.widths[site])
        torch.testing.assert_close(value.mean(dim=0), everywhere[site])


def small(sparse):
    """One layer without a bigram table; every other weight zero, or none."""
    config = ModelConfig(
        d_vocab=7, n_layers=1, d_model=16, n_heads=2, d_head=4, d_mlp=24, n_ctx=6, bigram=False
    )
    model = SparseTransformer(config, seed=3).eval().requires_grad_(False)
    if sparse:
        for parameter in model.parameters():
            parameter.flatten()[::2] = 0
            parameter.mul_(20)
    return model
