"""Masks of whole features: what a left-out coordinate is replaced by, forward and backward in one pass each."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def replace_features(
    x: Float[Tensor, "batch pos *width"], mask: Float[Tensor, "*width"], value: Float[Tensor, "*width"]
) -> Float[Tensor, "batch pos *width"]:
    """`x * mask + value * (1 - mask)`, the mask being the same for every token; differentiable in x and mask.

    One compiled pass where x lies feature-major on the CPU (as it does under `sparse_compute`) and the values need
    no gradient; plain PyTorch elsewhere.
    """
    features = x.flatten(2).flatten(0, 1).t()
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.dtype == mask.dtype
    if fits and features.is_contiguous() and x.numel() and not value.requires_grad:
        y: Tensor = _Replace.apply(features, mask.flatten(), value.flatten().to(x.dtype))
        return y.t().unflatten(0, x.shape[:2]).unflatten(-1, x.shape[2:])
    return x * mask + value * (1 - mask)


class _Replace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, value: Tensor) -> Tensor:
        from circuits.kernels.cpu_layout import replaced

        mask, value = mask.contiguous(), value.contiguous()
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, mask, value)
        return replaced(x, mask, value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        from circuits.kernels.cpu_layout import contiguous, replaced_backward

        x, mask, value = ctx.saved_tensors
        if x is None:
            return dy * mask[:, None], None, None
        dx, dmask = replaced_backward(contiguous(dy), x, mask, value, ctx.needs_input_grad[0])
        return dx, dmask, None
