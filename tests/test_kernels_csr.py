"""Products with a sparse weight: every implementation against dense matrices in float64."""

import dataclasses
from collections.abc import Callable, Iterator

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode

from circuits.kernels import DENSE_FROM, SparseWeight, chosen_impl, sddmm, sparse_linear, spmm, spmm_t
from circuits.kernels.dispatch import BACKENDS, dense_from
from docs.experiments.gpu import tf32

IMPLS = ["naive", "cpu"]
# d_in, d_out, density, tokens
CASES = [
    (1, 1, 1.0, 1),
    (7, 5, 0.3, 1),
    (5, 7, 1.0, 3),
    (33, 65, 0.1, 130),
    (64, 48, 0.0, 9),
    (65, 33, 0.02, 1025),
    (17, 3, 0.5, 2049),
    (128, 512, 1 / 64, 64),
]


def drawn(d_in: int, d_out: int, density: float, dtype: torch.dtype = torch.float64) -> Tensor:
    w = torch.randn(d_in, d_out, dtype=dtype) * (torch.rand(d_in, d_out) < density)
    if d_in > 2 and d_out > 2 and density < 1:
        w[1], w[:, 2] = 0.0, 0.0
    return w


def close(got: Tensor, expected: Tensor) -> None:
    """To the precision of the type of `got`, relative to the largest entry."""
    scale = expected.abs().max().item() if expected.numel() else 1.0
    eps = torch.finfo(got.dtype).eps
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=64 * eps * max(scale, 1e-30))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_products_agree_with_dense(case: tuple[int, int, float, int], impl: str, dtype: torch.dtype) -> None:
    d_in, d_out, density, tokens = case
    w, x = drawn(d_in, d_out, density), torch.randn(d_in, tokens, dtype=torch.float64)
    dy, bias = torch.randn(d_out, tokens, dtype=torch.float64), torch.randn(d_out, dtype=torch.float64)
    weight = SparseWeight.from_dense(w.to(dtype))
    w = weight.to_dense().double()
    x, dy, bias = x.to(dtype), dy.to(dtype), bias.to(dtype)
    wide, tall = x.double(), dy.double()
    close(spmm(weight, x, impl=impl), w.t() @ wide)
    close(spmm(weight, x, bias, impl=impl), w.t() @ wide + bias.double()[:, None])
    close(spmm_t(weight, dy, impl=impl), w @ tall)
    close(sddmm(weight, x, dy, impl=impl), (wide @ tall.t())[w != 0])


@pytest.mark.parametrize("impl", IMPLS)
def test_out_is_filled_whatever_it_held(impl: str) -> None:
    weight, x, dy = SparseWeight.from_dense(drawn(30, 20, 0.1)), torch.randn(30, 50), torch.randn(20, 50)
    x, dy = x.double(), dy.double()
    for shape in ((20, 50), (50, 20)):
        out = torch.full(shape, float("nan"), dtype=torch.float64)
        out = out if shape == (20, 50) else out.t()
        assert spmm(weight, x, impl=impl, out=out) is out
        close(out, spmm(weight, x, impl="naive"))
    out = torch.full((30, 50), float("nan"), dtype=torch.float64)
    assert spmm_t(weight, dy, impl=impl, out=out) is out
    close(out, spmm_t(weight, dy, impl="naive"))


@pytest.mark.parametrize("impl", IMPLS)
def test_activations_that_are_not_contiguous(impl: str) -> None:
    weight, x, dy = (
        SparseWeight.from_dense(drawn(30, 20, 0.1)),
        torch.randn(50, 30).double(),
        torch.randn(50, 20).double(),
    )
    close(spmm(weight, x.t(), impl=impl), weight.to_dense().t() @ x.t())
    close(spmm_t(weight, dy.t(), impl=impl), weight.to_dense() @ dy.t())
    close(sddmm(weight, x.t(), dy.t(), impl=impl), (x.t() @ dy)[weight.to_dense() != 0])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0, 3), (4, 5, 0)])
