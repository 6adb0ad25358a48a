"""Generation: with a cache as without, for every decoder; packed caches; and what is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from circuits.kernels import quantised
from circuits.model.config import ModelConfig
from circuits.model.generate import next_logits
from circuits.model.mixers.past import Past, TurboPast
from circuits.model.mixers.turbo import TurboConfig
from circuits.model.transformer import SparseTransformer

SHAPE = dict(d_vocab=13, n_layers=2, d_model=16, n_heads=4, d_head=6, d_mlp=12, n_ctx=40)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no sink": {"sink": False, "bigram": False},
    "dense": {"topk_fraction": None},
    "experts": {"experts": 6, "experts_active": 1},
    "post": {
        "norm": "layer",
        "norm_position": "post",
        "positions": "sinusoid",
        "tied": True,
        "embed_scale": True,
    },
    **{kind: {"attention": "compose", "compose": kind} for kind in ("static", "gate", "qw", "kw", "full")},
}
variants = pytest.mark.parametrize("variant", VARIANTS)


def made(variant: str = "plain", scale: float = 0.4, **changes: Any) -> SparseTransformer:
    model = SparseTransformer(ModelConfig(**{**SHAPE, **VARIANTS[variant], **changes}), seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def text(n: int = 7, batch: int = 3) -> Tensor:
    return torch.randint(0, 13, (batch, n), generator=torch.Generator().manual_seed(2))


@variants
def test_the_cache_changes_nothing(variant: str) -> None:
    model, tokens = made(variant), text(20)
    past = Past()
    with torch.no_grad():
        whole = model(tokens)
        for n in (7, *range(8, 21)):
            torch.testing.assert_close(
                next_logits(model, tokens[:, :n], past), whole[:, n - 1], atol=2e-5, rtol=1e-4
            )
    for options in ({}, {"temperature": 0.7, "top_k": 4, "seed": 5}):
        cached, plain = (model.generate(tokens, 12, kv_cache=c, **options) for c in ("fp32", None))
        assert cached == plain
        assert [len(row) for row in cached] == [12, 12, 12]


@variants
@pytest.mark.slow
def test_a_packed_cache_is_near(variant: str) -> None:
    """Beyond two flushes of the INT8 buffer, in 4 bits: log-probabilities stay near those of the exact model."""
    model, tokens, past = (
        made(variant, scale=0.25),
        text(40),
        TurboPast(TurboConfig(quant="int8+kv4", tile=8)),
    )
    with torch.no_grad():
        whole = model(tokens).log_softmax(-1)
        gaps = [
            (next_logits(model, tokens[:, :n], past).log_softmax(-1) - whole[:, n - 1]).norm()
            / whole[:, n - 1].norm()
            for n in range(11, 41)
        ]
    assert 0 < torch.stack(gaps).mean() < 0.25
    stored = list(past.stored.values())
    assert [s.n_tokens for s in stored] == [40, 40]
    assert stored[0].keys.codes.shape[1] == 5
    assert given_back(model)


def given_back(model: SparseTransformer) -> bool:
    return model.given.past is None and model.given.turbo is None


@pytest.mark.slow
def test_a_hook_on_the_pattern_sees_the_packed_cache_and_changes_nothing() -> None:
    model, tokens = made(), text(24)
    seen: list[tuple[int, ...]] = []
    outputs = []
    for hooked in (False, True):
        past = TurboPast(TurboConfig(tile=8))
        hooks = (
            [("blocks.1.attn.hook_pattern", lambda p, hook: seen.append(tuple(p.shape)))] if hooked else []
        )
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            outputs.append([next_logits(model, tokens[:, :n], past) for n in range(13, 25)])
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=1e-3)
    assert seen == [(3, 4, 13, 13)] + [(3, 4, 1, n) for n in range(14, 25)]


def test_stop_ends_a_text() -> None:
    model, tokens = made(), text()
    free = model.generate(tokens, 10)
    stop = free[0][2]
    for row, whole in zip(model.generate(tokens, 10, stop=[stop]), free, strict=True):
        assert row == (whole[: whole.index(stop) + 1] if stop in whole else whole)


def test_top_k_and_temperature() -> None:
    model, tokens = made(), text(batch=1).expand(400, -1)
    with torch.no_grad():
        logits = model(tokens[:1])[0, -1]
    best = set(logits.topk(3).indices.tolist())
    drawn = [row[0] for row in model.generate(tokens, 1, temperature=2.0, top_k=3)]
    assert set(drawn) == best
    p = (logits.topk(3).values / 2).softmax(-1)
    for token, share in zip(logits.topk(3).indices.tolist(), p.tolist(), strict=True):
        assert drawn.count(token) / 400 == pytest.approx(share, abs=0.09)
    assert model.generate(tokens, 1, temperature=1.0, top_k=1) == model.generate(tokens, 1)
    assert model.generate(tokens, 1, temperature=2.0, seed=1) != model.generate(
        tokens, 1, temperature=2.0, seed=2
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_new": 34}, "n_new: got 34; expected 1 to 33"),
        ({"n_new": 0}, "n_new: got 0"),
        ({"kv_cache": "fp16"}, "kv_cache: got 'fp16'; expected 'fp32', 'turbo' or None"),
        ({"temperature": -1.0}, "temperature: got -1.0"),
        ({"top_k": 0}, "top_k: got 0"),
        ({"stop": [99]}, r"stop: got \[99\]; expected tokens from 0 to 12"),
        ({"tokens": torch.zeros(2, 0, dtype=torch.int64)}, "tokens"),
        ({"tokens": torch.full((1, 2), 13)}, "tokens: got ids from 13 to 13"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"tokens": text(), "n_new": 3} | changes
    with pytest.raises(ValueError, match=message):
        made().generate(**given)


def test_an_encoder_decoder_is_refused() -> None:
    model = SparseTransformer(ModelConfig(**SHAPE, arch="encdec", n_source=5, pad=0))
    with pytest.raises(ValueError, match="arch='encdec'; expected 'decoder'"):
        model.generate(text(), 3)


def test_bytes_of_a_long_cache() -> None:
    """4,096 tokens of 8 heads: at least 4.4 times smaller than fp16, scales, steps and INT8 room included."""
    k, v = torch.randn(2, 1, 4096, 8, 64, generator=torch.Generator().manual_seed(0))
    past, layer = TurboPast(TurboConfig()), torch.nn.Identity()
    past.store(layer, k, v)
    fp16 = 2 * (k.numel() + v.numel())
    held = sum(b.untyped_storage().nbytes() for b in buffers(past.stored[layer]))
    assert past.n_bytes == held
    assert fp16 / held >= 4.4
    past.reorder(torch.tensor([0, 0]))
    assert past.n_bytes == 2 * held


def buffers(stored: quantised.Stored) -> list[Tensor]:
    own = [stored.recent_keys, stored.recent_values, stored.key_scale, stored.value_scale]
    return [*stored.keys.buffers, *stored.values.buffers, *own]


def test_rows_of_a_packed_cache_move() -> None:
    model, tokens = made(), text(22)
    pasts = [TurboPast(TurboConfig(tile=8)) for _ in range(2)]
    order = torch.tensor([2, 0])
    with torch.no_grad():
        for past in pasts:
            next_logits(model, tokens[:, :21], past)
        expected = next_logits(model, tokens, pasts[0])[order]
        pasts[1].reorder(order)
        torch.testing.assert_close(
            next_logits(model, tokens[order], pasts[1]), expected, atol=1e-5, rtol=1e-5
        )


def test_config() -> None:
    with pytest.raises(ValueError, match="tile: got 12; expected a power of two"):
        TurboConfig(tile=12)
    config = TurboConfig(n_r=-8, tile=16)
    assert TurboConfig.from_json(config.to_json()) == config
    assert [replace(config, quant=q).n_low(4) for q in ("int8", "int8+kv4", "int8+kv42")] == [0, 0, 2]
    assert [TurboConfig(low_share=share).n_low(8) for share in (0.0, 0.25, 0.375, 1.0)] == [0, 2, 3, 8]
