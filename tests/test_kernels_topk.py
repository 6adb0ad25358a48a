"""Selection by magnitude: every implementation against naive, and naive against hand-made cases."""

import pathlib
import subprocess
import sys

import hypothesis.extra.numpy as numpy_strategies
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuits.kernels import abs_topk, chosen_impl, slice_topk_mask, topk_mask, topk_threshold

DTYPES = [torch.float32, torch.float64]
SHAPES = [(1, 1), (1, 7), (3, 1), (5, 33), (37, 128), (300, 17), (17, 300), (2, 3, 19), (3, 19, 2, 5)]
NAN, INF = float("nan"), float("inf")


def awkward(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Gaussian entries with ties, zeros, NaN and infinities among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, 1.0, 1e-40, NAN, INF, -INF], dtype=dtype)
    drawn = special[torch.randint(len(special), shape, generator=generator)]
    return torch.where(torch.rand(shape, generator=generator) < 0.5, x, drawn)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_keeps_the_largest_magnitudes_with_their_signs() -> None:
    x = torch.tensor([0.5, -3.0, 2.0, 0.0, -1.0])
    for impl in ("naive", "cpu"):
        same(abs_topk(x, 2, impl=impl), torch.tensor([0.0, -3.0, 2.0, 0.0, 0.0]))


@pytest.mark.parametrize("impl", ["naive", "cpu"])
def test_a_tie_goes_to_the_lowest_index(impl: str) -> None:
    x = torch.tensor([[1.0, -2.0, 2.0, -1.0, 2.0, 1.0]])
    same(abs_topk(x, 2, impl=impl), torch.tensor([[0.0, -2.0, 2.0, 0.0, 0.0, 0.0]]))
    same(abs_topk(x.t(), 4, dim=0, impl=impl).t(), torch.tensor([[1.0, -2.0, 2.0, 0.0, 2.0, 0.0]]))


