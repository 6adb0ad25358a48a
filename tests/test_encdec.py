"""The encoder-decoder: against torch's own, its masks, its losses, and what it says."""

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from circuits.circuit.ablation import ablation_values, mean_values
from circuits.circuit.masked import run_masked
from circuits.model.checkpoint import load_checkpoint, save_checkpoint
from circuits.model.config import ModelConfig
from circuits.model.encdec import sinusoids
from circuits.model.sites import Site, weights_among
from circuits.model.transformer import SparseTransformer
from circuits.model.translate import penalty, translate
from circuits.training.config import TrainConfig, published_lr
from circuits.training.losses import training_loss
from circuits.training.updates import learning_rate
from circuits.zoo import load
from docs.experiments import torch_twin as twins
from docs.experiments.encdec_circuit import subjects
from docs.experiments.encdec_page import write_table
from docs.experiments.torch_twin import gradient_pairs, parity, run_twin, torch_twin
from tasks.transduction import NOUNS, Transduction
from tasks.transduction import rows as strings

SHAPE: dict[str, Any] = dict(
    d_vocab=11, n_source=5, pad=0, n_ctx=12, n_layers=2, d_model=16, n_heads=4, d_head=4, d_mlp=24
)
KINDS = {
    "sparse": ModelConfig(arch="encdec", **SHAPE),
    "original": ModelConfig.original(**SHAPE),
    "pre layer": ModelConfig.original(**SHAPE, norm_position="pre"),  # type: ignore[arg-type]
    "halves": ModelConfig(arch="encdec", positions="sinusoid_halves", norm_position="post", **SHAPE),
}


