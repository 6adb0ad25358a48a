"""From feature-major activations, as the sparse products leave them, to token-major ones, as everybody else wants."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def token_major(x: Float[Tensor, "batch pos *width"]) -> Float[Tensor, "batch pos *width"]:
    """`x.contiguous()`, differentiable; one compiled pass where x lies feature-major on the CPU."""
    if x.is_contiguous():
        return x
    y: Tensor = _TokenMajor.apply(x)
    return y


class _TokenMajor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return laid_by_token(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]  # in whatever layout: who needs another one lays it out anew


def laid_by_token(x: Float[Tensor, "batch pos *width"]) -> Float[Tensor, "batch pos *width"]:
    """x, contiguous; no gradient."""
    if x.device.type != "cpu" or not x.numel():
        return x.contiguous()
    from circuits.kernels.cpu_layout import contiguous

    return contiguous(x.flatten(2).flatten(0, 1)).view(x.shape)
