"""Attention in few bits under the model's own hooks: the algorithm once more in loops, circuits, refusals."""

import math
import pickle
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import test_encdec_options as stacks
import test_options as options
import torch
from naive_turbo_forward import NaiveTurbo
from test_generate import made, text, variants
from torch import Tensor

from circuits.circuit import masked
from circuits.circuit.circuit import Circuit
from circuits.heads import head_report
from circuits.kernels import turbo_attention
from circuits.model.config import ModelConfig
from circuits.model.mixers.turbo import TurboConfig, approximated
from circuits.model.transformer import SparseTransformer

EXACT = TurboConfig(softmax="exact", quant="none")
QUANTS = ("none", "int8", "int8+kv4", "int8+kv42")


def logits_of(model: SparseTransformer, tokens: Tensor, config: TurboConfig | None) -> Tensor:
    with torch.no_grad():
        if config is None:
            return model(tokens)
        with approximated(model, config):
            return model(tokens)


def e(x: float) -> float:
    """SAS of one number."""
    if x < -6:
        return 0.0
    n = math.floor(-x)
    f = -x - n
    return math.exp(-n) * (-0.1025 * f**3 + 0.4626 * f**2 - 0.9922 * f + 0.9996)


def steps(tile: Tensor) -> tuple[Tensor, float]:
    scale = float(tile.abs().max()) / 119 or 1.0
    return (tile / scale).round(), scale


def published(q: Tensor, k: Tensor, v: Tensor, sink: float | None, tile: int) -> Tensor:
    """Algorithm 1 for one head [pos, d_head], a number at a time."""
    n, d = q.shape
    out = torch.zeros(n, d, dtype=torch.float64)
    for first in range(0, n, tile):
        q1, sq = steps(q[first : first + tile])
        m = [-math.inf if sink is None else sink] * len(q1)
        total, z = [0.0 if sink is None else e(0)] * len(q1), torch.zeros(len(q1), d, dtype=torch.float64)
        for begin in range(0, first + 1, tile):
            (k1, sk), (v1, sv) = steps(k[begin : begin + tile]), steps(v[begin : begin + tile])
            p = torch.zeros(len(q1), len(k1), dtype=torch.float64)
            faded = []
            for i in range(len(q1)):
                scores = [
                    float(q1[i] @ k1[j]) * sq * sk / math.sqrt(d)
                    for j in range(len(k1))
                    if begin + j <= first + i
                ]
                above = max([m[i], *scores])
                faded.append(1.0 if above == m[i] else e(m[i] - above) if m[i] > -math.inf else 0.0)
                m[i] = above
                for j, score in enumerate(scores):
                    p[i, j] = e(score - above)
                total[i] = faded[i] * total[i] + float(p[i].sum())
            p1, sp = steps(p)
            z = torch.tensor(faded)[:, None].double() * z + sp * sv * (p1 @ v1)
        out[first : first + tile] = z / torch.tensor(total)[:, None].double()
    return out


@pytest.mark.parametrize("sink", [None, 0.7, 4.0])
@pytest.mark.parametrize("tile", [4, 16])
def test_the_published_algorithm(sink: float | None, tile: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 21, 1, 6, generator=generator).double()
    sinks = None if sink is None else torch.tensor([sink]).double()
    found = turbo_attention(3 * q, k, v, sinks, tile=tile, impl="naive")
    torch.testing.assert_close(found[0, :, 0], published(3 * q[0, :, 0], k[0, :, 0], v[0, :, 0], sink, tile))


@variants
def test_exactly_approximated_is_the_model(variant: str) -> None:
    model, tokens = made(variant), text(20)
    torch.testing.assert_close(
        logits_of(model, tokens, EXACT), logits_of(model, tokens, None), atol=2e-5, rtol=1e-4
    )


@variants
def test_each_approximation_is_another_and_near(variant: str) -> None:
    model, tokens = made(variant, scale=0.25, topk_fraction=None), text(20)  # AbsTopK jumps
    exact = logits_of(model, tokens, None)
    seen = [logits_of(model, tokens, TurboConfig(quant=quant, tile=8)) for quant in QUANTS]
    for i, one in enumerate(seen):
        assert 0 < float((one - exact).norm() / exact.norm()) < (0.25, 0.25, 0.4, 0.9)[i]
        assert not any(torch.equal(one, other) for other in seen[:i])
    assert float((seen[0] - exact).norm()) < float((seen[3] - exact).norm())


def test_the_pass_without_hooks_is_the_pass_with_them() -> None:
    model, tokens, config = made(), text(20), TurboConfig(quant="int8")
    seen: dict[str, Tensor] = {}
    hooks: list[tuple[str, Callable[..., None]]] = [
        (f"blocks.0.attn.hook_{name}", lambda x, hook: seen.update({hook.name: x}))
        for name in ("pattern", "v", "z")
    ]
    with torch.no_grad(), approximated(model, config), model.hooks(fwd_hooks=hooks):
        assert torch.equal(model(tokens), logits_of(model, tokens, config))
    pattern = seen["blocks.0.attn.hook_pattern"]
    z = torch.einsum("bhqk,bkhd->bqhd", pattern, config.stored(seen["blocks.0.attn.hook_v"]))
    torch.testing.assert_close(z, seen["blocks.0.attn.hook_z"])
    assert int((pattern.triu(1) != 0).sum()) == 0


def whole(model: SparseTransformer) -> Circuit:
    from test_options import Naive, circuit_of

    circuit = circuit_of(model, Naive.of(model), "mean", 13)
    return replace(circuit, model_hash=model.fingerprint())


