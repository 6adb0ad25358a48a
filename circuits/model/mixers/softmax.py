"""Softmax attention with a learned sink."""

import torch
from jaxtyping import Float
from torch import Tensor


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
