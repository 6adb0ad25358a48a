"""Hooks: each has a tensor of its own, and what they change in one thread is not seen in another."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch

from circuits.circuit import mean_values, run_masked
from circuits.composition import run_composed
from circuits.model import ModelConfig, SparseTransformer, compact, sparse_compute
from circuits.model.sites import WeightAt

SMALL = dict(d_vocab=11, n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=12, n_ctx=6)
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"n_layers": 2},
    "dense": {"topk_fraction": None, "sink": False, "bigram": False},
    "static": {"attention": "compose", "compose": "static"},
    "full": {"attention": "compose", "compose": "full"},
}


def model_of(name: str) -> SparseTransformer:
    model = SparseTransformer(ModelConfig(**{**SMALL, **MODELS[name]}), seed=1).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * (
            torch.rand(parameter.shape, generator=generator) < 0.2
        )
    return model


def switch(model: SparseTransformer, on: bool) -> None:
    """TransformerLens's switches, which bring hook points of their own."""
    for each in (model.set_use_split_qkv_input, model.set_use_attn_result, model.set_use_hook_mlp_in):
        each(on)


def write(value: torch.Tensor, hook: Any) -> None:
    value.zero_()


def give(value: torch.Tensor, hook: Any) -> torch.Tensor:
    return torch.zeros_like(value)


@pytest.mark.parametrize(
    ("name", "way", "on"),
    [
        ("plain", "as it is", False), ("plain", "sparse compute", True), ("dense", "as it is", True),
        ("static", "as it is", False), ("full", "as it is", True), ("full", "compact", False),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_a_hook_that_writes_does_what_one_that_returns_does_and_leaves_the_model_alone(name, way, on):
    model = compact(model_of(name)) if way == "compact" else model_of(name)
    switch(model, on)
    own, inside = model.fingerprint(), sparse_compute if way == "sparse compute" else nullcontext
    for rows in (1, 2):
        tokens = torch.arange(rows * 5).view(rows, 5) % 11
        with torch.no_grad(), inside(model):
            held = [linear.sparse is not None for _, linear in model.linears()]
            assert any(held) == (way != "as it is")
            points = list(model.run_with_cache(tokens, return_cache_object=False)[1])
            for point in points:
                wrote, gave = (
                    model.run_with_hooks(tokens, fwd_hooks=[(point, hook)]) for hook in (write, give)
                )
                assert _same(wrote, gave), point
        assert len(points) >= 20
        assert model.fingerprint() == own


def test_what_one_hook_writes_is_not_in_what_another_kept():
    model, tokens = model_of("dense"), torch.arange(5)[None]
    with torch.no_grad():
        _, before = model.run_with_cache(tokens, return_cache_object=False)
        for i, point in enumerate(before):
            cache = model.add_caching_hooks()  # these see each tensor before the hook that writes
            model.run_with_hooks(tokens, fwd_hooks=[(point, write)])
            model.reset_hooks()
            assert all(torch.equal(before[p], cache[p]) for p in list(before)[: i + 1]), point


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("name", ["plain", "static"])
def test_a_cache_stays_what_it_was_when_weights_change(name):
    model = model_of(name)
    _, cache = model.run_with_cache(torch.tensor([[1, 2, 3]]), return_cache_object=False)
    kept = {point: value.clone() for point, value in cache.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(cache[point], value) for point, value in kept.items())


def test_a_hook_that_writes_has_the_gradients_of_one_that_returns():
    model, tokens = model_of("static"), torch.tensor([[1, 2, 3, 4]])
    for point in model.run_with_cache(tokens, return_cache_object=False)[1]:
        found = []
        for hook in (write, give):
            model.zero_grad()
            model.run_with_hooks(tokens, return_type="loss", fwd_hooks=[(point, hook)]).backward()
            found.append([p.grad for p in model.parameters() if p.grad is not None and p.grad.any()])
        assert all(_same(a, b) for a, b in zip(*found, strict=True)), point


def _cut(model: SparseTransformer, tokens: torch.Tensor) -> Any:
    """A run with half of the weights cut, and a hook that waits in the middle of it."""
    values = mean_values(model, tokens)
    masks = {site: torch.zeros(width) for site, width in model.widths.items()}
    at = WeightAt(0, "W_V")
    return lambda: run_masked(model, tokens, masks, values, {at: torch.zeros_like(model.linear(*at).weight)})


@pytest.mark.parametrize("inside", [nullcontext, sparse_compute])
def test_another_thread_sees_nothing_of_masks_hooks_gates_and_caches(inside):
    model, tokens = model_of("full"), torch.arange(10).view(2, 5)
    gates = {"blocks.0.attn.compose_pre.query.hook_gate": torch.zeros(())}
    runs: list[Callable[[], Any]] = [
        _cut(model, tokens),
        lambda: run_composed(model, tokens, gates),
        lambda: model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", give)]),
        lambda: model.run_with_cache(tokens, return_cache_object=False)[1]["hook_embed"],
    ]
    with torch.no_grad():
        plain, alone = model(tokens), [run() for run in runs]
        found: dict[str, list[torch.Tensor]] = {"plain": [], "runs": []}

        def changing() -> None:
            with torch.no_grad():
                for _ in range(4):
                    with inside(model):
                        found["runs"] += [run() for run in runs]

        other = threading.Thread(target=changing)
        other.start()
        while other.is_alive():
            found["plain"].append(model(tokens))
        other.join()
    assert all(torch.equal(logits, plain) for logits in found["plain"])
    assert len(found["runs"]) == 4 * len(runs)
    for i, logits in enumerate(found["runs"]):
        torch.testing.assert_close(logits, alone[i % len(runs)])
    assert not model.list_hooks()


def test_a_pass_waits_for_the_hooks_of_another_thread_and_a_copy_does_not():
    model, tokens, got = model_of("plain"), torch.tensor([[1, 2, 3]]), []
    copy = deepcopy(model)
    with torch.no_grad():
        plain = model(tokens)
        with model.hooks(fwd_hooks=[("hook_embed", give)]):
            waiting = threading.Thread(target=lambda: got.append(model(tokens)))
            waiting.start()
            free = threading.Thread(target=lambda: got.append(copy(tokens)))
            free.start()
            free.join(timeout=10)
            assert [torch.equal(x, plain) for x in got] == [True], "the copy waited, or the model did not"
        waiting.join(timeout=10)
    assert len(got) == 2
    torch.testing.assert_close(got[1], plain)