def test_a_circuit_found_exactly_runs_approximately() -> None:
    model, tokens = made(), text(20)
    circuit = whole(model)
    before = model.fingerprint()
    with torch.no_grad():
        exact = masked.run_circuit(model, circuit, tokens)
        with approximated(model, TurboConfig()):
            assert model.fingerprint() == before
            near = masked.run_circuit(model, circuit, tokens)
            ones = {site: torch.ones(width) for site, width in model.widths.items()}
            open_ = masked.run_masked(
                model, tokens, ones, {site: torch.zeros(w) for site, w in model.widths.items()}
            )
    assert torch.equal(open_, logits_of(model, tokens, TurboConfig()))
    assert not torch.equal(near, exact)
    assert torch.equal(masked.run_circuit(model, circuit, tokens).detach(), exact)


def test_an_encoder_decoder() -> None:
    model = SparseTransformer(
        ModelConfig(
            d_vocab=9,
            n_layers=1,
            d_model=8,
            n_heads=2,
            d_head=4,
            d_mlp=8,
            n_ctx=12,
            arch="encdec",
            n_source=5,
            pad=0,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape))
    tokens = torch.tensor([[1, 2, 3, 0, 0, 4, 5, 6], [0, 0, 0, 0, 0, 4, 5, 6]])
    exact = logits_of(model, tokens, None)
    torch.testing.assert_close(logits_of(model, tokens, EXACT), exact, atol=1e-5, rtol=1e-4)
    assert (
        0 < float((logits_of(model, tokens, TurboConfig(quant="int8")) - exact).norm() / exact.norm()) < 0.2
    )


def test_gradients_are_refused() -> None:
    model, tokens = made(), text(20)
    masks = {site: torch.ones(width, requires_grad=True) for site, width in model.widths.items()}
    values = {site: torch.zeros(width) for site, width in model.widths.items()}
    with approximated(model, TurboConfig()):
        with pytest.raises(
            ValueError, match=r"gradients are asked of attention in few bits.*Train and prune the exact"
        ):
            model(tokens, return_type="loss")
        model.requires_grad_(False)
        with pytest.raises(ValueError, match="gradients are asked of attention"):
            masked.run_masked(model, tokens, masks, values)
    assert model.given.turbo is None
    model.requires_grad_(True)
    model(tokens, return_type="loss").backward()


def test_what_reads_weights_refuses() -> None:
    model, tokens = made(), text(20)
    message = r"few_bits=True; .*expected few_bits=False"
    with approximated(model, TurboConfig()), pytest.raises(ValueError, match=message):
        head_report(model, tokens)


def fail_inside(model: SparseTransformer) -> None:
    with approximated(model, TurboConfig()):
        with approximated(model, EXACT):
            assert model.given.turbo == EXACT
        assert model.given.turbo == TurboConfig()
        raise ZeroDivisionError


def test_restored_after_an_error() -> None:
    model = made()
    with pytest.raises(ZeroDivisionError):
        fail_inside(model)
    assert model.given.turbo is None


def test_another_model_is_refused() -> None:
    other: Any = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="model: got a Linear; expected a SparseTransformer"):
        approximated(other, EXACT).__enter__()


def test_a_packed_cache_inside_is_refused() -> None:
    model = made()
    with approximated(model, TurboConfig()), pytest.raises(ValueError, match="'turbo' inside approximated"):
        model.generate(text(), 2, kv_cache="turbo")


WHOLE = {
    "default": TurboConfig(tile=4),
    "in 4 bits": TurboConfig(quant="int8+kv4", tile=4),
    "sas": TurboConfig(quant="none"),
}


@pytest.mark.parametrize("config", WHOLE.values(), ids=list(WHOLE))
@pytest.mark.parametrize("option", ["default", "static", "full", "experts", "post"])
def test_every_decoder_in_few_bits_is_the_naive_model(option: str, config: TurboConfig) -> None:
    """Logits, a circuit's logits, and patterns; `naive_turbo_forward` shares no code with the kernels."""
    model, naive, circuit = options.known(option, options.N_WORDS, options.N_CTX)
    naive = replace(naive, turbo=NaiveTurbo(config=config))
    with torch.no_grad(), approximated(model, config):
        logits, cache = model.run_with_cache(options.TOKENS)
        of_circuit = masked.run_circuit(model, circuit, options.TOKENS)
    expected = naive.run(options.TOKENS)
    options.same(logits, expected.logits)
    options.same(cache["blocks.1.attn.hook_pattern"], expected.patterns[1])
    options.same(of_circuit, naive.of_circuit(circuit).run(options.TOKENS).logits)


@pytest.mark.parametrize("config", WHOLE.values(), ids=list(WHOLE))
@pytest.mark.parametrize("kind", list(stacks.CONFIGS))
def test_an_encoder_decoder_in_few_bits_is_the_naive_model(kind: str, config: TurboConfig) -> None:
    s = stacks.known(kind)
    naive = replace(s.naive, turbo=NaiveTurbo(config=config))
    with torch.no_grad(), approximated(s.model, config):
        options.same(s.model(stacks.TOKENS), naive.run(stacks.TOKENS)[0])
        found = masked.run_circuit(s.model, s.circuit, stacks.TOKENS)
    options.same(found, naive.of_circuit(s.circuit).run(stacks.TOKENS)[0])


def test_a_copy_made_inside_is_the_model_outside() -> None:
    """By `copy` and by pickle: nothing would ever take back what the copy was told."""
    model, tokens = made(), text(20)
    with approximated(model, TurboConfig()):
        copies = [deepcopy(model), pickle.loads(pickle.dumps(model))]
        assert model.given.turbo is not None
    for copy in copies:
        assert torch.equal(logits_of(copy, tokens, None), logits_of(model, tokens, None))
        assert copy.given is copy.blocks[0].attn.given
