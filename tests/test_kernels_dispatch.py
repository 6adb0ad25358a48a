"""Every operation with every backend: it runs with the outputs and gradients of naive, or refuses by name.

Which of the two is what the backend declares. Under TRITON_INTERPRET=1 (see test_kernels_triton.py) triton runs too.
"""

import ast
import dataclasses
import graphlib
import importlib.util
import inspect
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import jaxtyping
import pytest
import torch
from torch import Tensor

from circuits import kernels
from circuits.kernels import SparseWeight, chosen_impl, dispatch
from circuits.kernels.backend import OPS, Backend
from circuits.kernels.dispatch import BACKENDS, NAIVE
from circuits.kernels.triton import interpreted
from circuits.model.mixers.past import begun
from circuits.model.mixers.turbo import TurboConfig

ROOM = pathlib.Path(kernels.__file__).parent
HAS_TRITON = importlib.util.find_spec("triton") is not None
ON_A_GPU = torch.cuda.is_available() and not interpreted()
ALL = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)

Call = Callable[[str], list[Tensor]]


def gradients(fn: Callable[..., Tensor], *leaves: Tensor) -> list[Tensor]:
    """The output of fn, and its gradients to all leaves."""
    leaves = tuple(leaf.detach().clone().requires_grad_() for leaf in leaves)
    y = fn(*leaves)
    upstream = torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]


def fields(weight: SparseWeight) -> list[Tensor]:
    return [weight.values, weight.row_start, weight.column, weight.column_start, weight.row, weight.order]


def calls(device: str) -> dict[str, Call]:
    """For each operation a call with `impl`, on small float32 inputs; it returns all that must agree."""
    dense = torch.randn(9, 7) * (torch.rand(9, 7) < 0.3)
    weight, dense = SparseWeight.from_dense(dense).to(device), dense.to(device)
    x, dy, bias = (torch.randn(shape).to(device) for shape in ((9, 5), (7, 5), (7,)))
    q = torch.randn(3, 2, 4, 3, 5).to(device)
    laid = torch.randn(6, 3, 4).to(device).movedim(0, -1)  # feature-major
    mask, value, sink = (torch.rand(shape).to(device) for shape in ((6,), (6,), (3,)))
    stored = begun(q[1], q[2], TurboConfig(tile=4))
    k = kernels
    return {
        "from_dense": lambda i: fields(SparseWeight.from_dense(dense, impl=i)),
        "spmm": lambda i: [k.spmm(weight, x, bias, impl=i)],
        "spmm_t": lambda i: [k.spmm_t(weight, dy, impl=i)],
        "sddmm": lambda i: [k.sddmm(weight, x, dy, impl=i)],
        "sparse_linear": lambda i: gradients(
            lambda *leaves: k.sparse_linear(weight, *leaves, impl=i), x, weight.values, bias
        ),
        "trained_linear": lambda i: gradients(
            lambda *leaves: k.trained_linear(weight, *leaves, on_support=True, impl=i), x, dense, bias
        ),
        "topk_mask": lambda i: [k.topk_mask(dense, 11, impl=i)],
        "topk_threshold": lambda i: [k.topk_threshold(dense, 11, impl=i)],
        "slice_topk_mask": lambda i: [k.slice_topk_mask(dense, 3, 1, impl=i)],
        "abs_topk": lambda i: gradients(lambda t: k.abs_topk(t, 3, impl=i), dense),
        "causal_attention": lambda i: gradients(lambda *t: k.causal_attention(*t, impl=i), *q, sink),
        "turbo_attention": lambda i: [k.turbo_attention(*q, sink, tile=4, impl=i)],
        "turbo_decode": lambda i: [k.turbo_decode(q[0][:, -1:], stored, sink, impl=i)],
        "token_major": lambda i: gradients(lambda t: k.token_major(t, impl=i), laid),
        "replace_features": lambda i: gradients(
            lambda x, mask: k.replace_features(x, mask, value, impl=i), laid, mask
        ),
    }


def where(backend: Backend) -> str | None:
    """The device on which a backend can run here, if any."""
    if backend.name != "triton":
        return "cpu"
    return ("cpu" if interpreted() else "cuda" if ON_A_GPU else None) if HAS_TRITON else None