def noisy(config: ModelConfig, seed: int = 0, scale: float = 0.3) -> SparseTransformer:
    model = SparseTransformer(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def rows(n: int = 6, seed: int = 0) -> Tensor:
    """Sources of 2 to 5 tokens, targets of 7, the last ones padded."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 11, (n, 12), generator=generator)
    for i in range(n):
        tokens[i, 2 + i % 4 : 5] = 0
        tokens[i, 12 - i % 3 :] = 0
    return tokens


@pytest.fixture(params=list(KINDS))
def model(request: pytest.FixtureRequest) -> SparseTransformer:
    return noisy(KINDS[request.param])


def test_config_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="n_source: got 0"):
        ModelConfig(arch="encdec", pad=0)
    with pytest.raises(ValueError, match="n_source: got 63.*expected 1 to n_ctx - 2"):
        ModelConfig(arch="encdec", pad=0, n_source=63)
    with pytest.raises(ValueError, match="arch: got 'decoder' with n_source=4"):
        ModelConfig(n_source=4)
    with pytest.raises(ValueError, match="attention: got 'compose' with arch='encdec'"):
        ModelConfig(arch="encdec", attention="compose", **SHAPE)


@pytest.mark.parametrize("layout", ["sinusoid", "sinusoid_halves"])
@pytest.mark.parametrize("d_model", [8, 7])
def test_sinusoids(layout: Any, d_model: int) -> None:
    table = sinusoids(9, d_model, layout)
    n = (d_model + 1) // 2
    for p, i in itertools.product(range(9), range(n)):
        if layout == "sinusoid":
            angle, at = p / 10_000 ** (2 * i / d_model), (2 * i, 2 * i + 1)
        else:
            angle, at = p / 10_000 ** (i / (n - 1)), (i, n + i)
        for place, value in zip(at, (math.sin(angle), math.cos(angle)), strict=True):
            if place < d_model:
                assert float(table[p, place]) == pytest.approx(value, abs=1e-6)
    with pytest.raises(ValueError, match="layout: got 'learned'"):
        sinusoids(3, 4, "learned")


# Against torch.nn.Transformer.


@pytest.mark.parametrize("position", ["post", "pre"])
def test_equals_torch_forward_and_gradients(position: Any) -> None:
    config = replace(KINDS["original"], norm_position=position)
    model = noisy(config)
    twin = torch_twin(model)
    tokens = rows()
    expected = run_twin(model, twin, tokens)
    logits = model(tokens)
    torch.testing.assert_close(logits[:, 5:], expected, atol=1e-5, rtol=1e-5)
    assert not logits[:, :5].any()

    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4)) / 50
    (expected * weight).sum().backward()
    (logits[:, 5:] * weight).sum().backward()
    grads = {id(p): p.grad for p in model.parameters()}
    assert all(grad is not None for grad in grads.values())
    for ours, theirs in gradient_pairs(model, twin):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_gradients_are_compared_where_no_rounding_turns_a_relu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One neuron of this model lies on either side of zero by the last bit of float32, and its gradient with it."""
    shape: Any = Transduction().shape()
    config = ModelConfig.original(**shape, n_layers=3, d_model=64, n_heads=4, d_head=16, d_mlp=128)
    tokens = strings("copy", 64, split="test")
    found = parity(config, tokens)
    assert found["logits"] < 1e-5
    assert found["gradients"] < 1e-12
    monkeypatch.setattr(twins, "run_twin", lambda *given: 1.001 * run_twin(*given))
    off = parity(config, tokens)
    assert off["logits"] > 1e-4
    assert off["gradients"] > 1e-6


# What must not matter.


def test_padding_and_future_change_nothing(model: SparseTransformer) -> None:
    tokens = rows()
    before = model(tokens)
    longer = tokens.clone()
    longer[:, 9:] = (tokens[:, 9:] + 3) % 10 + 1
    assert torch.equal(model(longer)[:, 5:9], before[:, 5:9])
    assert not torch.equal(model(longer)[:, 9:], before[:, 9:])
    if model.encoder is not None and model.encoder.W_E is not None:
        with torch.no_grad():  # what a padded place holds is seen by no other
            model.encoder.W_E[0] += 5.0
        torch.testing.assert_close(model(tokens), before, atol=1e-5, rtol=1e-5)
    shorter = tokens[tokens[:, 4] == 0]
    changed = shorter.clone()
    changed[:, 0] = shorter[:, 0] % 10 + 1
    assert not torch.allclose(model(changed)[:, 5:], model(shorter)[:, 5:])


def test_a_source_of_padding_alone_adds_nothing(model: SparseTransformer) -> None:
    tokens = rows()
    tokens[0, :5] = 0
    _, cache = model.run_with_cache(tokens, return_cache_object=False)
    names = [name for name in cache if name.endswith("pattern") and ("encoder" in name or "cross" in name)]
    assert len(names) == 4
    assert all(not cache[name][0].any() and bool(cache[name][1].any()) for name in names)
    model(tokens, return_type="loss").backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_loss_is_of_the_target_without_padding(model: SparseTransformer) -> None:
    tokens = rows()
    log_probs = model(tokens).log_softmax(-1)
    terms = [
        -log_probs[i, p, tokens[i, p + 1]]
        for i, p in itertools.product(range(len(tokens)), range(5, 11))
        if tokens[i, p + 1] != 0
    ]
    torch.testing.assert_close(model(tokens, return_type="loss"), torch.stack(terms).mean())
    smooth = [
        -0.9 * log_probs[i, p, tokens[i, p + 1]] - 0.1 * log_probs[i, p].mean()
        for i, p in itertools.product(range(len(tokens)), range(5, 11))
        if tokens[i, p + 1] != 0
    ]
    torch.testing.assert_close(training_loss(model, tokens, 0.1), torch.stack(smooth).mean())
    with pytest.raises(ValueError, match="sequences of 6 token for a loss; expected at least 7"):
        model(tokens[:, :6], return_type="loss")


def test_warm_up_schedule_is_the_published_one() -> None:
    config = TrainConfig.original(steps=1000, warmup=0.1, lr=published_lr(64, 100))
    for step in (1, 50, 100, 101, 400, 999):
        expected = 64**-0.5 * min(step**-0.5, step * 100**-1.5)
        assert learning_rate(config, step / 1000, 1.0) == pytest.approx(expected)


def test_tied_embeddings_are_one_matrix() -> None:
    model = noisy(KINDS["original"])
    assert [name for name, _ in model.named_parameters() if name.endswith(("W_E", "W_U"))] == ["W_E"]
    assert torch.equal(model.W_U, model.W_E.T)
    assert {"W_U", "encoder.W_E"}.isdisjoint(m.name for m in model.matrices())


def test_checkpoint(model: SparseTransformer, tmp_path: Any) -> None:
    path = save_checkpoint(tmp_path / "m.safetensors", model)
    for compact in (False, True):
        again = load_checkpoint(path, compact=compact).model
        assert again.fingerprint() == model.fingerprint()
        assert torch.allclose(again(rows()), model(rows()), atol=1e-5)


# Sites.


def test_all_open_is_the_model_and_each_site_matters(model: SparseTransformer) -> None:
    tokens = rows()
    plain = model(tokens)
    values = ablation_values(model, tokens, "zero")
    assert list(values) == model.sites()
    assert len(values) == 2 * (8 + 14)
    open = {site: torch.ones(width) for site, width in model.widths.items()}
    assert torch.equal(run_masked(model, tokens, open, values), plain)
    for site in model.sites():
        one = run_masked(model, tokens, {site: torch.zeros(model.widths[site])}, values)
        assert not torch.equal(one, plain), site


def test_means_are_over_text_alone(model: SparseTransformer) -> None:
    tokens = rows()
    names = {site: model.hook_name(site) for site in model.sites()}
    _, cache = model.run_with_cache(tokens, return_cache_object=False)
    means = mean_values(model, tokens, batch_size=4)
    for site, name in names.items():
        value = cache[name].flatten(2)
        source = value.shape[1] == 5
        assert source == (site.stack == "encoder" or site.name in ("cross_memory", "cross_k", "cross_v"))
        real = (tokens[:, :5] if source else tokens[:, 5:]) != 0
        torch.testing.assert_close(means[site], value[real].mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_cut_weights_pass_means(model: SparseTransformer) -> None:
    """Every weight cut is every source at its mean."""
    tokens = rows()
    values = mean_values(model, tokens)
    masks = {site: torch.ones(width) for site, width in model.widths.items()}
    weights = weights_among(values)
    assert len(weights) == 2 * (6 + 10)
    for at in weights:
        cut = {at: torch.zeros(model.linear(*at).weight.shape)}
        found = run_masked(model, tokens, masks, values, cut)
        name = model.hook_name(at.target)
        constant = values[at.source] @ model.linear(*at).weight + model.linear(*at).bias
        topk: Any = model.layers_of(at.stack)[at.layer]

        def put(value: Tensor, hook: Any, constant: Tensor = constant, at: Any = at, topk: Any = topk) -> Any:
            part = {"attn": topk.attn, "cross": getattr(topk, "cross", None), "mlp": topk.mlp}[
                at.target.name.split("_")[0]
            ]
            if at.target.name == "mlp_neuron":
                new = part.topk_neuron(part.act(constant))
            elif at.target.name.endswith("_out"):
                new = getattr(topk, f"topk_{at.target.name}")(constant)
            else:
                new = getattr(part, f"topk_{at.target.name[-1]}")(constant)
            return new.view(value.shape[2:]).expand_as(value)

        with model.hooks(fwd_hooks=[(name, put)]):
            torch.testing.assert_close(found, model(tokens), atol=2e-5, rtol=1e-4)


def test_site_names_round_trip() -> None:
    for text in ("encoder.1.attn_q", "0.cross_memory", "1.cross_v"):
        assert str(Site.parse(text)) == text
    with pytest.raises(ValueError, match="expected one of"):
        noisy(KINDS["sparse"]).linear(0, "W_CQ", "encoder")


# Translation.

START, END = 1, 2


def log_prob_of(model: SparseTransformer, source: Tensor, said: list[int]) -> float:
    row = torch.cat([source, torch.tensor([START, *said[:-1]])])[None]
    with torch.no_grad():
        steps = model(row)[0, 5:].log_softmax(-1)
    return float(steps[torch.arange(len(said)), torch.tensor(said)].sum())


def naive_greedy(model: SparseTransformer, source: Tensor, room: int) -> list[int]:
    said: list[int] = []
    while len(said) < room and (not said or said[-1] != END):
        logits = model(torch.cat([source, torch.tensor([START, *said])])[None])
        said.append(int(logits[0, -1].argmax()))
    return said


@pytest.mark.slow
def test_greedy_with_and_without_cache(model: SparseTransformer) -> None:
    source = rows()[:, :5]
    for cache in (True, False):
        for row, said in zip(
            source, translate(model, source, start=START, end=END, cache=cache), strict=True
        ):
            expected = naive_greedy(model, row, 7)
            assert [*said.tokens, *[END] * said.ended] == expected
            assert said.log_prob == pytest.approx(log_prob_of(model, row, expected), abs=1e-4)
            assert said.score == pytest.approx(said.log_prob / penalty(len(expected), 0.6), abs=1e-4)
    assert model.given.past is None


def test_cached_steps_equal_one_pass(model: SparseTransformer) -> None:
    from circuits.model.mixers.past import Past

    tokens = rows()
    whole = model(tokens)[:, 5:]
    memory = model.encode(tokens[:, :5])
    model.given.past = Past()
    steps = [model.decode(tokens[:, 5 + p : 6 + p], memory, first=p) for p in range(7)]
    model.given.past = None
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-4)


def test_beam_of_one_is_greedy(model: SparseTransformer) -> None:
    from circuits.model.translate import _beam, _Steps

    source = rows()[:, :5]
    with torch.no_grad():
        for row, greedy in zip(source, translate(model, source, start=START, end=END), strict=True):
            one = _beam(_Steps(model, row[None], START, True), END, 7, 1, 0.6)
            assert one.tokens == greedy.tokens
            assert one.ended == greedy.ended
            assert one.score == pytest.approx(greedy.score, abs=1e-4)


@pytest.mark.parametrize("power", [0.0, 0.6, 2.0])
def test_wide_beam_is_exhaustive_search(power: float) -> None:
    config = replace(KINDS["sparse"], d_vocab=4, n_ctx=5 + 4)
    for seed in range(3):
        model = noisy(config, seed=seed, scale=0.5)
        source = torch.tensor([3, 1, 2, 0, 0])
        every = [
            [*body, END]
            for n in range(3)
            for body in itertools.product([t for t in range(4) if t != END], repeat=n)
        ]
        scored = {tuple(s): log_prob_of(model, source, s) / penalty(len(s), power) for s in every}
        best = max(scored, key=lambda s: scored[s])
        for cache in (True, False):
            found = translate(
                model,
                source[None],
                start=START,
                end=END,
                beam=4**3,
                max_tokens=3,
                length_penalty=power,
                cache=cache,
            )[0]
            assert (*found.tokens, END) == best
            assert found.ended
            assert found.score == pytest.approx(scored[best], abs=1e-4)


def test_translate_refuses() -> None:
    model, source = noisy(KINDS["sparse"]), rows()[:, :5]
    decoder = SparseTransformer(ModelConfig(d_vocab=11))
    for change, said in (
        (dict(model=decoder, source=source[:, :0], max_tokens=3), "arch='decoder'; expected 'encdec'"),
        (dict(source=source[:, :4]), "got 4 places; expected n_source = 5"),
        (dict(source=source + 9), "expected 0 to 10"),
        (dict(beam=0), "got 0, 0.6"),
        (dict(end=11), "end: got 11"),
        (dict(max_tokens=9), "max_tokens: got 9; expected 1 to 7"),
    ):
        given: dict[str, Any] = {"model": model, "source": source, "start": START, "end": END, **change}
        with pytest.raises(ValueError, match=said):
            translate(given.pop("model"), given.pop("source"), **given)


def test_same_seed_same_bits() -> None:
    a, b = (SparseTransformer(KINDS["sparse"], seed=3) for _ in range(2))
    assert a.fingerprint() == b.fingerprint() != SparseTransformer(KINDS["sparse"], seed=4).fingerprint()
    assert F.cosine_similarity(a(rows()).flatten(), b(rows()).flatten(), dim=0) > 0.999


def test_page_has_the_results(tmp_path: Any) -> None:
    page = tmp_path / "explanation" / "encdec.md"
    page.parent.mkdir()
    (tmp_path / "results").mkdir()
    circuit = {
        "n_nodes": 13,
        "n_edges": 11,
        "margin_error": 0.0381,
        "task_loss": 0.1409,
        "task_accuracy": 0.975,
        "one_minimal": True,
    }
    circuit |= {"stacks": {"encoder": 2, "decoder": 11}, "failed": ["KL, clean"]}
    run = {
        "seed": 0,
        "copy": {"accuracy": 1.0},
        "reverse": {"accuracy": 0.998},
        "circuits": {"margins": circuit},
    }
    run["translate"] = {"seen": 1.0, "held_out": 0.91, "n_nonzero": 7408, "density": 0.0798}
    made = {"command": "c", "seeds": [0], "minutes": 3.2, "machine": "m", "date": "d"}
    report = {"parity": {"post": {"logits": 3.3e-6, "gradients": 6e-7}}, "runs": [run], **made}
    (tmp_path / "results" / "encdec.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match="between which the table goes"):
        write_table(tmp_path)
    page.write_text("# A\n<!-- table of encdec: begin -->\nold\n<!-- table of encdec: end -->\nZ\n")
    text = write_table(tmp_path).read_text()
    assert "| 0 | 100.0% | 99.8% | 100.0% | 91.0% | 7,408 (8.0%) |" in text
    assert "| 0 | margins | 13 | 2 | 11 | 0.038 | 0.141 | 97.5% | yes | KL, clean |" in text
    assert "old" not in text
    assert text.endswith("end -->\nZ\n")


def test_the_translator_that_ships_does_what_its_page_says():
    """One head looks at the subject and fetches its gender; that channel is the circuit's most needed node."""
    found = load("translate")
    seen = subjects(found)
    assert seen.keys() == NOUNS.keys()
    assert all(noun.look > 0.9 for noun in seen.values())
    by_gender = {g: [seen[noun].value for noun, (_, own) in NOUNS.items() if own == g] for g in "mf"}
    assert min(by_gender["m"]) > 2.0
    assert max(by_gender["f"]) < 0.2
    facts = found.circuit.facts
    assert str(max(facts, key=lambda node: facts[node].effect)) == "0.cross_v.50"
