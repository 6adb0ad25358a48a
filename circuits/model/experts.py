"""Sparse experts: the neurons of an MLP in groups, of which a router lets a few take part at each token.

    r = x W_R + b_R                                   logits of E experts, x as the MLP reads it
    s_e = E softmax(r)_e  for the k largest, else 0   shares; all k = E at equal logits are 1, the plain MLP
    h_j = s_e(j) act(x W_in + b_in)_j                 neuron j of expert e(j) = j // (d_mlp / E)
    out = h W_out + b_out

So neurons stay neurons, with the weights they had, and an expert's share is one more number to look at, mask and
replace. A share is zero where the expert is not chosen, and the output bias belongs to no expert. The probability of a
chosen expert multiplies what it says, even of a single one: that is where the router's gradient comes from.
Source: Shazeer et al. 2017 (arXiv 1701.06538), section 2; the softmax over all experts, and the balancing loss, are
those of Fedus et al. 2021 (arXiv 2101.03961), section 2.2; the factor E is ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuits.model.config import ModelConfig
from circuits.model.hooks import HookPoint, keep
from circuits.model.layers import AbsTopK, Linear, wide
from circuits.model.sites import Site


class Router(nn.Module):
    """The share of each expert at each token, 0 for those that are not chosen."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.n_experts = config.experts
        # A forked generator, so that all other weights start as those of the plain model with the same seed.
        with torch.random.fork_rng(devices=[]):
            self.map = Linear(config.d_model, config.experts, 0.02)
        self.chosen = AbsTopK(config.topk(Site(layer, "router")))
        self.hook_logits = HookPoint()  # [batch, pos, expert]
        self.hook_share = HookPoint()  # site router [batch, pos, expert]

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos expert"]:
        """Shares; of equal logits the first are chosen."""
        logits = self.hook_logits(self.map(x))
        return self.hook_share(self.chosen(self.n_experts * logits.softmax(-1)))


def routed(
    neurons: Float[Tensor, "batch pos d_mlp"], share: Float[Tensor, "batch pos expert"]
) -> Float[Tensor, "batch pos d_mlp"]:
    """Neurons, each multiplied by the share of its expert; experts have as many neurons each, side by side."""
    return neurons * share.repeat_interleave(neurons.shape[-1] // share.shape[-1], dim=-1)


def balance_loss(logits: Float[Tensor, "*token expert"], n_active: int) -> Float[Tensor, ""]:
    """`E sum_e f_e P_e`: 1 where all experts are chosen equally often, up to E / k where the same k always are.

    f_e: the part of all choices that fell on e, without gradient; P_e: its mean probability. Source: Fedus et al. 2021
    (arXiv 2101.03961), equations 4 to 6, for k choices a token.
    """
    flat = wide(logits.flatten(0, -2))
    n_experts = flat.shape[-1]
    chosen = flat.topk(n_active, dim=-1).indices
    f = torch.bincount(chosen.flatten(), minlength=n_experts).to(flat) / chosen.numel()
    return n_experts * (f * flat.softmax(-1).mean(0)).sum()


@contextmanager
def router_logits(model: Any) -> Iterator[dict[int, Float[Tensor, "batch pos expert"]]]:
    """Inside, what each router says of the last pass, by layer; gradients go back through it."""
    kept: dict[int, Tensor] = {}
    names = [f"blocks.{layer}.mlp.router.hook_logits" for layer in range(model.config.n_layers)]
    with model.hooks(fwd_hooks=[(name, partial(keep, kept, layer)) for layer, name in enumerate(names)]):
        yield kept
