"""Attention of an encoder-decoder: both ways with padding left out, towards the source, and step by step.

What an encoder may attend to depends on the source, and what a decoder remembers on the steps before. Both are set by
the model for one pass, on all its attention layers (`Given`, in `past.py`).
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens.config import TransformerLensConfig

from circuits.model.config import ModelConfig
from circuits.model.hooks import HookPoint
from circuits.model.layers import AbsTopK
from circuits.model.mixers.past import Given
from circuits.model.mixers.softmax import SoftmaxAttention
from circuits.model.sites import Site


class _Patterned(SoftmaxAttention):
    """Attention whose pattern is always written out."""

    def through(
        self,
        q: Float[Tensor, "batch query head d_head"],
        k: Float[Tensor, "batch key head d_head"],
        v: Float[Tensor, "batch key head d_head"],
        open: Bool[Tensor, "#batch 1 #query key"],
    ) -> Float[Tensor, "batch query head d_head"]:
        """`softmax(q k / sqrt(d_head)) v` over the open keys; a query without any takes nothing."""
        turbo = self.given.turbo
        if turbo is not None:
            q, k, v = turbo.query(q), turbo.stored(k), turbo.stored(v)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(self.d_head)
        closed = ~open & open.any(-1, keepdim=True)  # a row of nothing but -inf has no gradient
        scores = self.hook_attn_scores(scores.masked_fill(closed, -torch.inf))
        pattern = self.hook_pattern(self.weigh(scores, turbo).masked_fill(~open, 0.0))
        return torch.einsum("bhqk,bkhd->bqhd", pattern, v)


class EncoderAttention(_Patterned):
    """Softmax attention in both directions, padding left out."""

    def mix(
        self,
        q: Float[Tensor, "batch query head d_head"],
        k: Float[Tensor, "batch key head d_head"],
        v: Float[Tensor, "batch key head d_head"],
        x: Float[Tensor, "batch key d_model"] | None,
    ) -> Float[Tensor, "batch query head d_head"]:
        """z at every place of the source."""
        return self.through(q, k, v, _open(self.given, k))


class DecoderAttention(_Patterned):
    """Causal softmax attention that can go on from remembered keys and values."""

    def mix(
        self,
        q: Float[Tensor, "batch query head d_head"],
        k: Float[Tensor, "batch key head d_head"],
        v: Float[Tensor, "batch key head d_head"],
        x: Float[Tensor, "batch key d_model"] | None,
    ) -> Float[Tensor, "batch query head d_head"]:
        """z at the new positions, the last of those so far."""
        if self.given.past is None:
            return super().mix(q, k, v, x)
        k, v = self.given.past.grown(self, k, v)[:2]
        later = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
        return self.through(q, k, v, ~later.triu(1 + k.shape[1] - q.shape[1])[None, None])


class CrossAttention(_Patterned):
    """Attention of the decoder to the source: q from the decoder's stream, k and v from the encoder's output."""

    def __init__(self, config: ModelConfig, lens: TransformerLensConfig, layer: int, given: Given) -> None:
        super().__init__(config, lens, layer, given)
        self.topk_memory = AbsTopK(config.topk(Site(layer, "cross_memory")))
        self.hook_memory = HookPoint()  # site cross_memory [batch, source, d_model]

    def look(
        self,
        resid: Float[Tensor, "batch pos d_model"],
        norm: nn.Module,
        memory: Float[Tensor, "batch source d_model"],
    ) -> Float[Tensor, "batch pos d_model"]:
        """The sublayer's contribution to the decoder's residual stream, before AbsTopK."""
        heads = (self.n_heads, self.d_head)
        q = self.hook_q(self.topk_q(self.q(self.hook_in(self.topk_in(norm(resid))))).unflatten(-1, heads))
        k, v = self._remembered(memory, heads)
        z = self.hook_z(self.through(q, k, v, _open(self.given, k)))
        return self.o(z.flatten(2))

    def _remembered(self, memory: Tensor, heads: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Keys and values of the source; made once where there is a past."""
        past = self.given.past
        if past is not None and self in past.kept:
            return past.kept[self][0], past.kept[self][1]
        y = self.hook_memory(self.topk_memory(memory))
        k = self.hook_k(self.topk_k(self.k(y)).unflatten(-1, heads))
        v = self.hook_v(self.topk_v(self.v(y)).unflatten(-1, heads))
        if past is not None:
            past.grown(self, k, v)
        return k, v


def _open(given: Given, k: Tensor) -> Bool[Tensor, "batch 1 1 key"]:
    real = torch.ones(k.shape[:2], dtype=torch.bool, device=k.device) if given.real is None else given.real
    return real[:, None, None, :]
