"""Causal attention with a sink in one call: no [query, key] matrix in memory, forward or backward."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from circuits.kernels.layout import laid_by_token

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def causal_attention(
    q: Float[Tensor, "batch pos head d_head"],
    k: Float[Tensor, "batch pos head d_head"],
    v: Float[Tensor, "batch pos head d_head"],
    sink: Float[Tensor, " head"] | None,
    impl: str = "auto",
) -> Float[Tensor, "batch pos head d_head"]:
    """Each query's mean of the values up to it, weighted by `exp(s_j) / (exp(sink) + sum_i exp(s_i))`.

    s = q k / sqrt(d_head). `cpu` is torch's own flash attention: a sink only adds to the denominator, so its
    output is scaled, and its backward pass is given the larger denominator. float32 and float64.

    Raises:
        ValueError: shapes that disagree, or an unknown impl.

    Source: Gao et al. 2025 (arXiv 2511.13653), attention sinks; Dao et al. 2022 (arXiv 2205.14135).
    """
    if not q.shape == k.shape == v.shape or (sink is not None and sink.shape != q.shape[2:3]):
        shapes = [None if t is None else tuple(t.shape) for t in (q, k, v, sink)]
        raise ValueError(f"q, k, v, sink have shapes {shapes}; expected q, k, v alike and sink [head]")
    if impl not in ("auto", "cpu", "naive"):
        raise ValueError(f"impl is {impl!r}; expected one of 'auto', 'cpu', 'naive'")
    fits = q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64) and q.numel() > 0
    if impl == "cpu" and not fits:
        raise ValueError(
            f"impl='cpu' takes float32 or float64 on the CPU; got {q.dtype} on {q.device}, {q.numel()} entries"
        )
    z: Tensor = _naive(q, k, v, sink) if impl == "naive" or not fits else _Flash.apply(q, k, v, sink)
    return z


def _naive(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None) -> Tensor:
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    scores = scores.masked_fill(later, -torch.inf)
    column = scores.new_full((*scores.shape[:3], 1), -torch.inf)
    if sink is not None:
        column = sink[:, None, None].expand_as(column)
    pattern = torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]
    return torch.einsum("bhqk,bkhd->bqhd", pattern, v)


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None) -> Tensor:
        # torch's kernel reads whole rows [d_head]; what comes feature-major goes back feature-major.
        ctx.feature_major = not q.is_contiguous() and _features(q).is_contiguous()
        q, k, v = (laid_by_token(x).transpose(1, 2) for x in (q, k, v))
        z, log_total = _forward(
            q, k, v, 0.0, True
        )  # log_total: of each softmax's denominator [batch, head, pos]
        if sink is not None:
            with_sink = torch.logaddexp(log_total, sink[:, None].to(log_total.dtype))
            z = z * (log_total - with_sink).exp().to(z.dtype)[..., None]
            log_total = with_sink
        ctx.save_for_backward(q, k, v, sink, z, log_total)
        return _laid(z.transpose(1, 2), ctx.feature_major)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sink, z, log_total = ctx.saved_tensors
        dz = laid_by_token(dz).transpose(1, 2)
        gradients = _backward(dz, q, k, v, z, log_total, 0.0, True)
        dq, dk, dv = (_laid(dx.transpose(1, 2), ctx.feature_major) for dx in gradients)
        dsink = None
        if ctx.needs_input_grad[3]:
            share = (sink[:, None].to(log_total.dtype) - log_total).exp()
            dsink = -(share * (dz * z).sum(-1)).sum((0, 2)).to(sink.dtype)
        return dq, dk, dv, dsink


def _features(x: Tensor) -> Tensor:
    """[batch, pos, head, d_head] as [head * d_head, batch * pos]."""
    return x.flatten(2).flatten(0, 1).t()


def _laid(x: Tensor, feature_major: bool) -> Tensor:
    """x, feature-major if asked for."""
    from circuits.kernels.cpu_layout import contiguous

    if not feature_major:
        return x
    return contiguous(_features(x)).t().unflatten(0, x.shape[:2]).unflatten(-1, x.shape[2:])
