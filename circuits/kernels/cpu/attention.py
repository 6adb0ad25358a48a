"""Causal attention with a sink on the CPU: no [query, key] matrix in memory, forward or backward.

It is torch's own flash attention. A sink only adds to the denominator, so the output is scaled, and the backward
pass is given the larger denominator. Two things flash attention does not do are left to `naive`: it drops some NaNs and
infinities, and its gradients have no derivatives.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.kernels import naive
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
        given = (q, k, v, sink)
        # torch's kernel reads whole rows [d_head]; what comes feature-major goes back feature-major.
        ctx.feature_major = not q.is_contiguous() and features_first(q).is_contiguous()
        q, k, v = (laid_by_token(x) for x in (q, k, v))
        ctx.finite = _finite(q, k, v, sink)
        if not ctx.finite:
            ctx.save_for_backward(*given)
            return naive.causal_attention(*given)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        # log_total: of each softmax's denominator [batch, head, pos]
        z, log_total = _forward(q, k, v, 0.0, True)
        if sink is not None:
            with_sink = torch.logaddexp(log_total, sink[:, None].to(log_total.dtype))
            z = z * (log_total - with_sink).exp().to(z.dtype)[..., None]
            log_total = with_sink
        ctx.save_for_backward(*given, q, k, v, z, log_total)
        z = z.transpose(1, 2)
        return laid_by_feature(z) if ctx.feature_major else z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        given, (sink, dz) = ctx.saved_tensors[:4], (ctx.saved_tensors[3], laid_by_token(grads[0]))
        if torch.is_grad_enabled() or not ctx.finite or not _finite(dz, dz, dz):
            return _naive_gradients(given, grads[0])
        q, k, v, z, log_total = ctx.saved_tensors[4:]
        dz = dz.transpose(1, 2)
        gradients = _backward(dz, q, k, v, z, log_total, 0.0, True)
        gradients = (dx.transpose(1, 2) for dx in gradients)
        dq, dk, dv = (laid_by_feature(dx) if ctx.feature_major else dx for dx in gradients)
        dsink = None
        if ctx.needs_input_grad[3]:
            share = (sink[:, None].to(log_total.dtype) - log_total).exp()
            dsink = -(share * (dz * z).sum(-1)).sum((0, 2)).to(sink.dtype)
        return dq, dk, dv, dsink


def _finite(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None = None) -> bool:
    """Whether none holds NaN or infinity (a sink may be -inf); q, k, v contiguous. May be False for huge numbers."""
    size = torch.dot(q.view(-1), k.view(-1)).abs() + torch.dot(v.view(-1), v.view(-1))
    return bool((size if sink is None else size + sink.max()) < torch.inf)


def _naive_gradients(given: Sequence[Any], dz: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the definition, themselves differentiable where that is recorded."""
    record = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, or copies without a history: one tensor given twice gets two gradients.
        leaves = [x if x is None or not x.requires_grad else x.view_as(x) for x in given]
        if not record:
            leaves = [x if x is None else x.detach().requires_grad_(x.requires_grad) for x in leaves]
        z = naive.causal_attention(*leaves)
        wanted = [x for x in leaves if x is not None and x.requires_grad]
        found = iter(torch.autograd.grad(z, wanted, dz, create_graph=record))
    return tuple(next(found) if x is not None and x.requires_grad else None for x in leaves)
