"""Products with a sparse weight: forward, transposed, sampled, and the linear layers made of the three.

The matrix comes first, then the activations, in every one of them and in every backend.
"""

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.kernels.checks import check_like, check_operand
from circuits.kernels.dispatch import chosen, differentiable, implementation, transformed
from circuits.kernels.sparse_weight import SparseWeight


def chosen_impl(
    x: Float[Tensor, "*shape"], impl: str = "auto", weight: SparseWeight | None = None, *, op: str = "spmm"
) -> str:
    """Which implementation a call with this tensor runs.

    `auto` is `triton` for CUDA tensors in float32 or bfloat16 where triton is installed, `cpu` for CPU
    tensors in float32 or float64, and `naive` for everything else (float16, other devices), as each backend
    declares. For a product, give its `weight`: from the density in `DENSE_FROM` up, where dense matrices are
    faster, `auto` is `naive`.

    Args:
        x: activations of any shape, or a dense matrix.
        impl: `auto`, or the name of a backend.
        weight: of a product.
        op: the operation asked about; products and selections take the same tensors.

    Raises:
        ValueError: `impl` is unknown, or cannot run on this tensor.

    Examples:
        >>> circuits.kernels.chosen_impl(torch.ones(2), "naive")
        'naive'
    """
    return chosen(op, impl, x, density=None if weight is None else weight.density).name


def spmm(
    weight: SparseWeight,
    x: Float[Tensor, "d_in tokens"],
    bias: Float[Tensor, " d_out"] | None = None,
    impl: str = "auto",
    out: Float[Tensor, "d_out tokens"] | None = None,
) -> Float[Tensor, "d_out tokens"]:
    """Sparse weight times dense activations, feature-major: W^T x + bias.

    Records no gradient: see `sparse_linear`.

    Raises:
        ValueError: shapes, types or devices that disagree.

    Examples:
        >>> weight = circuits.kernels.SparseWeight.from_dense(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
        >>> circuits.kernels.spmm(weight, torch.tensor([[1.0], [10.0]]))
        tensor([[30.],
                [ 2.]])
    """
    check_operand(weight, "x", x, "d_in")
    d_out = weight.shape[1]
    check_like("bias", bias, (d_out,), x)
    check_like("out", out, (d_out, x.shape[1]), x)
    shift = None if bias is None else bias.detach()
    y: Tensor = _module("spmm", impl, weight, x).spmm(weight, x.detach(), shift, out)
    return y


def spmm_t(
    weight: SparseWeight,
    dy: Float[Tensor, "d_out tokens"],
    impl: str = "auto",
    out: Float[Tensor, "d_in tokens"] | None = None,
) -> Float[Tensor, "d_in tokens"]:
    """The transpose of `spmm`, which is the gradient to the activations: W dy.

    Raises:
        ValueError: shapes, types or devices that disagree.

    Examples:
        >>> weight = circuits.kernels.SparseWeight.from_dense(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
        >>> circuits.kernels.spmm_t(weight, torch.tensor([[1.0], [10.0]]))
        tensor([[20.],
                [ 3.]])
    """
    check_operand(weight, "dy", dy, "d_out")
    check_like("out", out, (weight.shape[0], dy.shape[1]), dy)
    dx: Tensor = _module("spmm_t", impl, weight, dy).spmm_t(weight, dy.detach(), out)
    return dx


def sddmm(
    weight: SparseWeight,
    x: Float[Tensor, "d_in tokens"],
    dy: Float[Tensor, "d_out tokens"],
    impl: str = "auto",
) -> Float[Tensor, " n_nonzero"]:
    """Sampled dense-dense product: the entries of x dy^T on the support, which is the gradient to the values.

    Raises:
        ValueError: shapes, types or devices that disagree.

    Examples:
        >>> weight = circuits.kernels.SparseWeight.from_dense(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
        >>> circuits.kernels.sddmm(weight, torch.tensor([[1.0], [10.0]]), torch.tensor([[1.0], [5.0]]))
        tensor([ 5., 10.])
    """
    check_operand(weight, "x", x, "d_in")
    check_operand(weight, "dy", dy, "d_out")
    check_like("dy", dy, (weight.shape[1], x.shape[1]), x)
    dvalues: Tensor = _module("sddmm", impl, weight, x).sddmm(weight, x.detach(), dy.detach())
    return dvalues


