"""Softmax attention with a learned sink."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.config import TransformerLensConfig

from circuits.kernels import causal_attention
from circuits.model.config import ModelConfig
from circuits.model.hooks import HookPoint
from circuits.model.mixers.attention import Attention


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

    def __init__(self, config: ModelConfig, lens: TransformerLensConfig, layer: int) -> None:
        super().__init__(config, lens, layer)
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
        if self.reads_input or self.hook_attn_scores.has_hooks() or self.hook_pattern.has_hooks():
            return self._mix_through_pattern(q, k, v, x)
        return causal_attention(q, k, v, self.sink)

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

    def _mix_through_pattern(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor | None) -> Tensor:
        n_pos = q.shape[1]
        scores = q.transpose(1, 2) @ rearrange(k, "batch key head d_head -> batch head d_head key")
        scores = self.before_softmax(scores / math.sqrt(self.d_head), x)
        later = torch.ones(n_pos, n_pos, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
        pattern = self.hook_pattern(sink_softmax(self.hook_attn_scores(scores), self.sink))
        return (self.after_softmax(pattern, x) @ v.transpose(1, 2)).transpose(1, 2)
