"""Sparse factors of a dense model: exact where they are trivial, as sparse as asked, pruned like any model."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from induction_model import bridge
from quote_model import CORPUS as QUOTES
from quote_model import TRUE_NODES, quote_closer
from torch import Tensor

from circuits.circuit.ablation import site_values
from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import run_circuit, run_masked
from circuits.circuit.nodes import Edge, Node
from circuits.interop import LensSubject, from_gpt2
from circuits.model.checkpoint import load_checkpoint, save_checkpoint
from circuits.model.config import ModelConfig
from circuits.model.layers import Factored
from circuits.model.sites import FACTOR_TABLE, FACTOR_WEIGHTS, WEIGHTS, Site
from circuits.model.transformer import SparseTransformer
from circuits.pruning.procedure import PruneConfig, prune
from circuits.training import FactorConfig, TrainingInterrupted, factored, fit_factors
from circuits.training import factors as module
from circuits.training.factors import distances
from circuits.training.projection import budget, project_topk
from circuits.trust import TrustConfig, trust_report
from tasks import Corpus, load_task
from tasks.tokenizer import WordTokenizer

WORDS = WordTokenizer(name="ten", words=tuple("abcdefghij"))
TEXT = torch.arange(600).mul(7).remainder(10)
CORPUS = Corpus(name="sevens", tokenizer=WORDS, train=TEXT, val=TEXT[:200])
CONFIG = ModelConfig(
    d_vocab=10, n_layers=2, d_model=12, n_heads=2, d_head=3, d_mlp=16, n_ctx=8, topk_fraction=None
)
TOKENS = TEXT[:64].view(8, 8)
FEW = FactorConfig(steps=6, batch_size=4, n_val=8, density=0.25, log_every=2)


def dense(seed: int = 0, **changes: Any) -> SparseTransformer:
    """Weights, biases and all, far from zero."""
    config = replace(CONFIG, **changes)
    model = SparseTransformer(config, tokenizer=WORDS if config.d_vocab == 10 else None)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def products(model: SparseTransformer) -> dict[str, Factored]:
    return {name: found for name, found in model.named_modules() if isinstance(found, Factored)}


@pytest.mark.parametrize("ratio", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_trivial_factors_are_exact(ratio: float, norm: str) -> None:
    model = dense(norm=norm).double()
    same = factored(model, ratio)
    with torch.no_grad():
        torch.testing.assert_close(same(TOKENS), model(TOKENS), rtol=1e-12, atol=1e-12)
    for path, product in products(same).items():
        assert torch.equal(
            product.weight, model.get_submodule(path).weight
        )  # A = W and B = I, or the other way
        assert torch.equal(product.bias, model.get_submodule(path).bias)
        assert product.first.weight.shape[1] == round(ratio * min(product.weight.shape))
    assert same.tokenizer is WORDS
    assert same.training == model.training


def test_fewer_inner_coordinates_keep_the_largest_weights() -> None:
    model = dense()
    half = products(factored(model, 0.5))["blocks.0.mlp.down"]
    whole = model.linear(0, "W_out").weight
    kept = sorted(whole.norm(dim=0).argsort(descending=True)[:6].tolist())
    others = [i for i in range(12) if i not in kept]
    assert torch.equal(half.weight[:, kept], whole[:, kept])
    assert not half.weight[:, others].any()


def test_sites_and_weights_of_a_factored_layer() -> None:
    model = factored(dense())
    names = [site.name for site in model.sites() if site.layer == 0]
    assert names[:4] == ["attn_in", "factor_q", "factor_k", "factor_v"]
    assert names.index("attn_v") < names.index("factor_o") < names.index("attn_out")
    assert (
        names.index("mlp_in")
        < names.index("factor_in")
        < names.index("mlp_neuron")
        < names.index("factor_out")
    )
    assert {row.name for row in FACTOR_TABLE} < set(names)
    found = {at.name for at in model.weights_among(model.sites())}
    assert found == set(FACTOR_WEIGHTS)
    assert {row.whole for row in FACTOR_WEIGHTS.values()} == set(WEIGHTS)
    assert not model.weights_among([Site(0, "attn_in"), Site(0, "attn_q")])  # no map leads past the factor
    with pytest.raises(ValueError, match="weight: got 'W_Q'; expected one of"):
        model.linear(0, "W_Q")


def test_an_inner_coordinate_is_a_node_by_hand() -> None:
    """Left out, it takes from the output what its row of B makes of it, and gives what its mean makes."""
    model = factored(dense())
    site, target = Site(0, "factor_in"), "blocks.0.mlp.hook_pre"
    kept: dict[str, Tensor] = {}
    hooks = [
        ("blocks.0.mlp.up.hook_inner", lambda x, hook: kept.update(inner=x)),
        (target, lambda x, hook: kept.update(out=x)),
    ]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        model(TOKENS)
    before = dict(kept)
    mask, value = torch.ones(12), torch.full((12,), 0.3)
    mask[5] = 0
    with torch.no_grad(), model.hooks(fwd_hooks=hooks[1:]):
        run_masked(model, TOKENS, {site: mask}, {site: value})
    change = (0.3 - before["inner"][..., 5:6]) * model.linear(0, "W_in_B").weight[5]
    torch.testing.assert_close(kept["out"], before["out"] + change)


@pytest.fixture(scope="module")
def fitted() -> Any:
    return fit_factors(dense(), FEW, corpus=CORPUS, progress=False)


def test_the_budget_is_kept_exactly_and_nothing_else_moves(fitted: Any) -> None:
    whole, total = dense().state_dict(), 0
    for path, product in products(fitted.model).items():
        for factor in (product.first.weight, product.second.weight):
            assert int(factor.count_nonzero()) == budget(factor.numel(), 0.25)
            total += int(factor.count_nonzero())
        assert bool((product.first.weight != 0).any(dim=0).all())  # min_alive, inside the budget
        assert bool((product.second.weight != 0).any(dim=1).all())
        assert torch.equal(product.second.bias, whole[f"{path}.bias"])
        assert not product.first.bias.any()
    assert fitted.metrics["n_nonzero"] == total
    rest = {name: value for name, value in fitted.model.state_dict().items() if name in whole}
    assert len(rest) > 5
    assert all(torch.equal(value, whole[name]) for name, value in rest.items())


def test_the_same_seed_gives_the_same_bits(fitted: Any) -> None:
    again = fit_factors(dense(), FEW, corpus=CORPUS, progress=False)
    assert again.model.fingerprint() == fitted.model.fingerprint()
    assert again.history == fitted.history
    other = fit_factors(dense(), replace(FEW, seed=1), corpus=CORPUS, progress=False)
    assert other.model.fingerprint() != fitted.model.fingerprint()


def test_ctrl_c_leaves_a_fit_that_goes_on_to_the_same_bits(
    fitted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_step, path = module._Fit.one_step, tmp_path / "stopped.safetensors"

    def interrupted(self: Any) -> None:
        one_step(self)
        if self.step == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(module._Fit, "one_step", interrupted)
    with pytest.raises(TrainingInterrupted):
        fit_factors(dense(), FEW, corpus=CORPUS, checkpoint=path, progress=False)
    monkeypatch.undo()
    resumed = fit_factors(dense(), FEW, corpus=CORPUS, resume=path, progress=False)
    assert resumed.model.fingerprint() == fitted.model.fingerprint()
    assert resumed.history == fitted.history
    with pytest.raises(ValueError, match="resume: .* is no interrupted fit of this model, text and settings"):
        fit_factors(dense(1), FEW, corpus=CORPUS, resume=path, progress=False)


def test_a_fit_is_better_than_cutting_and_wrong_factors_are_found() -> None:
    model = dense()
    config = replace(FEW, steps=80, batch_size=8, density=0.4)
    found = fit_factors(model, config, corpus=CORPUS, progress=False).model
    cut = factored(model)
    for product in products(cut).values():
        for factor in (product.first.weight, product.second.weight):
            project_topk(factor.data, budget(factor.numel(), 0.4))
    with torch.no_grad():
        near, far = (distances(model, each, TOKENS) for each in (found, cut))
        assert near["kl"] < 0.5 * far["kl"]
        assert near["outputs"] < 0.5 * far["outputs"]
        wrong = found.linear(1, "W_out_B").weight
        wrong.copy_(wrong.flip(0))
        assert distances(model, found, TOKENS)["outputs"] > 2 * near["outputs"]
        assert distances(model, factored(model), TOKENS)["outputs"] < 1e-9


@pytest.fixture(scope="module")
def closer() -> tuple[SparseTransformer, Circuit]:
    """The model that closes quotes, in trivial factors, and its circuit."""
    model = factored(quote_closer())
    config = PruneConfig(
        starts=2, steps=60, n_eval=32, n_test=200, n_mean=64, calibrate=False, objective="task"
    )
    return model, prune(model, load_task("quotes"), config, corpus=QUOTES, progress=False)


def test_exactly_the_true_circuit_with_its_inner_coordinates(closer: Any) -> None:
    _, circuit = closer
    a, b, k, v, o = TRUE_NODES
    key, value, out = (Node(0, name, i) for name, i in (("factor_k", 1), ("factor_v", 2), ("factor_o", 2)))
    assert set(circuit.nodes) == {*TRUE_NODES, key, value, out}
    assert set(circuit.edges) == {
        *(Edge(a, key, 8.0), Edge(key, k, 1.0), Edge(b, value, 2.0), Edge(value, v, 1.0)),
        *(Edge(v, out, 1.0), Edge(out, o, 4.0)),
    }
    assert circuit.metrics["one_minimal"] is True


def test_a_factored_model_is_trusted_drawn_and_kept(closer: Any, tmp_path: Path) -> None:
    model, circuit = closer
    few = TrustConfig(n_pairs=8, n_random=2, n_knockouts=2, n_greedy=1, control_steps=5)
    report = trust_report(model, circuit, config=few)
    assert report["sufficiency"].verdict == "pass"
    assert report["random circuits"].verdict == "pass"
    assert "random model" in {entry.name for entry in report.entries}
    assert circuit.plot().data
    circuit.save(tmp_path / "circuit.json")
    save_checkpoint(tmp_path / "model.safetensors", model)
    again = load_checkpoint(tmp_path / "model.safetensors").model
    assert again.fingerprint() == circuit.model_hash
    assert Circuit.load(tmp_path / "circuit.json") == circuit
    tokens = load_task("quotes").batch(8, split="test", seed=0).clean
    with torch.no_grad():
        assert torch.equal(run_circuit(again, circuit, tokens), run_circuit(model, circuit, tokens))
        again.linear(0, "W_V_B").weight[3, 3] += 1
    with pytest.raises(ValueError, match="circuit: it belongs to model"):
        run_circuit(again, circuit, tokens)


def test_a_circuit_without_an_inner_coordinate_fails_its_report(closer: Any) -> None:
    """What trust is for: a path that is cut in the middle is found."""
    model, circuit = closer
    gone = Node(0, "factor_v", 2)
    broken = replace(
        circuit,
        nodes=tuple(node for node in circuit.nodes if node != gone),
        edges=tuple(edge for edge in circuit.edges if gone not in edge[:2]),
        facts={},
    )
    few = TrustConfig(n_pairs=8, n_random=2, n_knockouts=2, n_greedy=1, control_steps=0)
    assert trust_report(model, broken, config=few)["sufficiency"].verdict == "fail"


def test_what_multiplies_by_the_weights_of_single_heads_is_refused() -> None:
    with pytest.raises(
        ValueError, match="model: it has factor_ratio=1.0; use_split_qkv_input expected factor_ratio=0"
    ):
        factored(dense()).set_use_split_qkv_input(True)


ENCDEC = dict(arch="encdec", n_source=3, pad=0)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: factored(factored(dense())),
            "model: its weights are factors already .* expected whole matrices",
        ),
        (lambda: fit(factored(dense())), "model: its weights are factors already"),
        (lambda: factored(dense(**ENCDEC)), "factor_ratio: got 1 with arch='encdec'; expected 0"),
        (lambda: fit("model.safetensors"), "model: got a str; fit_factors expected a SparseTransformer"),
        (
            lambda: fit(LensSubject(bridge("gpt2").eval())),
            "model: got a LensSubject; fit_factors expected a Sparse",
        ),
        (lambda: fit(dense(), density=0.01), "density: 0.01 is too small for .* 1 weights for each of"),
        (lambda: FactorConfig(density=0.0), r"density: got 0.0; expected a density in \(0, 1\]"),
        (
            lambda: FactorConfig(kl=0.0, outputs=0.0),
            "kl: got 0.0; expected a coefficient above 0, here or as outputs",
        ),
        (lambda: FactorConfig(anneal=(0.5, 0.2)), "anneal: got .* expected two rising fractions"),
        (lambda: fit(dense(), ratio=-1.0), "ratio: got -1.0; expected"),
        (lambda: fit(dense(d_vocab=9)), "corpus: got .* of 10 tokens for a model of 9"),
    ],
)
def test_bad_inputs_are_refused_by_name(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def fit(model: Any, **changes: Any) -> Any:
    return fit_factors(model, replace(FEW, **changes), corpus=CORPUS, progress=False)


def gpt2(seed: int = 0) -> Any:
    """A small GPT-2 with weights, gains and biases far from those it starts with."""
    made = bridge("gpt2").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return made


def test_gpt2_is_a_model_of_ours_with_the_same_logits_and_sites() -> None:
    wrapped = LensSubject(gpt2())
    ours = from_gpt2(wrapped)
    tokens = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), wrapped(tokens), rtol=1e-4, atol=1e-4)
    theirs = site_values(wrapped, tokens)
    for site, value in site_values(ours, tokens).items():
        if site in theirs:
            torch.testing.assert_close(value, theirs[site], rtol=1e-4, atol=1e-4)
    words = WordTokenizer(name="fifty", words=tuple(f"w{i}" for i in range(50)))
    text = Corpus(name="fifty", tokenizer=words, train=tokens.flatten().repeat(4), val=tokens.flatten())
    found = fit_factors(ours, replace(FEW, steps=2), corpus=text, progress=False)
    assert found.model.config.norm == "layer"
    assert found.metrics["n_nonzero"] < ours.n_nonzero()


def test_what_is_no_gpt2_is_refused() -> None:
    with pytest.raises(
        ValueError, match="model: it has normalization_type='RMS'; expected 'LN', a decoder such as"
    ):
        from_gpt2(bridge("llama").eval())
    with pytest.raises(ValueError, match="bridge: got a SparseTransformer; expected a TransformerBridge"):
        from_gpt2(dense())
    other = gpt2()
    other.cfg.act_fn = "relu"  # says what it does not do: the copy is held against it
    with pytest.raises(
        ValueError, match="with its weights copied, logits differ by .* expected at most 0.001"
    ):
        from_gpt2(other)