def test_nothing_to_do(impl: str, shape: tuple[int, int, int]) -> None:
    d_in, d_out, tokens = shape
    weight = SparseWeight.from_dense(torch.ones(d_in, d_out))
    x, dy = torch.ones(d_in, tokens), torch.ones(d_out, tokens)
    close(spmm(weight, x, torch.ones(d_out), impl=impl), torch.full((d_out, tokens), d_in + 1.0))
    close(spmm_t(weight, dy, impl=impl), torch.full((d_in, tokens), float(d_out)))
    close(sddmm(weight, x, dy, impl=impl), torch.full((d_in * d_out,), float(tokens)))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_not_finite_passes_nonzeros_alone(
    case: tuple[int, int, float, int], impl: str, bad: float
) -> None:
    d_in, d_out, density, tokens = case
    weight = SparseWeight.from_dense(drawn(d_in, d_out, density))
    w = weight.to_dense()
    x, dy = (torch.randn(n, tokens, dtype=torch.float64) for n in (d_in, d_out))
    x[d_in // 2, tokens // 2] = dy[d_out // 2, tokens // 2] = bad
    for got, matrix, side in ((spmm(weight, x, impl=impl), w.t(), x), (spmm_t(weight, dy, impl=impl), w, dy)):
        terms = torch.where(matrix == 0, 0.0, matrix * side[:, tokens // 2])
        torch.testing.assert_close(got[:, tokens // 2], terms.sum(1), equal_nan=True)
        others = torch.arange(tokens) != tokens // 2
        close(got[:, others], matrix @ side[:, others])


@pytest.mark.parametrize("impl", IMPLS)
def test_gradcheck(impl: str) -> None:
    weight = SparseWeight.from_dense(drawn(6, 7, 0.4))
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    values = weight.values.clone().requires_grad_()
    bias = torch.randn(7, dtype=torch.float64, requires_grad=True)

    def layer(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return sparse_linear(weight, x, values, bias, impl)

    assert torch.autograd.gradcheck(layer, (x, values, bias))
    assert torch.autograd.gradcheck(lambda t: sparse_linear(weight, t, impl=impl), (x,))


def test_a_frozen_weight_keeps_no_activations_alive() -> None:
    weight = SparseWeight.from_dense(drawn(6, 7, 0.4))
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    y = sparse_linear(weight, x)
    assert not any(saved is not None and saved.shape == x.shape for saved in y.grad_fn.saved_tensors)
    y.sum().backward()
    close(x.grad, weight.to_dense().sum(1, keepdim=True).expand(6, 5))
    assert weight.values.grad is None


@settings(max_examples=40, deadline=None)
@given(d_in=st.integers(1, 40), d_out=st.integers(1, 40), density=st.floats(0, 1), tokens=st.integers(1, 20))
def test_forward_and_transpose_are_adjoint(d_in: int, d_out: int, density: float, tokens: int) -> None:
    weight = SparseWeight.from_dense(drawn(d_in, d_out, density))
    x, dy = torch.randn(d_in, tokens).double(), torch.randn(d_out, tokens).double()
    forward = (spmm(weight, x, impl="cpu") * dy).sum()
    torch.testing.assert_close(forward, (spmm_t(weight, dy, impl="cpu") * x).sum())
    torch.testing.assert_close(forward, (sddmm(weight, x, dy, impl="cpu") * weight.values).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (33, 5), (40, 700)])
def test_from_dense_round_trip(shape: tuple[int, int], dtype: torch.dtype) -> None:
    w = drawn(*shape, 0.1).to(dtype)
    mask = (w != 0) | (torch.rand(shape) < 0.05)
    for weight, support in ((SparseWeight.from_dense(w), w != 0), (SparseWeight.from_dense(w, mask), mask)):
        assert weight.shape == shape
        assert weight.n_nonzero == int(support.sum())
        assert weight.density == weight.n_nonzero / w.numel()
        assert torch.equal(weight.to_dense(), w)
        assert torch.equal(weight.values, w[support])
        rows, columns = support.nonzero(as_tuple=True)
        assert torch.equal(weight.rows_of_values(), rows)
        assert torch.equal(weight.column.long(), columns)
        by_column = support.t().nonzero(as_tuple=True)
        assert torch.equal(weight.row.long(), by_column[1])
        assert torch.equal(weight.values[weight.order], w.t()[support.t()])
        shuffled = torch.randperm(weight.n_nonzero)
        again = SparseWeight.from_entries(rows[shuffled], columns[shuffled], w[support][shuffled], shape)
        for field in dataclasses.fields(SparseWeight):
            got, expected = getattr(again, field.name), getattr(weight, field.name)
            assert torch.equal(got, expected) if isinstance(got, Tensor) else got == expected


def test_a_nan_is_an_entry() -> None:
    w = torch.zeros(3, 20)
    w[1, 17] = float("nan")
    assert SparseWeight.from_dense(w).n_nonzero == 1
    assert SparseWeight.from_dense(-torch.zeros(3, 20)).n_nonzero == 0


def test_to_dense_is_differentiable_in_the_values() -> None:
    weight = SparseWeight.from_dense(drawn(5, 6, 0.5))
    values = weight.values.clone().requires_grad_()
    scale = torch.randn(5, 6).double()
    (weight.with_values(values).to_dense() * scale).sum().backward()
    assert torch.equal(values.grad, scale[weight.to_dense() != 0])


def test_another_type() -> None:
    weight = SparseWeight.from_dense(drawn(5, 6, 0.5)).to(dtype=torch.float32)
    assert weight.values.dtype == torch.float32
    assert weight.row.dtype == torch.int32


def test_auto_goes_dense_where_dense_is_faster() -> None:
    x = torch.zeros(100, 2)
    assert chosen_impl(x, weight=SparseWeight.from_dense(torch.eye(100))) == "cpu"
    assert chosen_impl(x, weight=SparseWeight.from_dense(torch.ones(100, 3))) == "naive"
    assert chosen_impl(x, "cpu", SparseWeight.from_dense(torch.ones(100, 3))) == "cpu"


def test_where_tensor_cores_may_round_dense_wins_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = next(backend for backend in BACKENDS if backend.name == "triton")
    with FakeTensorMode():  # tensors that say they are on a GPU, where there is none
        exact, half = (
            torch.zeros(1, dtype=dtype, device="cuda") for dtype in (torch.float32, torch.bfloat16)
        )
    assert dense_from(triton, exact) == DENSE_FROM["triton"] == triton.dense_from
    assert dense_from(triton, half) == triton.dense_from_on_tensor_cores["bfloat16"]
    with tf32(True):
        assert dense_from(triton, exact) == triton.dense_from_on_tensor_cores["tf32"] < triton.dense_from
    monkeypatch.setitem(DENSE_FROM, "triton", 0.0)  # as a benchmark does that wants no sparse product
    assert dense_from(triton, exact) == 0.0
    cpu = next(backend for backend in BACKENDS if backend.name == "cpu")
    assert dense_from(cpu, torch.zeros(1)) == cpu.dense_from


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Without the shape checks of the test run, as a user runs it: the package's own errors must do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked_shapes")
def test_errors_name_the_argument_and_the_remedy() -> None:
    weight, x = SparseWeight.from_dense(torch.eye(3, 4)), torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"x has shape \(2, 3\); expected \[3, tokens\].* give x.t\(\)"):
        spmm(weight, x.t())
    with pytest.raises(ValueError, match=r"dy has shape \(3, 2\); expected \[4, tokens\]"):
        spmm_t(weight, x)
    with pytest.raises(ValueError, match=r"dy is \(4, 3\).*; expected \(4, 2\)"):
        sddmm(weight, x, torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"bias is \(3,\) .* expected \(4,\)"):
        sparse_linear(weight, x, bias=torch.ones(3))
    with pytest.raises(ValueError, match=r"out is \(4, 3\) .* expected \(4, 2\)"):
        spmm(weight, x, out=torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"x is torch.float64 .* the weight torch.float32"):
        sparse_linear(weight, x.double())
    with pytest.raises(ValueError, match=r"values has shape \(2,\); expected \(3,\), one per nonzero"):
        sparse_linear(weight, x, torch.ones(2))
    with pytest.raises(
        ValueError, match=r"weight is a Tensor; expected a SparseWeight, before the activations"
    ):
        sparse_linear(x, weight)
    with pytest.raises(ValueError, match=r"mask has shape \(2, 2\); expected \(3, 4\)"):
        SparseWeight.from_dense(torch.eye(3, 4), torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"impl is 'csr'; expected one of"):
        spmm(weight, x, impl="csr")
    with pytest.raises(ValueError, match=r"name a position twice"):
        SparseWeight.from_entries(torch.tensor([1, 1]), torch.tensor([2, 2]), torch.ones(2), (3, 3))
    with pytest.raises(ValueError, match=r"reach outside \(3, 3\)"):
        SparseWeight.from_entries(torch.tensor([1, 3]), torch.tensor([2, 2]), torch.ones(2), (3, 3))


def parts_of(weight: SparseWeight) -> dict[str, object]:
    return {field.name: getattr(weight, field.name) for field in dataclasses.fields(weight)}


def changed(array: Tensor, place: int, value: int) -> Tensor:
    array = array.clone()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("column", lambda a: changed(a, 0, 10**6)),
        ("column", lambda a: changed(a, 0, -1)),
        ("column", lambda a: a.flip(0).contiguous()),
        ("column", lambda a: a.repeat_interleave(2)[::2]),
        ("row", lambda a: changed(a, 0, 10**6)),
        ("row", lambda a: changed(a, -1, -1)),
        ("order", lambda a: changed(a, 0, 10**6)),
        ("order", lambda a: torch.zeros_like(a)),
        ("row_start", lambda a: changed(a, 1, 10**6)),
        ("row_start", lambda a: changed(a, -1, 10**6)),
        ("row_start", lambda a: changed(a, 1, -1)),
        ("column_start", lambda a: changed(a, 1, 10**6)),
        ("row_start", lambda a: a[:-1].contiguous()),
    ],
)
def test_index_arrays_are_checked_where_a_weight_is_made(
    name: str, wrong: Callable[[Tensor], Tensor]
) -> None:
    torch.manual_seed(0)
    weight = SparseWeight.from_dense(drawn(9, 7, 0.4))
    parts = parts_of(weight)
    SparseWeight(**parts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="SparseWeight.from_entries|from_entries do it"):
        SparseWeight(**parts | {name: wrong(parts[name])})  # type: ignore[arg-type]