def sparse_linear(
    weight: SparseWeight,
    x: Float[Tensor, "d_in tokens"],
    values: Float[Tensor, " n_nonzero"] | None = None,
    bias: Float[Tensor, " d_out"] | None = None,
    impl: str = "auto",
) -> Float[Tensor, "d_out tokens"]:
    """A linear layer that costs what its nonzeros cost, forward and backward: W^T x + bias.

    Gradients go to x, to `values` and to `bias`, each computed only where it is required; none is dense.

    Args:
        weight: the support, and the values unless `values` is given.
        x: activations, feature-major.
        values: values to use, and to train, in the order of `weight.values`.
        bias: added to every token.
        impl: see `chosen_impl`.

    Raises:
        ValueError: shapes, types or devices that disagree.

    Examples:
        >>> weight = circuits.kernels.SparseWeight.from_dense(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
        >>> circuits.kernels.sparse_linear(weight, torch.tensor([[1.0], [10.0]]))
        tensor([[30.],
                [ 2.]])
    """
    weight = weight if values is None else weight.with_values(values)
    check_operand(weight, "x", x, "d_in")
    check_like("bias", bias, (weight.shape[1],), x)
    module = _module("sparse_linear", impl, weight, x)
    if transformed():
        y: Tensor = module.spmm(weight, x, bias)
    else:
        y = _SparseLinear.apply(weight, x, weight.values, bias, module)
    return y


def trained_linear(
    weight: SparseWeight,
    x: Float[Tensor, "d_in tokens"],
    dense: Float[Tensor, "d_in d_out"],
    bias: Float[Tensor, " d_out"],
    on_support: bool = False,
    impl: str = "auto",
) -> Float[Tensor, "d_out tokens"]:
    """`sparse_linear` for a weight that is trained as a dense matrix: W^T x + bias.

    Args:
        weight: the nonzeros of `dense`.
        x: activations, feature-major.
        dense: gets the gradient, as a dense matrix; its entries are read only where derivatives of gradients are taken.
        bias: added to every token.
        on_support: take the gradient to `dense` at the nonzeros only, and zero elsewhere; otherwise everywhere.
        impl: see `chosen_impl`.

    Raises:
        ValueError: shapes, types or devices that disagree.

    Examples:
        >>> dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
        >>> weight = circuits.kernels.SparseWeight.from_dense(dense)
        >>> circuits.kernels.trained_linear(weight, torch.tensor([[1.0], [10.0]]), dense, torch.zeros(2))
        tensor([[30.],
                [ 2.]])
    """
    check_operand(weight, "x", x, "d_in")
    check_like("dense", dense, weight.shape, x)
    check_like("bias", bias, (weight.shape[1],), x)
    module = _module("trained_linear", impl, weight, x)
    if transformed():
        y: Tensor = (
            module.spmm(_trained(weight, dense), x, bias) if on_support else dense.t() @ x + bias[:, None]
        )
    else:
        y = _TrainedLinear.apply(weight, x, dense, bias, on_support, module)
    return y


def _trained(weight: SparseWeight, dense: Tensor) -> SparseWeight:
    """The weight with its values read from the matrix that is trained, and so differentiable in it."""
    return weight.with_values(dense[weight.rows_of_values(), weight.column.long()])


def _module(op: str, impl: str, weight: SparseWeight, x: Tensor) -> ModuleType:
    return implementation(op, impl, x, density=weight.density)


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: SparseWeight, x: Tensor, values: Tensor, bias: Tensor | None, module: ModuleType
    ) -> Tensor:
        # x is needed only for the gradient to the values: a frozen weight does not keep it alive.
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, values)
        ctx.weight, ctx.module = weight, module
        y: Tensor = module.spmm(weight, x, bias)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, values = ctx.saved_tensors
        weight, module, dy = ctx.weight.with_values(values), differentiable(ctx.module), grads[0]
        _, wants_x, wants_values, wants_bias, _ = ctx.needs_input_grad
        dx = module.spmm_t(weight, dy) if wants_x else None
        dvalues = module.sddmm(weight, x, dy) if wants_values else None
        return None, dx, dvalues, (dy.sum(1) if wants_bias else None), None


class _TrainedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: SparseWeight,
        x: Tensor,
        dense: Tensor,
        bias: Tensor,
        on_support: bool,
        module: ModuleType,
    ) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, dense)
        ctx.weight, ctx.on_support, ctx.module = weight, on_support, module
        y: Tensor = module.spmm(weight, x, bias)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, dense = ctx.saved_tensors
        weight, module, dy = ctx.weight, differentiable(ctx.module), grads[0]
        _, wants_x, wants_dense, wants_bias, *_ = ctx.needs_input_grad
        dx = None
        if wants_x and torch.is_grad_enabled():
            dx = module.spmm_t(_trained(weight, dense), dy) if ctx.on_support else dense @ dy
        elif wants_x:
            dx = module.spmm_t(weight, dy)
        ddense = None
        if wants_dense and ctx.on_support:
            ddense = weight.with_values(module.sddmm(weight, x, dy)).to_dense()
        elif wants_dense:
            ddense = x @ dy.t()
        return None, dx, ddense, (dy.sum(1) if wants_bias else None), None, None
