"""Softmax attention with a learned sink."""

import math
from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.config import TransformerLensConfig

from circuits.kernels import causal_attention, turbo_attention, turbo_decode
from circuits.kernels.quantised import fake_int8
from circuits.model.config import ModelConfig
from circuits.model.hooks import HookPoint
from circuits.model.mixers.attention import Attention
from circuits.model.mixers.past import Given, Past, TurboPast
from circuits.model.mixers.turbo import TurboConfig


def sink_softmax(
    scores: Float[Tensor, "batch head query key"], sink: Float[Tensor, " head"] | None
) -> Float[Tensor, "batch head query key"]:
    """`p_j = exp(s_j) / (exp(b_h) + sum_i exp(s_i))`: rows sum to less than one; the rest went to the sink.

    Scores in nats, masked entries at -inf. Without a sink it is the ordinary softmax.
    Source: Gao et al. 2025 (arXiv 2511.13653), attention sinks.
    """
    if sink is None:
        return scores.softmax(dim=-1)
    column = sink.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]


class SoftmaxAttention(Attention):
    """Causal softmax attention with a sink logit per head."""

    def __init__(
        self, config: ModelConfig, lens: TransformerLensConfig, layer: int, given: Given | None = None
    ) -> None:
        super().__init__(config, lens, layer, given)
        self.sink = nn.Parameter(torch.zeros(config.n_heads)) if config.sink else None
        self.hook_attn_scores = HookPoint()  # [batch, head, query, key]
        self.hook_pattern = HookPoint()  # [batch, head, query, key]; the sink's share is 1 - sum over keys

    def mix(
        self,
        q: Float[Tensor, "batch query head d_head"],
        k: Float[Tensor, "batch key head d_head"],
        v: Float[Tensor, "batch key head d_head"],
        x: Float[Tensor, "batch key d_model"] | None,
    ) -> Float[Tensor, "batch query head d_head"]:
        """`pattern @ v`; the pattern is written out only where a hook looks at it or it is composed."""
        if self.given.past is not None:
            return self._go_on(self.given.past, q, k, v, x)
        if self._is_written_out or self.given.turbo is not None:
            return self._mix_through_pattern(q, k, v, x)
        return causal_attention(q, k, v, self.sink)

    @property
    def _is_written_out(self) -> bool:
        return self.reads_input or self.hook_attn_scores.has_hooks() or self.hook_pattern.has_hooks()

    def before_softmax(
        self, scores: Float[Tensor, "batch head query key"], x: Float[Tensor, "batch key d_model"] | None
    ) -> Float[Tensor, "batch head query key"]:
        """What is done to the unmasked scores of all heads: here nothing."""
        return scores

    def after_softmax(
        self, pattern: Float[Tensor, "batch head query key"], x: Float[Tensor, "batch key d_model"] | None
    ) -> Float[Tensor, "batch head query key"]:
        """What is done to the patterns of all heads: here nothing."""
        return pattern

    def weigh(
        self, scores: Float[Tensor, "batch head query key"], turbo: TurboConfig | None
    ) -> Float[Tensor, "batch head query key"]:
        """The pattern of masked scores; in few bits where it is asked for."""
        if turbo is None:
            return sink_softmax(scores, self.sink)
        return turbo.pattern(scores, self.sink, rounded=not self.reads_input)

    def _mix_through_pattern(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor | None) -> Tensor:
        turbo = self.given.turbo
        if turbo is not None:
            q, k, v = turbo.query(q), turbo.stored(k), turbo.stored(v)
        return self._written_out(q, k, v, x, turbo)

    def _written_out(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor | None, turbo: TurboConfig | None
    ) -> Tensor:
        """z of the last positions of those that k and v have; turbo: how weights are worked out."""
        n_new, n_keys = q.shape[1], k.shape[1]
        scores = q.transpose(1, 2) @ rearrange(k, "batch key head d_head -> batch head d_head key")
        scores = self.before_softmax(scores / math.sqrt(self.d_head), x)
        later = torch.ones(n_new, n_keys, dtype=torch.bool, device=q.device).triu(1 + n_keys - n_new)
        scores = scores.masked_fill(later, -torch.inf)
        pattern = self.hook_pattern(self.weigh(self.hook_attn_scores(scores), turbo))
        moved = self.after_softmax(pattern, x)
        if turbo is not None and self.reads_input:
            moved = turbo.composed(moved)
        return (moved @ v.transpose(1, 2)).transpose(1, 2)

    def _go_on(self, past: Past, q: Tensor, k: Tensor, v: Tensor, x: Tensor | None) -> Tensor:
        """z at the new positions, after those that are remembered."""
        if isinstance(past, TurboPast):
            return self._go_on_packed(past, q, k, v, x)
        rest = () if x is None or not self.reads_input else (x,)
        k, v, *inputs = past.grown(self, k, v, *rest)
        return self._mix_through_pattern(q, k, v, inputs[0] if inputs else None)

    def _go_on_packed(self, past: TurboPast, q: Tensor, k: Tensor, v: Tensor, x: Tensor | None) -> Tensor:
        """The first pass attends to its own keys and values in INT8; later ones read what is stored."""
        turbo, begins = past.config, self not in past.stored
        int8 = replace(turbo, quant="int8")
        stored = past.store(self, k, v)
        x = past.grown(self, x)[0] if x is not None and self.reads_input else None
        written_out = self._is_written_out or turbo != replace(turbo, softmax="sas")
        if begins and written_out:
            return self._written_out(int8.query(q), int8.stored(k), int8.stored(v), x, int8)
        if begins:
            return turbo_attention(q, k, v, self.sink, n_r=turbo.n_r, tile=turbo.tile)
        if written_out or q.shape[1] > 1:
            k, v = (y.to(q.dtype) for y in stored.unpacked())
            return self._written_out(fake_int8(q, 1), k, v, x, int8)
        return turbo_decode(q, stored, self.sink, n_r=turbo.n_r)