@ALL
@pytest.mark.parametrize("op", OPS)
def test_parity_of_every_declared_operation_and_refusal_of_every_other(op: str, backend: Backend) -> None:
    device = where(backend)
    call = calls(device or "cpu")[op]
    if op not in backend.runs:
        expected = rf"impl is '{backend.name}'; expected one of 'auto', .*'naive', which run {op}: impl='auto' always"
        with pytest.raises(ValueError, match=expected):
            call(backend.name)
    elif device is None:
        with pytest.raises(
            ValueError, match=f"impl='{backend.name}' (takes|needs) .*; got torch.float32 .* on cpu"
        ):
            call(backend.name)
    else:
        for ours, naive in zip(call(backend.name), call("naive"), strict=True):
            torch.testing.assert_close(ours, naive, atol=1e-5, rtol=1e-5)


@ALL
def test_a_backend_has_the_functions_of_what_it_declares_with_the_arguments_of_naive(
    backend: Backend,
) -> None:
    if backend.name == "triton":
        pytest.importorskip("triton")
    module, naive = dispatch.load(backend), dispatch.load(NAIVE)
    for op, names in OPS.items():
        assert all(hasattr(module, name) for name in names) == (op in backend.runs), op
        for name in names if op in backend.runs else ():
            ours, theirs = (inspect.signature(getattr(m, name)).parameters for m in (module, naive))
            assert [(p.name, p.default) for p in ours.values()] == [
                (p.name, p.default) for p in theirs.values()
            ]


def test_every_operation_is_public_takes_impl_and_has_a_call_here() -> None:
    assert set(calls("cpu")) == set(OPS)
    for op in OPS:
        function = SparseWeight.from_dense if op == "from_dense" else getattr(kernels, op)
        assert op == "from_dense" or op in kernels.__all__
        assert inspect.signature(function).parameters["impl"].default == "auto"
    assert set(NAIVE.runs) == set(OPS)


@ALL
def test_the_matrix_comes_first_then_the_activations(backend: Backend) -> None:
    if backend.name == "triton":
        pytest.importorskip("triton")
    products = [op for op in OPS if "weight" in inspect.signature(getattr(kernels, op, len)).parameters]
    assert products == ["spmm", "spmm_t", "sddmm", "sparse_linear", "trained_linear"]
    module = dispatch.load(backend)
    for function in [*(getattr(kernels, op) for op in products), module.spmm, module.spmm_t, module.sddmm]:
        first, second, *_ = inspect.signature(function).parameters
        assert (first, second) in (("weight", "x"), ("weight", "dy")), function


def test_the_dispatcher_goes_by_what_backends_declare(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.ones(3, 2), SparseWeight.from_dense(torch.eye(3))
    assert dispatch.chosen("spmm", "auto", x).name == "cpu"
    without = [
        dataclasses.replace(b, runs={op: r for op, r in b.runs.items() if op != "spmm" or b is NAIVE})
        for b in BACKENDS
    ]
    monkeypatch.setattr(dispatch, "BACKENDS", without)
    assert dispatch.chosen("spmm", "auto", x).name == "naive"
    assert dispatch.chosen("spmm_t", "auto", x).name == "cpu"
    with pytest.raises(ValueError, match=r"impl is 'cpu'; expected one of 'auto', 'naive', which run spmm"):
        kernels.spmm(weight, x, impl="cpu")
    assert torch.equal(kernels.spmm(weight, x), x)


def test_a_backend_cannot_declare_what_is_no_operation() -> None:
    with pytest.raises(ValueError, match=r"runs names \['spnm'\]; expected names of OPS"):
        Backend(name="x", module="x", runs={"spnm": lambda x: ""})


def test_auto_asks_in_order_and_naive_takes_everything() -> None:
    x = torch.zeros(2, 3, 4)
    found = {op: chosen_impl(x, op=op) for op in OPS if op != "replace_features"}
    assert found == {op: "naive" if op == "turbo_attention" else "cpu" for op in found}
    assert {chosen_impl(x.half(), op=op) for op in OPS} == {"naive"}
    assert [chosen_impl(t, op="replace_features") for t in (x, x.movedim(0, -1))] == ["naive", "cpu"]
    assert chosen_impl(x[:0], op="causal_attention") == "naive"
    assert chosen_impl(x[:0], op="abs_topk") == "cpu"


REPLACED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], str]] = {
    "token-major": (lambda x: x.contiguous(), lambda v: v, "takes activations that lie feature-major"),
    "gradient": (lambda x: x, lambda v: v.clone().requires_grad_(), "passes no gradient on to the value"),
    "empty": (lambda x: x[:0], lambda v: v, "takes at least one entry"),
    "float16": (lambda x: x.half(), lambda v: v, "takes float32 or float64 on the CPU"),
    "float64": (lambda x: x.double(), lambda v: v, "takes a mask of the type of x"),
}


