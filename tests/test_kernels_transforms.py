"""Kernels under what PyTorch does to functions: second derivatives, torch.func, torch.compile, NaN, infinity."""

import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import circuits
from circuits import kernels
from circuits.kernels import SparseWeight, causal_attention
from circuits.pruning.gates import hard_mask

Case = tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]


def cases() -> dict[str, Case]:
    """For each operation: it on its fastest backend, the same in plain PyTorch, and inputs in float64."""
    f64 = torch.float64
    dense = torch.randn(5, 6, dtype=f64) * (torch.arange(30).view(5, 6) % 3 == 0)
    support, weight = dense != 0, SparseWeight.from_dense(dense)
    x, bias = torch.randn(5, 4, dtype=f64), torch.randn(6, dtype=f64)
    q, k, v = torch.randn(3, 2, 3, 2, 4, dtype=f64)
    sink, laid = torch.randn(2, dtype=f64), torch.randn(4, 2, 3, dtype=f64).movedim(0, -1)
    mask, value = torch.rand(4, dtype=f64), torch.randn(4, dtype=f64)

    def spread(values: Tensor) -> Tensor:
        return torch.zeros(5, 6, dtype=f64).index_put(support.nonzero(as_tuple=True), values)

    def trained(on_support: bool) -> Case:
        return (
            lambda x, w, b: kernels.trained_linear(weight, x, w, b, on_support=on_support),
            lambda x, w, b: (w * support if on_support else w).t() @ x + b[:, None],
            (x, dense, bias),
        )

    return {
        "causal_attention": (
            lambda *t: causal_attention(*t),
            lambda *t: causal_attention(*t, impl="naive"),
            (q, k, v, sink),
        ),
        "abs_topk": (
            lambda x: kernels.abs_topk(x.sin(), 2),
            lambda x: x.sin() * kernels.slice_topk_mask(q.sin(), 2, -1),
            (q,),
        ),
        "sparse_linear": (
            lambda x, values, b: kernels.sparse_linear(weight, x, values, b),
            lambda x, values, b: spread(values).t() @ x + b[:, None],
            (x, weight.values, bias),
        ),
        "trained_linear": trained(False),
        "trained_linear on support": trained(True),
        "token_major": (lambda x: kernels.token_major(x), lambda x: x.clone(), (laid,)),
        "replace_features": (
            lambda x, m: kernels.replace_features(x, m, value),
            lambda x, m: x * m + value * (1 - m),
            (laid, mask),
        ),
    }


def second(fn: Callable[..., Tensor], inputs: tuple[Tensor, ...], power: int) -> list[Tensor | None]:
    """Derivatives of a mixture of the gradients of fn; power 1: with upstream gradients that are constants."""
    leaves = [x.clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    y = fn(*leaves)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    gradients = torch.autograd.grad((y**power * weights).sum(), leaves, create_graph=True)
    mixed = sum(((g * g.detach().cos()).sum() for g in gradients), start=sum(x.sum() for x in leaves))
    return list(torch.autograd.grad(mixed, leaves))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("name", cases())
def test_second_derivatives_are_those_of_plain_pytorch(name: str, power: int) -> None:
    fn, plain, inputs = cases()[name]
    for ours, theirs in zip(second(fn, inputs, power), second(plain, inputs, power), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_attention_of_a_tensor_with_itself_has_the_right_second_derivatives() -> None:
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    ours = second(lambda x: causal_attention(x, x, x, None, impl="cpu"), (x,), 2)
    theirs = second(lambda x: causal_attention(x, x, x, None, impl="naive"), (x,), 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


# torch itself compiles its rules for jvp in a way that it warns of.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", cases())
def test_torch_func_gives_what_plain_pytorch_gives(name: str) -> None:
    fn, plain, inputs = cases()[name]
    every = tuple(range(len(inputs)))
    tangents = tuple(torch.cos(x) for x in inputs)
    doubled = tuple(torch.stack([x, x + 0.01]) for x in inputs)
    for transform, arguments in (
        (lambda f: torch.func.jacrev(f, every), inputs),
        (torch.func.vmap, doubled if name != "abs_topk" else tuple(torch.stack([x, x]) for x in inputs)),
        (lambda f: lambda *t: torch.func.jvp(f, t, tangents), inputs),
    ):
        torch.testing.assert_close(
            transform(fn)(*arguments), transform(plain)(*arguments), rtol=1e-9, atol=1e-10
        )


def test_a_backend_that_reads_memory_is_refused_by_name_inside_a_transform() -> None:
    with pytest.raises(ValueError, match=r"impl='cpu' reads memory, .*use impl='auto'"):
        torch.func.vmap(lambda x: kernels.abs_topk(x, 1, impl="cpu"))(torch.ones(2, 3))


def test_gates_under_torch_func() -> None:
    gate = torch.tensor([-1.0, 0.5, 2.0])
    slope = gate.sigmoid() * (1 - gate.sigmoid())
    torch.testing.assert_close(torch.func.jacrev(hard_mask)(gate), slope.diag())
    assert torch.equal(
        torch.func.vmap(hard_mask)(torch.stack([gate, -gate])), torch.stack([gate, -gate]).gt(0).float()
    )


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["q", "k", "v", "sink", "dz"])
@pytest.mark.parametrize("n_pos", [4, 40])
def test_attention_shows_what_is_not_finite_where_naive_does(where: str, special: float, n_pos: int) -> None:
    q, k, v, dz = torch.randn(4, 1, n_pos, 2, 5)
    sink = torch.randn(2)
    given = {"q": q, "k": k, "v": v, "sink": sink, "dz": dz}[where]
    given.view(-1)[given.numel() // 2] = special
    found = []
    for impl in ("cpu", "naive"):
        leaves = [x.clone().requires_grad_() for x in (q, k, v, sink)]
        z = causal_attention(*leaves, impl=impl)
        found.append([z.detach(), *torch.autograd.grad(z, leaves, dz)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4, equal_nan=True)


def test_the_cache_and_the_plain_pass_agree_on_nan() -> None:
    model = circuits.load("mini-python").model
    with torch.no_grad():
        model.blocks[0].attn.q.weight[0, 0] = float("nan")
        tokens = torch.arange(12).view(2, 6)
        plain, (cached, _) = model(tokens), model.run_with_cache(tokens)
    assert plain.isnan().any()
    assert torch.equal(plain.isnan(), cached.isnan())


COMPILED = """
import torch
from circuits.model import ModelConfig, SparseTransformer
from circuits.model.compute import sparse_compute

config = ModelConfig(n_layers=1, d_model=16, n_heads=2, d_head=4, d_mlp=32, n_ctx=8, d_vocab=16, topk_fraction=0.25)
model, tokens = SparseTransformer(config), torch.arange(16).view(2, 8)
with torch.no_grad():
    for _, linear in model.linears():
        linear.weight.mul_(torch.rand_like(linear.weight) < 0.2)
compiled = torch.compile(model, backend="aot_eager")


def gradients(run):
    return torch.autograd.grad(run(tokens, return_type="loss"), list(model.parameters()))


with torch.no_grad():
    torch.testing.assert_close(compiled(tokens), model(tokens), atol=1e-4, rtol=1e-4)
with sparse_compute(model):  # on other kernels
    for ours, theirs in zip(gradients(compiled), gradients(model), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
"""


@pytest.mark.slow
def test_a_compiled_model_computes_and_trains_like_the_model_on_its_nonzeros_too() -> None:
    # In a process of its own: a failure may end it, and torch.compile does not see through the shape checks of a test.
    done = subprocess.run(
        [sys.executable, "-c", COMPILED],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(circuits.__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr[-3000:]
