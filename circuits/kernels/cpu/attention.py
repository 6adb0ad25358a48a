"""Causal attention with a sink on the CPU: no [query, key] matrix in memory, forward or backward.

It is torch's own flash attention. A sink only adds to the denominator, so the output is scaled, and the backward
pass is given the larger denominator.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from circuits.kernels.cpu.layout import features_first, laid_by_feature, laid_by_token

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def causal_attention(
    q: Float[Tensor, "batch pos head d_head"],
    k: Float[Tensor, "batch pos head d_head"],
    v: Float[Tensor, "batch pos head d_head"],
    sink: Float[Tensor, " head"] | None,
) -> Float[Tensor, "batch pos head d_head"]:
    """Softmax over the keys so far and the sink; see `circuits.kernels.causal_attention`."""
    z: Tensor = _Flash.apply(q, k, v, sink)
    return z


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None) -> Tensor:
        # torch's kernel reads whole rows [d_head]; what comes feature-major goes back feature-major.
        ctx.feature_major = not q.is_contiguous() and features_first(q).is_contiguous()
        q, k, v = (laid_by_token(x).transpose(1, 2) for x in (q, k, v))
        # log_total: of each softmax's denominator [batch, head, pos]
        z, log_total = _forward(q, k, v, 0.0, True)
        if sink is not None:
            with_sink = torch.logaddexp(log_total, sink[:, None].to(log_total.dtype))
            z = z * (log_total - with_sink).exp().to(z.dtype)[..., None]
            log_total = with_sink
        ctx.save_for_backward(q, k, v, sink, z, log_total)
        z = z.transpose(1, 2)
        return laid_by_feature(z) if ctx.feature_major else z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sink, z, log_total = ctx.saved_tensors
        dz = laid_by_token(dz).transpose(1, 2)
        gradients = _backward(dz, q, k, v, z, log_total, 0.0, True)
        gradients = (dx.transpose(1, 2) for dx in gradients)
        dq, dk, dv = (laid_by_feature(dx) if ctx.feature_major else dx for dx in gradients)
        dsink = None
        if ctx.needs_input_grad[3]:
            share = (sink[:, None].to(log_total.dtype) - log_total).exp()
            dsink = -(share * (dz * z).sum(-1)).sum((0, 2)).to(sink.dtype)
        return dq, dk, dv, dsink
