"""What every attention layer has: q, k, v and o, their hooks, and a seam where q, k and v become z."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.config import TransformerLensConfig

from circuits.model.config import ModelConfig
from circuits.model.hooks import HookPoint
from circuits.model.layers import AbsTopK, Factored, Linear, Matrix, new_map
from circuits.model.mixers.past import Given
from circuits.model.sites import Site


class Attention(nn.Module, ABC):
    """Multi-head attention with AbsTopK at in, q, k and v; a subclass says how heads mix positions.

    A subclass owns what it needs for that: parameters, hooks, patterns, and the matrices that training projects.
    """

    def __init__(
        self, config: ModelConfig, lens: TransformerLensConfig, layer: int, given: Given | None = None
    ) -> None:
        super().__init__()
        self.given = Given() if given is None else given
        self.cfg = lens
        self.n_heads, self.d_head = config.n_heads, config.d_head
        d_attn = config.n_heads * config.d_head
        std = 0.02
        self.q = new_map(config.d_model, d_attn, std, config.factor_attn)
        self.k = new_map(config.d_model, d_attn, std, config.factor_attn)
        self.v = new_map(config.d_model, d_attn, std, config.factor_attn)
        out = std / math.sqrt(2 * config.n_layers)
        self.o = new_map(d_attn, config.d_model, out, config.factor_attn)
        self.topk_in = AbsTopK(config.topk(Site(layer, "attn_in")))
        self.topk_q, self.topk_k, self.topk_v = (
            AbsTopK(config.topk(Site(layer, s))) for s in ("attn_q", "attn_k", "attn_v")
        )
        self.hook_in = HookPoint()  # site attn_in [batch, pos, d_model]
        self.hook_q = HookPoint()  # site attn_q [batch, pos, head, d_head]
        self.hook_k = HookPoint()  # site attn_k
        self.hook_v = HookPoint()  # site attn_v
        self.hook_q_input, self.hook_k_input, self.hook_v_input = HookPoint(), HookPoint(), HookPoint()
        self.hook_z = HookPoint()  # [batch, pos, head, d_head]
        self.hook_result = HookPoint()  # [batch, pos, head, d_model], before the bias and AbsTopK

    @abstractmethod
    def mix(
        self,
        q: Float[Tensor, "batch query head d_head"],
        k: Float[Tensor, "batch key head d_head"],
        v: Float[Tensor, "batch key head d_head"],
        x: Float[Tensor, "batch key d_model"] | None,
    ) -> Float[Tensor, "batch query head d_head"]:
        """z: for each head and position, what it takes from v; causal. x: the layer's input, if `reads_input`."""

    @property
    def reads_input(self) -> bool:
        """Whether `mix` looks at the layer's input as well."""
        return False

    def own_matrices(self) -> Iterator[Matrix]:
        """What training projects beyond the weights of q, k, v and o, named from inside the layer."""
        yield from ()

    def forward(
        self, resid: Float[Tensor, "batch pos d_model"], norm: nn.Module
    ) -> Float[Tensor, "batch pos d_model"]:
        """The layer's contribution to the residual stream, before AbsTopK."""
        if self.cfg.use_split_qkv_input:
            q, k, v = self._split(resid, norm)
            x = self.topk_in(norm(resid)) if self.reads_input else None
        else:
            x = self.hook_in(self.topk_in(norm(resid)))
            q, k, v = self.q(x), self.k(x), self.v(x)
        q, k, v = (
            hook(topk(y).unflatten(-1, (self.n_heads, self.d_head)))
            for hook, topk, y in (
                (self.hook_q, self.topk_q, q),
                (self.hook_k, self.topk_k, k),
                (self.hook_v, self.topk_v, v),
            )
        )
        z = self.hook_z(self.mix(q, k, v, x))
        if self.cfg.use_attn_result:
            return self.hook_result(torch.einsum("bphe,hed->bphd", z, self.W_O)).sum(2) + self.o.bias
        return self.o(z.flatten(2))

    def _split(self, resid: Float[Tensor, "batch pos d_model"], norm: nn.Module) -> Iterator[Tensor]:
        """q, k and v [batch, pos, d_attn], of a hooked copy of the residual stream for each head."""
        copies = [
            hook(repeat(resid, "batch pos d_model -> batch pos head d_model", head=self.n_heads))
            for hook in (self.hook_q_input, self.hook_k_input, self.hook_v_input)
        ]
        inputs = [self.hook_in(self.topk_in(norm(copy))) for copy in copies]
        return (
            torch.einsum("bphd,hde->bphe", y, self._per_head(linear)).flatten(2) + linear.bias
            for y, linear in zip(inputs, (self.q, self.k, self.v), strict=True)
        )

    def _per_head(self, linear: Linear | Factored) -> Float[Tensor, "head d_model d_head"]:
        return rearrange(linear.weight, "d_model (head d_head) -> head d_model d_head", head=self.n_heads)

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        """Query weights by head (a view)."""
        return self._per_head(self.q)

    @property
    def W_K(self) -> Float[Tensor, "head d_model d_head"]:
        """Key weights by head (a view)."""
        return self._per_head(self.k)

    @property
    def W_V(self) -> Float[Tensor, "head d_model d_head"]:
        """Value weights by head (a view)."""
        return self._per_head(self.v)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """Output weights by head (a view)."""
        return rearrange(self.o.weight, "(head d_head) d_model -> head d_head d_model", head=self.n_heads)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        """Output bias."""
        return self.o.bias
