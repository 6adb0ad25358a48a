"""Errors that the operations have in common: each names the argument, what it got, what was expected, what to do."""

from torch import Tensor

from circuits.kernels.sparse_weight import SparseWeight


def check_selection(name: str, x: Tensor, k: int, width: int) -> None:
    """That k of `width` entries of x can be selected by magnitude."""
    if not x.is_floating_point():
        raise ValueError(
            f"{name} has dtype {x.dtype}; expected a floating-point tensor: convert it with .float()"
        )
    if not 1 <= k <= width:
        raise ValueError(f"k is {k}; expected 1 to {width}, the number of entries it selects from")


def check_dim(x: Tensor, dim: int) -> None:
    """That x has this dim."""
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(
            f"dim is {dim}; expected {-x.ndim} to {x.ndim - 1} for a tensor of shape {tuple(x.shape)}"
        )


def check_like(name: str, given: Tensor | None, shape: tuple[int, ...], x: Tensor) -> None:
    """That a tensor, if there is one, has this shape, and the type and device of x."""
    if given is None or (tuple(given.shape) == shape and given.dtype == x.dtype and given.device == x.device):
        return
    got = f"{tuple(given.shape)} {given.dtype} on {given.device}"
    raise ValueError(f"{name} is {got}; expected {shape} {x.dtype} on {x.device}: reshape it or convert it")


def check_operand(weight: SparseWeight, name: str, given: Tensor, axis: str) -> None:
    """That activations lie feature-major and match one axis of the weight, "d_in" or "d_out"."""
    if not isinstance(weight, SparseWeight):
        raise ValueError(
            f"weight is a {type(weight).__name__}; expected a SparseWeight, before the activations: make one with "
            "SparseWeight.from_dense"
        )
    rows = weight.shape[0 if axis == "d_in" else 1]
    if given.ndim != 2 or given.shape[0] != rows:
        turned = given.ndim == 2 and given.shape[1] == rows
        hint = ": activations are feature-major, give x.t()" if turned else ""
        raise ValueError(
            f"{name} has shape {tuple(given.shape)}; expected [{rows}, tokens], with {axis} = {rows} "
            f"of the weight {weight.shape}{hint}"
        )
    if given.dtype != weight.values.dtype or given.device != weight.values.device:
        raise ValueError(
            f"{name} is {given.dtype} on {given.device}, the weight {weight.values.dtype} on "
            f"{weight.values.device}; expected the same: convert one, for instance with weight.to(...)"
        )