@pytest.mark.parametrize("impl", ["naive", "cpu"])
def test_nan_is_kept_first(impl: str) -> None:
    x = torch.tensor([[1.0, INF, NAN, 3.0, NAN, -INF]])
    same(abs_topk(x, 1, impl=impl), torch.tensor([[0.0, 0.0, NAN, 0.0, 0.0, 0.0]]))
    same(abs_topk(x, 3, impl=impl), torch.tensor([[0.0, INF, NAN, 0.0, NAN, 0.0]]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_abs_topk_agrees_with_naive_everywhere(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = awkward(shape, dtype)
    for dim in range(x.ndim):
        for k in {1, max(1, shape[dim] // 4), shape[dim]}:
            same(abs_topk(x, k, dim, impl="cpu"), abs_topk(x, k, dim, impl="naive"))
            same(slice_topk_mask(x, k, dim, impl="cpu"), slice_topk_mask(x, k, dim, impl="naive"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(37, 128), (128, 37), (300, 64), (2, 19, 5)])
def test_gradients_agree_with_naive_everywhere(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, dy = awkward(shape, dtype), torch.randn(shape, dtype=dtype)
    x.flatten()[: x.numel() // 3] *= torch.rand(x.numel() // 3, dtype=dtype) < 0.1
    for dim in range(x.ndim):
        gradients = []
        for impl in ("naive", "cpu"):
            leaf = x.clone().requires_grad_()
            abs_topk(leaf, min(4, shape[dim]), dim, impl=impl).backward(dy)
            gradients.append(leaf.grad)
        same(gradients[1], gradients[0])


@pytest.mark.parametrize("width", [300, 2048])
def test_agrees_with_torch_topk_where_there_are_no_ties(width: int) -> None:
    x = torch.randn(70, width, dtype=torch.float64)
    kept = x.abs().topk(width // 4).indices
    expected = torch.zeros_like(x).scatter(1, kept, x.gather(1, kept))
    same(abs_topk(x, width // 4, impl="cpu"), expected)
    same(abs_topk(x.t().contiguous(), width // 4, dim=0, impl="cpu").t(), expected)


def test_transposed_and_strided_inputs() -> None:
    x = torch.randn(40, 24)
    expected = abs_topk(x, 5, impl="naive")
    transposed = x.t().contiguous().t()
    same(abs_topk(transposed, 5, impl="cpu"), expected)
    assert abs_topk(transposed, 5, impl="cpu").t().is_contiguous()
    same(abs_topk(torch.cat([x, x], dim=1)[:, :24], 5, impl="cpu"), expected)
    same(slice_topk_mask(transposed, 5, 1, impl="cpu"), slice_topk_mask(x, 5, 1, impl="naive"))
    leaf = transposed.clone().requires_grad_()
    abs_topk(leaf, 5, impl="cpu").sum().backward()
    same(leaf.grad, (expected != 0).float())


@pytest.mark.parametrize("impl", ["naive", "cpu"])
@pytest.mark.parametrize("dim", [0, 1])
def test_out_is_filled_whatever_it_held(impl: str, dim: int) -> None:
    x = torch.randn(33, 47)
    expected = abs_topk(x, 3, dim, impl=impl)
    for out in (torch.full_like(x, NAN), torch.full((47, 33), NAN).t(), torch.full((33, 94), NAN)[:, ::2]):
        assert abs_topk(x, 3, dim, impl=impl, out=out) is out
        same(out, expected)
    same(abs_topk(x, 3, dim, impl=impl, out=x), expected)


@pytest.mark.parametrize("impl", ["naive", "cpu"])
@pytest.mark.parametrize("dim", [0, 1])
def test_gradcheck(impl: str, dim: int) -> None:
    x = torch.randn(6, 9, dtype=torch.float64)
    x[:, 2] = 0.0
    x[1, 3:] = 0.0  # fewer nonzeros than k: unchanged, and so is its gradient
    assert torch.autograd.gradcheck(lambda t: abs_topk(t, 4, dim, impl=impl), x.requires_grad_())


def test_empty_tensors() -> None:
    for shape, dim in (((0, 5), 1), ((5, 0), 0)):
        x = torch.zeros(shape, requires_grad=True)
        for impl in ("naive", "cpu"):
            kept = abs_topk(x, 2, dim, impl=impl)
            kept.sum().backward()
            assert kept.shape == x.shape


finite = numpy_strategies.arrays("float32", (6, 21), elements=st.floats(-100, 100, width=32))


@settings(max_examples=60, deadline=None)
@given(values=finite, k=st.integers(1, 21), power=st.integers(-20, 20), columns=st.booleans())
def test_properties(values: object, k: int, power: int, columns: bool) -> None:
    x = torch.tensor(values)
    x = x.t().contiguous() if columns else x
    dim = 0 if columns else 1
    kept = abs_topk(x, k, dim, impl="cpu")
    assert ((kept != 0).sum(dim) <= k).all()
    assert ((kept == 0) | (kept == x)).all()
    assert (kept.abs().amax(dim) == x.abs().amax(dim)).all()
    same(abs_topk(kept, k, dim, impl="cpu"), kept)
    same(abs_topk(-x, k, dim, impl="cpu"), -kept)
    scaled = x.double() * 2.0**power
    same(abs_topk(scaled, k, dim, impl="cpu"), kept.double() * 2.0**power)


MATRICES = [(1, 1), (3, 5), (150, 333), (1100, 70)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", MATRICES)
def test_topk_mask_agrees_with_naive(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for w in (torch.randn(shape, dtype=dtype), awkward(shape, dtype), torch.zeros(shape, dtype=dtype)):
        always = torch.rand(shape) < 0.001
        for k in {1, max(1, w.numel() // 100), max(1, w.numel() // 4), w.numel()}:
            mask = topk_mask(w, k, impl="cpu")
            assert int(mask.sum()) == k
            same(mask, topk_mask(w, k, impl="naive"))
            same(topk_threshold(w, k, impl="cpu"), topk_threshold(w, k, impl="naive"))
            if int(always.sum()) <= k:
                forced = topk_mask(w, k, always, impl="cpu")
                same(forced, topk_mask(w, k, always, impl="naive"))
                assert forced[always].all()


@pytest.mark.parametrize("shape", [(300, 250), (250, 300)])
def test_topk_mask_on_matrices_a_sample_misjudges(shape: tuple[int, int]) -> None:
    n = shape[0] * shape[1]
    sample_sees_zeros = torch.arange(1, n + 1.0)
    sample_sees_zeros[:: (n // 16_384) | 1] = 0.0
    for w in (sample_sees_zeros.view(shape), torch.arange(1.0 * n).view(shape), torch.ones(shape)):
        for k in (1, 100, n // 2, n - 5):
            same(topk_mask(w, k, impl="cpu"), topk_mask(w, k, impl="naive"))


def test_topk_mask_of_a_transposed_matrix_breaks_ties_by_logical_index() -> None:
    w = torch.ones(30, 20)
    same(topk_mask(w.t().contiguous().t(), 7, impl="cpu"), topk_mask(w, 7, impl="naive"))


def test_auto_says_what_it_picks() -> None:
    assert chosen_impl(torch.zeros(2)) == "cpu"
    assert chosen_impl(torch.zeros(2, dtype=torch.float64)) == "cpu"
    assert chosen_impl(torch.zeros(2, dtype=torch.bfloat16)) == "naive"
    assert chosen_impl(torch.zeros(2, dtype=torch.bfloat16), "naive") == "naive"


def test_errors_name_the_argument_and_the_remedy() -> None:
    x = torch.randn(4, 6)
    with pytest.raises(ValueError, match=r"k is 0; expected 1 to 6"):
        abs_topk(x, 0)
    with pytest.raises(ValueError, match=r"k is 7; expected 1 to 6"):
        abs_topk(x, 7)
    with pytest.raises(ValueError, match=r"k is 25; expected 1 to 24"):
        topk_mask(x, 25)
    with pytest.raises(ValueError, match=r"k is 0"):
        topk_threshold(x, 0)
    with pytest.raises(ValueError, match=r"k is 5; expected 1 to 4"):
        slice_topk_mask(x, 5, 0)
    with pytest.raises(ValueError, match=r"dim is 2; expected -2 to 1"):
        abs_topk(x, 1, dim=2)
    with pytest.raises(ValueError, match=r"impl is 'fast'; expected one of"):
        abs_topk(x, 1, impl="fast")
    with pytest.raises(ValueError, match=r"takes float32 or float64 on the CPU; got torch.bfloat16"):
        abs_topk(x.bfloat16(), 1, impl="cpu")
    with pytest.raises(ValueError, match=r"always marks 24 entries; expected at most k = 3"):
        topk_mask(x, 3, torch.ones(4, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"out is .* expected \(4, 6\) torch.float32"):
        abs_topk(x, 1, out=torch.empty(4, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"out was given while a gradient is recorded"):
        abs_topk(x.clone().requires_grad_(), 1, out=torch.empty(4, 6))


def test_naive_needs_neither_compiler() -> None:
    script = (
        "import sys; sys.modules['numba'] = sys.modules['triton'] = None\n"
        "import torch, circuits.kernels\n"
        "assert circuits.kernels.abs_topk(torch.tensor([1.0, -3.0]), 1, impl='naive').tolist() == [0.0, -3.0]\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=pathlib.Path(__file__).parents[1])
