"""Composition: TransformerLens's scores, nulls that are calibrated, an edge found among decoys, paths, effects."""

import math

import pytest
import torch
from induction_model import bridge, induction_model
from transformer_lens.utilities import composition_scores as lens_scores

from circuits.circuit.nodes import Node
from circuits.composition import (
    Reader,
    Writer,
    benjamini_hochberg,
    composition,
    composition_on_data,
    composition_scores,
    head_paths,
    parts,
    virtual_head,
    weight_paths,
)
from circuits.composition.parts import by_grams, by_products, grams_are_cheaper, norms
from circuits.heads import repeated_tokens
from circuits.heads.weights import ov_circuit, qk_circuit
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer


def small(seed: int = 0, *, density: float = 1.0, n_layers: int = 3) -> SparseTransformer:
    config = ModelConfig(
        d_vocab=11, n_layers=n_layers, d_model=16, n_heads=2, d_head=4, d_mlp=8, n_ctx=10, topk_fraction=None
    )
    model = SparseTransformer(config, seed=seed).eval()
    with torch.no_grad():
        for matrix in model.matrices():
            matrix.parameter.mul_(torch.rand_like(matrix.parameter) < density)
            matrix.parameter.mul_(20)
    return model


def port(parts, scores, name):
    """Scores of one port as [layer, head, layer, head]."""
    columns = [i for i, reader in enumerate(parts.readers) if (reader.port, reader.kind) == (name, "head")]
    n = len(columns)
    return scores[:n, columns].view(-1, 2, n // 2, 2) if n == 6 else scores[:n, columns]


@pytest.mark.parametrize("name", ["Q", "K", "V"])
def test_scores_equal_those_of_transformer_lens(name):
    model = small()
    OV, QK = ov_circuit(model), qk_circuit(model)
    right = {"Q": QK, "K": QK.T, "V": OV}[name]
    theirs = lens_scores(OV, right)
    parts, scores = composition_scores(model)
    later = torch.arange(3)[:, None, None, None] < torch.arange(3)[None, None, :, None]
    torch.testing.assert_close(port(parts, scores, name), torch.where(later, theirs, 0.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("name", ["Q", "K", "V"])
def test_scores_equal_those_of_a_bridge(kind, name):
    model = bridge(kind)
    theirs = model.all_composition_scores(name).scores.detach()
    parts, scores = composition_scores(model)
    torch.testing.assert_close(port(parts, scores, name), theirs.reshape(8, 8), atol=1e-6, rtol=0)


def test_gram_matrices_give_the_scores_of_products(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, 24, 40, generator=generator) for n in (7, 11))
    left[0, :, :20], right[0, :, 20:] = 0, 0  # they share no channel
    left[1] = 0
    exact = by_products(left.double(), right.double()).sqrt()
    sizes = norms([left.double()])[:, None] * norms([right.double()])
    assert grams_are_cheaper(torch.empty(270, 64, 576), torch.empty(810, 64, 576))
    assert not grams_are_cheaper(torch.empty(8, 8, 128), torch.empty(24, 8, 128))
    for numbers in (2**24, 40 * 18 * 3, 1):
        monkeypatch.setattr(parts, "GRAM_NUMBERS", numbers)
        found = by_grams(left, right).sqrt()
        assert float((found - exact).div(sizes.clamp_min(1)).abs().max()) < 1e-6
        assert found[0, 0] == 0 == found[1].abs().max()


def test_layers_are_chosen_and_scores_stay_what_they_are():
    model = small()
    whole, some = (
        composition(model, layers=layers, n_null=2, max_null=2, neurons=[(1, 3)]) for layers in (None, [1, 2])
    )
    assert {writer.layer for writer in some.writers} == {1, 2} == {reader.layer for reader in some.readers}
    for edge in some.edges:
        assert edge.score == whole.edge(str(edge.writer), str(edge.reader)).score
    for layers in ([], [9]):
        with pytest.raises(ValueError, match="layers: got .*; expected some of the model's"):
            composition(model, layers=layers)


def test_a_bar_says_what_is_left(capsys):
    composition(small(), n_null=3, max_null=3, progress=True)
    assert "for 3 draws of all pairs" in capsys.readouterr().err
    composition(small(), n_null=3, max_null=3)
    assert capsys.readouterr().err == ""


def test_neurons_on_both_ends():
    model = small()
    parts, scores = composition_scores(model, neurons=[(0, 3), (1, 5)])
    at = {str(writer): i for i, writer in enumerate(parts.writers)}
    to = {str(reader): i for i, reader in enumerate(parts.readers)}
    w_out, w_in = model.blocks[0].mlp.W_out[3].detach(), model.blocks[1].mlp.W_in[:, 5].detach()
    cosine = (w_out @ w_in / w_out.norm() / w_in.norm()).abs()
    torch.testing.assert_close(scores[at["L0N3"], to["L1N5.in"]], cosine)
    M = model.blocks[2].attn.W_V[1].detach() @ model.blocks[2].attn.W_O[1].detach()
    torch.testing.assert_close(scores[at["L0N3"], to["L2H1.V"]], (w_out @ M).norm() / w_out.norm() / M.norm())
    # A head writes before the neurons of its own layer read, and these before the next layer's heads.
    assert bool(parts.later[at["L1H0"], to["L1N5.in"]])
    assert not bool(parts.later[at["L1N5"], to["L1H0.K"]])


def test_gated_neurons_have_two_ports():
    parts, _ = composition_scores(bridge("llama"), neurons=[(0, 1)])
    assert [str(reader) for reader in parts.readers[-2:]] == ["L0N1.in", "L0N1.gate"]


def test_dead_heads_score_zero_and_are_never_significant():
    model = small()
    model.blocks[0].attn.o.weight.data.zero_()
    for null in ("permute", "redraw", "rotate"):
        found = composition(model, null=null, n_null=20, max_null=20)
        for values in (found.scores, found.z, found.p, found.q):
            assert bool(values.isfinite().all())
        assert bool((found.scores[:2] == 0).all())
        assert bool((found.p[:2] == 1).all())


def test_root_mean_square_under_rotation_is_exactly_one_over_root_d_model():
    model = small(density=0.3)
    found = composition(model, null="rotate", n_null=2000, max_null=2000, neurons=[(0, 0)])
    rms = found.null_rms[found.later & (found.scores > 0)]
    torch.testing.assert_close(rms, torch.full_like(rms, 1 / math.sqrt(16)), atol=0.015, rtol=0)


@pytest.mark.parametrize("null", ["permute", "redraw"])
def test_p_values_of_unrelated_heads_are_uniform(null):
    p = torch.cat(
        [
            found.p[found.later & (found.scores > 0)]
            for seed in range(6)
            for found in [composition(small(seed, density=0.5), null=null, n_null=60, max_null=60, seed=seed)]
        ]
    )
    assert float(p.mean()) == pytest.approx(0.5, abs=0.06)
    assert float((p < 0.1).float().mean()) == pytest.approx(0.1, abs=0.05)


def test_nulls_keep_what_they_say_they_keep():
    """A uniform rescaling of one head changes nothing; a shuffled one is as dense as before."""
    model = small(density=0.3)
    before = composition(model, null="redraw", n_null=10, max_null=10)
    model.blocks[0].attn.o.weight.data.mul_(7)
    after = composition(model, null="redraw", n_null=10, max_null=10)
    torch.testing.assert_close(before.scores, after.scores)
    torch.testing.assert_close(before.null_mean, after.null_mean)
    torch.testing.assert_close(before.p, after.p)


def test_composition_does_not_depend_on_the_basis_inside_a_head():
    model, R = small(), torch.linalg.qr(torch.randn(4, 4)).Q @ torch.diag(torch.rand(4) + 0.5)
    _, before = composition_scores(model)
    attn = model.blocks[1].attn
    with torch.no_grad():
        attn.W_V[0].copy_(attn.W_V[0] @ R)
        attn.W_O[0].copy_(torch.linalg.inv(R) @ attn.W_O[0])
    torch.testing.assert_close(before, composition_scores(model)[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_the_edge_is_found_among_decoys(seed):
    found = composition(induction_model(seed), seed=seed, n_null=500, max_null=8000)
    assert [str(edge) for edge in found.significant(0.05)] == ["L0H0 -> L1H0.K"]
    assert found.edge("L0H0", "L1H0.K").p < 1e-3


def test_the_same_seed_gives_the_same_draws():
    runs = [composition(small(), null="redraw", n_null=20, max_null=40, seed=3).p for _ in range(2)]
    assert bool((runs[0] == runs[1]).all())


def test_benjamini_hochberg_by_hand():
    q = benjamini_hochberg(torch.tensor([0.04, 0.01, 0.5, 0.02]))
    torch.testing.assert_close(q, torch.tensor([0.16 / 3, 0.04, 0.5, 0.04]))


def test_a_result_prints_and_serialises():
    found = composition(induction_model(), n_null=200, max_null=4000)
    assert "L0H0 -> L1H0.K" in repr(found)
    assert "<td>L0H0 -&gt; L1H0.K</td>" in found._repr_html_()
    assert found.to_json()["edges"][0][:2] == ["L0H0", "L1H0.K"]
    assert found.matrix("K").shape == (8, 8)


def test_virtual_heads_multiply_out():
    model = small()
    a, b = model.blocks[0].attn, model.blocks[2].attn
    whole = a.W_V[1] @ a.W_O[1] @ b.W_V[0] @ b.W_O[0]
    torch.testing.assert_close(virtual_head(model, [(0, 1), (2, 0)]).AB, whole.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["Q", "K", "V"])
def test_paths_are_exact_and_ranked(name):
    model = small()
    paths = head_paths(model, port=name, max_length=3, top=1000)
    assert [path.gain for path in paths] == sorted((path.gain for path in paths), reverse=True)
    assert len([path for path in paths if path.length == 2]) == 3 * 4
    assert len([path for path in paths if path.length == 3]) == 8
    path = next(path for path in paths if path.length == 3)
    OV, QK = ov_circuit(model).AB, qk_circuit(model).AB
    last = {"Q": QK, "K": QK.transpose(-2, -1), "V": OV}[name]
    M1, M2 = (OV[writer.layer, writer.number] for writer in path.writers)
    M3 = last[path.reader.layer, path.reader.number]
    strength = float((M1 @ M2 @ M3).norm() / M1.norm() / M2.norm() / M3.norm())
    assert path.strength == pytest.approx(strength, rel=1e-4)
    assert path.gain == pytest.approx(strength * 16, rel=1e-4)


def test_a_narrow_beam_keeps_the_strongest():
    model = small()
    wide = head_paths(model, max_length=3, top=3)
    assert head_paths(model, max_length=3, top=1, beam=8)[0] == wide[0]


def test_a_path_of_two_is_a_composition_score():
    model = induction_model()
    paths = {str(path): path.strength for path in head_paths(model, max_length=2, top=99)}
    found = composition(model, n_null=1, max_null=1)
    assert paths["L0H0 -> L1H0.K"] == pytest.approx(found.edge("L0H0", "L1H0.K").score, rel=1e-5)


def test_weight_paths_add_up_to_the_product():
    model = small(density=0.15)
    target = Reader(2, "head", 1, "K")
    paths = weight_paths(model, source=Writer(0, "head", 0), target=target)
    product = (model.blocks[0].attn.o.weight @ model.blocks[2].attn.k.weight).detach()
    sums = torch.zeros_like(product)
    for path in paths:
        sums[path.nodes[0].index, path.nodes[-1].index] += path.weight
    torch.testing.assert_close(sums[:4, 4:], product[:4, 4:])
    assert paths == sorted(paths, key=lambda path: (-abs(path.weight), path.nodes))


def test_weight_paths_of_two_hops_pass_through_neurons_and_heads():
    model = small(density=0.1)
    paths = weight_paths(model, hops=2)
    middles = {path.nodes[3].site for path in paths}
    assert middles == {"attn_v", "mlp_neuron"}
    path = paths[0]
    assert isinstance(path.nodes[0], Node)
    assert len(path.nodes) == 7
    assert path.nodes[1].index == path.nodes[2].index


def test_path_patching_finds_the_edge_of_the_hand_made_model():
    model = induction_model()
    data = composition_on_data(model, repeated_tokens(model, n=4))
    effect, divergence = data["L0H0", "L1H0.K"]
    assert effect > 0.5
    assert divergence > 0.1
    assert int(data.effect.argmax()) == int(data.divergence.argmax())
    # Through the norm, removing a large output also rescales whatever else a head reads: 0.1 nats, not 4.
    assert float(data.divergence.sort().values[-2]) < 0.1 * divergence
    parts, scores = composition_scores(model)
    by_pair = {
        (w, r): float(scores[i, j]) for i, w in enumerate(parts.writers) for j, r in enumerate(parts.readers)
    }
    assert -1 <= data.rank_correlation(by_pair) <= 1
    assert model.cfg.use_split_qkv_input is False


def test_path_patching_with_the_same_text_changes_nothing():
    model = small()
    tokens = repeated_tokens(model, n=2)
    data = composition_on_data(model, tokens, corrupt=tokens)
    assert float(data.effect.max()) < 1e-5
    assert float(data.divergence.max()) < 1e-6


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_path_patching_of_a_bridge(kind):
    model = bridge(kind)
    tokens = torch.arange(12).view(2, 6)
    pairs = [(Writer(0, "head", 1), Reader(1, "head", 2, port)) for port in ("Q", "K", "V")]
    data = composition_on_data(model, tokens, pairs=pairs)
    assert bool((data.effect > 0).all())
    assert bool(data.effect.isfinite().all())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: composition(small(), n_null=0), "n_null: got 0"),
        (lambda: composition(small(), neurons=[(0, 8)]), "neurons: got \\(0, 8\\)"),
        (lambda: composition(small(), n_null=1).edge("L0H0", "L0H1.K"), "edge: no pair"),
        (lambda: composition(small(), n_null=1).matrix("gate"), "port: got 'gate'"),
        (lambda: virtual_head(small(), [(1, 0), (0, 0)]), "heads: got"),
        (lambda: head_paths(small(), max_length=1), "max_length"),
        (lambda: weight_paths(small(), hops=0), "hops: got 0"),
        (lambda: weight_paths(small(), limit=10), "more than limit = 10 paths"),
        (
            lambda: composition_on_data(
                small(), torch.zeros(1, 3).long(), pairs=[(Writer(1, "head", 0), Reader(0, "head", 0, "K"))]
            ),
            "pairs: got L1H0 -> L0H0.K",
        ),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_figures_of_composition():
    found = composition(induction_model(), n_null=200, max_null=4000)
    figure = found.plot()
    marked = [trace for trace in figure.data if trace.type == "scatter" and len(trace.x)]
    assert [(trace.x[0], trace.y[0], trace.xaxis) for trace in marked] == [(0, 0, "x2")]
    graph = found.plot_graph()
    assert [trace.name for trace in graph.data if trace.name] == ["K-composition"]
    assert "1 edge at 5%" in graph.layout.title.text


def test_a_graph_without_a_significant_edge_dots_the_strongest_and_says_so():
    found = composition(small(), n_null=20, max_null=20)
    graph = found.plot_graph(rate=0.0)
    assert "no edge at 0% false discovery; dotted: the 5 strongest" in graph.layout.title.text
    dotted = [trace for trace in graph.data if trace.line.dash == "dot"]
    assert [trace.text[0].partition("<")[0] for trace in dotted] == [
        str(e).replace(">", "&gt;") for e in found.edges[:5]
    ]
