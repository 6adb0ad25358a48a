"""The one dispatcher: which backend runs a call, by what the backends declare.

Compiled loops read memory. What PyTorch only traces or wraps (`transformed`), and backward passes that are themselves
differentiated (`differentiable`), run in plain PyTorch.
"""

import importlib
import sys
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

from circuits.kernels.backend import OPS, Backend
from circuits.kernels.cpu import CPU
from circuits.kernels.triton import TRITON

NAIVE = Backend(name="naive", module="circuits.kernels.naive", runs=dict.fromkeys(OPS, lambda *tensors: ""))
"""Every operation on everything: it defines them. (Declared here, since its module needs what needs this one.)"""
BACKENDS = (CPU, TRITON, NAIVE)
"""In the order in which `auto` asks them."""
DENSE_FROM = {backend.name: backend.dense_from for backend in BACKENDS if backend is not NAIVE}
"""Density from which the product with a dense matrix is faster in float32, as each backend declares it."""


def dense_from(backend: Backend, x: Tensor) -> float:
    """Density from which the product of a dense matrix with tensors like x is faster than the backend's."""
    arithmetic = str(x.dtype).removeprefix("torch.")
    if arithmetic == "float32" and x.is_cuda and torch.backends.cuda.matmul.allow_tf32:
        arithmetic = "tf32"
    from_there = backend.dense_from_on_tensor_cores.get(arithmetic, 1.0)
    return min(DENSE_FROM.get(backend.name, 0.0), from_there)


def transformed() -> bool:
    """Whether PyTorch looks through the call, which only plain PyTorch bears.

    That is inside torch.compile, torch.func (vmap, grad, jacrev), forward-mode derivatives, tracing with fake tensors.

    Examples:
        >>> circuits.kernels.transformed()
        False
        >>> torch.func.vmap(lambda x: x * circuits.kernels.transformed())(torch.ones(2))
        tensor([1., 1.])
    """
    return bool(
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack()
    )


def chosen(op: str, impl: str, *tensors: Tensor, density: float | None = None) -> Backend:
    """The backend that runs an operation of `OPS` on these tensors; loads nothing.

    Args:
        op: a name of `OPS`.
        impl: the name of a backend, or `auto`: the first of `BACKENDS` that runs it; `naive` where `transformed`.
        tensors: what `Backend.runs` is told.
        density: of the weight, for products: from `dense_from` up, `auto` is `naive`.

    Raises:
        ValueError: no backend of this name runs the operation, or it does not take these tensors.
    """
    plain = transformed()
    if impl == "auto" and plain:
        return NAIVE
    if impl == "auto":
        fitting = next(b for b in BACKENDS if op in b.runs and not b.runs[op](*tensors))
        dense = density is not None and density >= dense_from(fitting, x=tensors[0])
        return NAIVE if dense else fitting
    able = {backend.name: backend for backend in BACKENDS if op in backend.runs}
    if impl not in able:
        names = ", ".join(repr(name) for name in ("auto", *able))
        raise ValueError(
            f"impl is {impl!r}; expected one of {names}, which run {op}: impl='auto' always does"
        )
    if plain and impl != NAIVE.name:
        raise ValueError(
            f"impl={impl!r} reads memory, which torch.compile, torch.func and tracing hide; expected 'auto' or "
            "'naive' inside them: use impl='auto'"
        )
    if misfit := able[impl].runs[op](*tensors):
        x = tensors[0]
        got = f"{x.dtype} {list(x.shape)} on {x.device}"
        raise ValueError(f"impl={impl!r} {misfit}; got {got}: convert it, or use impl='auto'")
    return able[impl]


def load(backend: Backend) -> ModuleType:
    """The module that holds a backend's functions."""
    found = sys.modules.get(backend.module)  # which torch.compile can follow, unlike an import
    return importlib.import_module(backend.module) if found is None else found


def implementation(op: str, impl: str, *tensors: Tensor, density: float | None = None) -> ModuleType:
    """The module that runs an operation on these tensors: `load` of `chosen`, with its arguments and errors."""
    return load(chosen(op, impl, *tensors, density=density))


def differentiable(module: ModuleType) -> ModuleType:
    """The module for a backward pass: plain PyTorch where derivatives of the gradients are recorded (create_graph)."""
    return load(NAIVE) if torch.is_grad_enabled() else module
