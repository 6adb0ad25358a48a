"""Attention in few bits: errors that were promised, buffers that hold what they say, kernels like the definition."""

import importlib.util
import math
import os
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuits.kernels import naive_turbo, quantised, turbo_attention, turbo_decode
from circuits.kernels.quantised import Stored, sas
from circuits.model.mixers.past import _after, begun
from circuits.model.mixers.turbo import TurboConfig

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
HAS_TRITON = importlib.util.find_spec("triton") is not None
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
needs_triton = pytest.mark.skipif(
    not HAS_TRITON or not (INTERPRETED or torch.cuda.is_available()),
    reason="needs a GPU, or TRITON_INTERPRET=1",
)


def qkv(
    std: float = 1.0, *, batch: int = 1, n: int = 256, heads: int = 4, d: int = 64, seed: int = 0
) -> list[Tensor]:
    """Logits of standard deviation `std`."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, batch, n, heads, d, generator=generator)
    return [q * std, k, v]


def exact(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None = None) -> Tensor:
    n = q.shape[1]
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf).exp()
    total = weights.sum(-1, keepdim=True) + (0 if sink is None else sink.double().exp().view(1, -1, 1, 1))
    return torch.einsum("bhqk,bkhd->bqhd", weights / total, v.double())


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_the_exponential_of_a_table() -> None:
    x = torch.linspace(-6, 0, 300_001, dtype=torch.float64)
    assert float((sas(x) / x.exp() - 1).abs().max()) <= 1.1e-3
    assert sas(torch.tensor([-6.0001, -7.0, -100.0, -math.inf])).tolist() == [0, 0, 0, 0]
    assert float(sas(torch.tensor(-6.5), n_r=-7)) == pytest.approx(math.exp(-6.5), rel=1.1e-3)
    assert sas(torch.tensor(math.nan)).isnan()
    f = np.linspace(0, 1, 10_001)
    assert np.polyfit(f, np.exp(-f), 3) == pytest.approx(quantised.POLY, abs=2e-4)


@pytest.mark.parametrize("tile", [4, 16, 64])
@pytest.mark.parametrize("with_sink", [False, True])
def test_tiles_with_an_exact_exponential_are_the_softmax(tile: int, with_sink: bool) -> None:
    q, k, v = qkv(2.0, n=50, heads=3, d=5)
    sink = torch.randn(3) if with_sink else None
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(5)
    scores = scores.masked_fill(torch.ones(50, 50).triu(1).bool(), -math.inf)
    pattern = naive_turbo.tiled_pattern(scores, sink, tile=tile)
    found = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
    torch.testing.assert_close(found.double(), exact(q, k, v, sink), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("std", [1.0, 2.0, 4.0])
def test_rows_sum_to_one(std: float) -> None:
    q, k, _ = qkv(std)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / 8
    pattern = naive_turbo.tiled_pattern(scores, None, exponential=sas)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(1, 4, 256))
    assert int((pattern == 0).sum()) > 0
    rounded = naive_turbo.tiled_pattern(scores, None, exponential=sas, int8=True)
    assert float((rounded.sum(-1) - 1).abs().max()) < 0.25


@pytest.mark.parametrize(("std", "most"), [(1.0, 0.02), (2.0, 0.035), (3.0, 0.035)])
@pytest.mark.parametrize("seed", [0, 1])
def test_output_error(std: float, most: float, seed: int) -> None:
    q, k, v = qkv(std, seed=seed)
    assert 0.005 < off(turbo_attention(q, k, v, None, impl="naive"), exact(q, k, v)) <= most


@pytest.mark.parametrize("tile", [4, 8, 64])
def test_packing_gives_back_its_levels(tile: int) -> None:
    """Each stored number is within half a step of the INT8 one, and every head has its own bits."""
    generator = torch.Generator().manual_seed(0)
    x1 = torch.randint(-119, 120, (2, 3, tile, 4, 5), generator=generator).to(torch.int8)
    packed = quantised.pack(x1, torch.ones(2, 3, 4), (4, 2, 2, 4))
    gap = (packed.levels().unflatten(1, (3, tile)).int() - x1.int()).abs()
    assert bool((2 * gap <= packed.step[:, :, None].int()).all())
    assert packed.codes.shape == (2, 3, (2 * tile // 2 + 2 * tile // 4) * 5)
    few = torch.randint(0, 4, (1, 1, tile, 4, 5), generator=generator).to(torch.int8)
    assert torch.equal(quantised.pack(few, torch.ones(1, 1, 4), (2,) * 4).levels(), few.flatten(1, 2))


def test_extreme_levels_fit_in_int8() -> None:
    """Every range that 4 or 2 bits can meet: no stored number leaves int8."""
    for bits in (4, 2):
        for low in range(-119, 120, 7):
            line = torch.arange(low, 120).repeat(4)[: 4 * ((120 - low) // 4)]
            if len(line):
                x1 = line.view(1, 1, -1, 1, 1).to(torch.int8)
                packed = quantised.pack(x1, torch.ones(1, 1, 1), (bits,))
                gap = (packed.levels().flatten().int() - line).abs()
                assert int(gap.max()) <= math.ceil(int(packed.step.max()) / 2)


def test_priority_of_heads() -> None:
    x = torch.randn(2, 30, 4, 8)
    x[:, :, 2, 3] *= 30
    ranges = x.flatten(0, 1).amax(0) - x.flatten(0, 1).amin(0)
    gaps = x.flatten(0, 1).amax((0, 2)) - x.flatten(0, 1).amin((0, 2))
    expected = gaps * ((ranges - ranges.mean(-1, keepdim=True)) ** 2).mean(-1).sqrt()
    torch.testing.assert_close(quantised.head_priority(x), expected)
    bits = quantised.bits_of_heads(x, 3)
    assert bits[2] == 4
    assert sorted(bits) == [2, 2, 2, 4]


def stored(n: int, extra: int, *, tile: int = 16, **shape: Any) -> tuple[Tensor, Stored, Tensor, Tensor]:
    """A query, the buffers of n tokens at once and `extra` one by one, and the keys and values themselves."""
    q, k, v = qkv(2.0, n=n + extra, **shape)
    found = begun(k[:, :n], v[:, :n], TurboConfig(tile=tile))
    for i in range(n, n + extra):
        found = _after(found, k[:, i], v[:, i])
    return q[:, -1:], found, k, v


CASES: list[dict[str, Any]] = [
    {"n": 40, "extra": 0, "heads": 3, "d": 5, "batch": 2},
    {"n": 5, "extra": 30, "heads": 2, "d": 16},
    {"n": 64, "extra": 0, "heads": 1, "d": 3},
    {"n": 64, "extra": 70, "tile": 64, "heads": 4, "d": 64},
    {"n": 3, "extra": 1, "tile": 4, "heads": 2, "d": 40},
]


@pytest.mark.parametrize("case", CASES)
def test_buffers_after_each_token(case: dict[str, Any]) -> None:
    _, found, k, v = stored(**case)
    assert found.n_tokens == k.shape[1]
    for one, other in zip(found.unpacked(), (k, v), strict=True):
        assert off(one, other) < 0.6
    finest = begun(k, v, TurboConfig(tile=case.get("tile", 16), quant="int8+kv4"))
    assert off(finest.unpacked()[0], k) < 0.15


def test_a_token_beyond_the_scale_is_kept_whole() -> None:
    """Each larger than the last: none is clamped, and each is off by half a step of the scale so far, once a growth."""
    k = torch.cat([torch.full((1, 1, 2, 6), x) for x in (1.0, -1.0, -3.0, -9.0)], dim=1)
    found = begun(k[:, :1], k[:, :1], TurboConfig(tile=4, quant="int8+kv4"))
    for i in range(1, 3):
        found = _after(found, k[:, i], k[:, i])
        assert off(found.unpacked()[0], k[:, : i + 1]) < 0.01
    torch.testing.assert_close(found.key_scale, k[:, :3].abs().amax((1, 3)) / quantised.LIMIT)
    full = _after(found, k[:, 3], k[:, 3])
    assert full.n_recent == 0
    assert off(full.unpacked()[1], k) < 0.1


@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize(
    "case", [CASES[0], *(pytest.param(case, marks=pytest.mark.slow) for case in CASES[1:])]
)
def test_decode_on_the_cpu_is_the_definition(case: dict[str, Any], with_sink: bool) -> None:
    q, found, _, _ = stored(**case)
    sink = torch.randn(q.shape[2]) if with_sink else None
    for n_r in (-6, -3):
        expected = turbo_decode(q, found, sink, n_r=n_r, impl="naive")
        assert off(turbo_decode(q, found, sink, n_r=n_r, impl="cpu"), expected) < 1e-3


def test_decode_is_attention_to_what_is_stored() -> None:
    q, found, _, _ = stored(64, 20, heads=2, d=8)
    k, v = found.unpacked()
    z = exact(q.expand(-1, 84, -1, -1), k, v)[:, -1:]
    assert off(turbo_decode(q, found, None), z) < 0.035


@needs_triton
@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize(
    "shape", [{"n": 37, "heads": 3, "d": 5, "batch": 2}, {"n": 130, "heads": 1, "d": 64}]
)
@pytest.mark.parametrize("tile", [4, 16, 64])
def test_prefill_on_triton_is_the_definition(shape: dict[str, Any], with_sink: bool, tile: int) -> None:
    if tile == 4 and shape["n"] > 100:
        pytest.skip("many tiles of four, slowly interpreted")
    q, k, v = (x.to(DEVICE) for x in qkv(2.0, **shape))
    sink = torch.randn(q.shape[2], device=DEVICE) if with_sink else None
    expected = turbo_attention(q, k, v, sink, tile=tile, impl="naive")
    assert off(turbo_attention(q, k, v, sink, tile=tile, impl="triton"), expected) < 1e-3


@needs_triton
@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_decode_on_triton_is_the_definition(case: dict[str, Any], with_sink: bool) -> None:
    q, found, _, _ = stored(**case)
    sink = torch.randn(q.shape[2]) if with_sink else None
    expected = turbo_decode(q, found, sink, impl="naive")
    if DEVICE == "cuda":
        q, found = q.cuda(), on_gpu(found)
        sink = None if sink is None else sink.cuda()
    assert off(turbo_decode(q, found, sink, impl="triton").cpu(), expected) < 1e-3


def on_gpu(found: Stored) -> Stored:
    from dataclasses import fields, replace

    def moved(thing: Any) -> Any:
        return thing.cuda() if isinstance(thing, Tensor) else thing

    sides = {
        name: replace(side, **{f.name: moved(getattr(side, f.name)) for f in fields(side)})
        for name, side in (("keys", found.keys), ("values", found.values))
    }
    rest = {f.name: moved(getattr(found, f.name)) for f in fields(found) if f.name not in sides}
    return Stored(**sides, **rest)


COMMON = "n_heads:i32 n_tiles:i32"
SIGNATURES = {
    "turbo_fwd_kernel": "q:*i8 k:*i8 v:*i8 q_scale:*fp32 k_scale:*fp32 v_scale:*fp32 sink:*fp32 table:*fp32 out:*fp32 "
    f"n:i32 {COMMON} unit:fp32",
    "turbo_decode_kernel": "q:*i8 q_scale:*fp32 k_codes:*u8 k_step:*u8 k_low:*i8 k_scale:*fp32 v_codes:*u8 v_step:*u8 "
    "v_low:*i8 v_scale:*fp32 recent_k:*i8 recent_v:*i8 recent_k_scale:*fp32 recent_v_scale:*fp32 layout:*i32 "
    f"sink:*fp32 table:*fp32 out:*fp32 {COMMON} n_recent:i32 k_bytes:i32 v_bytes:i32 unit:fp32",
}


@pytest.mark.skipif(INTERPRETED or not HAS_TRITON, reason="the interpreter does not compile")
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", sorted(SIGNATURES))
@pytest.mark.parametrize("d_head", [64, 128])
def test_compiles_ahead_of_time_without_spills(
    name: str, capability: int, d_head: int, tmp_path: pathlib.Path
) -> None:
    import triton
    from test_kernels_triton import SHARED_LIMIT, resources
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from circuits.kernels.triton import turbo_kernels
    from circuits.kernels.triton.turbo import warps

    rows = 64 if "fwd" in name else 1
    constants = {"d": d_head, "HAS_SINK": True, "N_R": 6, "TILE": 64, "N": 64, "D": d_head}
    constants |= {"M": rows} if rows > 1 else {}
    signature = dict(argument.split(":") for argument in SIGNATURES[name].split())
    # Pointers lie on multiples of 16 bytes, as tensors do.
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        fn=getattr(turbo_kernels, name), signature=signature, constexprs=constants, attrs=aligned
    )
    options = {"enable_fp_fusion": True, "num_warps": warps(rows, d_head), "num_stages": 1}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    used = resources(compiled, tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0, used
    assert used["REG"] <= 255, used
    assert used["SHARED"] + compiled.metadata.shared <= SHARED_LIMIT[capability], used
    assert ("mma" in compiled.asm["ptx"]) == (rows > 1)
    assert (".s8" if rows > 1 else "mul.lo.s32") in compiled.asm["ptx"], "no integer products"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, s: turbo_decode(q[:, :1, :1], s, None), "stored: got 40 tokens in buffers"),
        (lambda q, s: turbo_attention(q, q, q, None, impl="cpu"), "impl is 'cpu'; expected one of"),
        (lambda q, s: turbo_decode(q[:, :1].double(), s, None, impl="cpu"), "takes float32 on the CPU"),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    _, found, k, _ = stored(40, 0, heads=2, d=8)
    with pytest.raises(ValueError, match=message):
        call(k, found)
