"""The MLP of a layer: two affine maps with an activation between them."""

import math
from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from circuits.model.config import Activation, ModelConfig
from circuits.model.experts import Router, routed
from circuits.model.hooks import HookPoint
from circuits.model.layers import AbsTopK, new_map
from circuits.model.sites import Site

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
"""What each name stands for."""


def act_fn(config: ModelConfig) -> str:
    """What TransformerLens calls the activation of a model with this config."""
    return config.act


class MLP(nn.Module):
    """`act(x W_in + b_in) W_out + b_out`, AbsTopK at its input and its neurons; experts: see `experts.py`."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.act]
        std = 0.02
        self.up = new_map(config.d_model, config.d_mlp, std, config.factor_mlp)
        out = std / math.sqrt(2 * config.n_layers)
        self.down = new_map(config.d_mlp, config.d_model, out, config.factor_mlp)
        self.topk_in, self.topk_neuron = (
            AbsTopK(config.topk(Site(layer, "mlp_in"))),
            AbsTopK(config.topk(Site(layer, "mlp_neuron"))),
        )
        self.router = Router(config, layer) if config.experts else None
        self.hook_in = HookPoint()  # site mlp_in [batch, pos, d_model]
        self.hook_pre = HookPoint()  # [batch, pos, d_mlp]
        self.hook_post = HookPoint()  # site mlp_neuron [batch, pos, d_mlp]

    def forward(self, normed: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The layer's contribution to the residual stream, before AbsTopK."""
        x = self.hook_in(self.topk_in(normed))
        neurons = self.act(self.hook_pre(self.up(x)))
        if self.router is not None:
            neurons = routed(neurons, self.router(x))
        return self.down(self.hook_post(self.topk_neuron(neurons)))

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        """Input weights."""
        return self.up.weight

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        """Output weights."""
        return self.down.weight

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        """Input bias."""
        return self.up.bias

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        """Output bias."""
        return self.down.bias