@pytest.mark.parametrize("why", REPLACED)
def test_what_the_compiled_mask_cannot_take_is_refused_and_auto_is_naive(why: str) -> None:
    change_x, change_value, said = REPLACED[why]
    x, mask, value = torch.randn(6, 3, 4).movedim(0, -1), torch.rand(6), torch.rand(6)
    assert dispatch.chosen("replace_features", "auto", x, mask, value).name == "cpu"
    x, value = change_x(x), change_value(value)
    with pytest.raises(
        ValueError, match=rf"impl='cpu' {said}.*; got {x.dtype} .* on cpu: convert it, or use impl="
    ):
        kernels.replace_features(x, mask, value, impl="cpu")
    assert torch.equal(kernels.replace_features(x, mask, value), x * mask + value * (1 - mask))


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Without the shape checks of the test run, as a user runs it: the package's own errors must do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked_shapes")
def test_masks_of_another_width_are_an_error() -> None:
    x, width = torch.ones(2, 3, 4), torch.ones(4)
    with pytest.raises(ValueError, match=r"mask is \(3,\) .*; expected \(4,\)"):
        kernels.replace_features(x, width[:3], width)
    with pytest.raises(ValueError, match=r"value is \(1,\) .*; expected \(4,\)"):
        kernels.replace_features(x, width, width[:1])


def imported(path: pathlib.Path) -> Iterator[tuple[str, bool]]:
    """Dotted names that a file imports, and whether inside a function."""
    tree = ast.parse(path.read_text())
    lazy = {
        id(n)
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)
        for n in ast.walk(f)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((f"{node.module}.{alias.name}", id(node) in lazy) for alias in node.names)


def modules() -> dict[str, pathlib.Path]:
    """Every module of the room by its dotted name."""
    found = {}
    for path in ROOM.rglob("*.py"):
        parts = path.relative_to(ROOM.parent.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def test_no_import_is_lazy_or_leads_back_to_where_it_came_from() -> None:
    graph: dict[str, set[str]] = {}
    room = modules()
    for name, path in room.items():
        assert not [found for found, lazy in imported(path) if lazy], f"{name} imports inside a function"
        # `from a.b import c` imports a.b.c where that is a module, else a.b.
        needed = ({found, found.rpartition(".")[0]} & set(room) for found, _ in imported(path))
        graph[name] = {max(names, key=len) for names in needed if names}
    assert "circuits.kernels.dispatch" in graph["circuits.kernels.sparse_weight"]
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError
    loaders = [name for name, path in room.items() if "import_module" in path.read_text()]
    assert loaders == ["circuits.kernels.dispatch"]


@pytest.mark.parametrize(("compiler", "place"), [("numba", "cpu"), ("triton", "triton")])
def test_compilers_are_imported_by_their_backend_only(compiler: str, place: str) -> None:
    users = {
        path.relative_to(ROOM).parts[0]
        for path in modules().values()
        if any(found.split(".")[0] == compiler for found, _ in imported(path))
    }
    assert users == {place}


def run_fresh(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOM.parents[1])
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_no_compiler_is_imported_before_an_operation_needs_it() -> None:
    run_fresh(
        "import sys, torch, circuits.kernels as k\n"
        "def loaded(): return {'numba', 'triton'} & set(sys.modules)\n"
        "before = loaded()\n"
        "assert not before, before\n"
        "assert k.chosen_impl(torch.ones(2)) == 'cpu' and k.chosen_impl(torch.ones(2).half()) == 'naive'\n"
        "k.abs_topk(torch.ones(3).half(), 1); k.abs_topk(torch.ones(3), 1, impl='naive')\n"
        "assert not loaded(), loaded()\n"
        "k.abs_topk(torch.ones(3), 1)\n"
        "assert loaded() == {'numba'}, loaded()\n"
    )


def test_functions_and_modules_are_short() -> None:
    for name, path in modules().items():
        text = path.read_text()
        assert len(text.splitlines()) <= 600, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 60, f"{name}.{node.name}"
