"""The weights of attention heads and embeddings, read alike from a `SparseTransformer` and a TransformerBridge.

Weights stay as the model holds them, so that products of them equal TransformerLens's. What a norm in front of a
layer multiplies by is kept beside them (`norm`), for the scores that need what a head really reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import FactoredMatrix

from circuits.model.options import ONE_STACK

STACKS_INSTEAD = (
    "Its kinds of heads are in stack_head_report(model, rows), composition(model), group_weights(model)."
)
"""Where the heads of an encoder-decoder are to be found."""


@dataclass(frozen=True, kw_only=True)
class HeadWeights:
    """Query, key, value and output weights of every head, grouped key-value heads written out; float32."""

    W_Q: Float[Tensor, "layer head d_model d_head"]
    "Query weights."
    W_K: Float[Tensor, "layer head d_model d_head"]
    "Key weights."
    W_V: Float[Tensor, "layer head d_model d_head"]
    "Value weights."
    W_O: Float[Tensor, "layer head d_head d_model"]
    "Output weights."
    b_Q: Float[Tensor, "layer head d_head"]
    "Query biases; zeros where the model has none."
    b_K: Float[Tensor, "layer head d_head"]
    "Key biases."
    norm: Float[Tensor, "layer d_model"]
    "Weights of the norm before each layer's heads; ones where it has none or they are folded in."
    layers: tuple[int, ...]
    "Number of the model's layer behind each entry of the first axis."

    @property
    def n_heads(self) -> int:
        """Heads of a layer."""
        return self.W_Q.shape[1]

    @property
    def labels(self) -> list[str]:
        """`L0H0` and so on, layer by layer."""
        return [f"L{layer}H{head}" for layer in self.layers for head in range(self.n_heads)]


@dataclass(frozen=True, kw_only=True)
class EmbeddingWeights:
    """What ties tokens to the residual stream; float32, centred where the model's norm centres."""

    W_E: Float[Tensor, "d_vocab d_model"]
    "Token embeddings."
    W_pos: Float[Tensor, "n_ctx d_model"] | None
    "Learned position embeddings; None where positions enter otherwise (rotary)."
    W_U: Float[Tensor, "d_model d_vocab"]
    "Unembedding, the final norm's weights multiplied in."
    eps: float
    "Added to the mean square in the norm."

    @property
    def normed(self) -> Float[Tensor, "d_vocab d_model"]:
        """Each token embedding as the norm passes it on when nothing else is in the residual stream."""
        return rms_normed(self.W_E, self.eps)


def head_weights(model: Any) -> HeadWeights:
    """Read the weights of every attention layer.

    Raises ValueError for a model without attention, or with weights that are not finite.

    Examples:
        >>> weights = circuits.heads.head_weights(circuits.load("induction").model)
        >>> weights.W_Q.shape
        torch.Size([2, 4, 64, 16])
    """
    ONE_STACK.check(model, "head weights", instead=STACKS_INSTEAD)
    blocks = model.blocks_with("attn") if hasattr(model, "blocks_with") else []
    if not blocks:
        raise ValueError(
            f"model: found no attention layers in a {type(model).__name__}; expected a SparseTransformer or a "
            "TransformerBridge of a decoder with attention."
        )
    weights = [_norm_weight(block, "ln1", block.attn.W_O.detach()[0, 0]) for _, block in blocks]
    return weights_of(
        {layer: block.attn for layer, block in blocks}, model.cfg.n_heads, torch.stack(weights).float()
    )


def weights_of(attns: Mapping[int, Any], n_heads: int, norm: Float[Tensor, "layer d_model"]) -> HeadWeights:
    """The weights of some attention layers, by layer; norm: the weights of the norm before each."""
    layers, modules = tuple(attns), list(attns.values())
    stacked = {
        name: torch.stack([_expanded(getattr(attn, name), n_heads) for attn in modules])
        for name in ("W_Q", "W_K", "W_V", "W_O")
    }
    like = stacked["W_Q"][0, :, 0]
    stacked |= {
        "b_Q": torch.stack([_bias(attn, "q", like) for attn in modules]),
        "b_K": torch.stack([_bias(attn, "k", like) for attn in modules]),
        "norm": norm.to(like.dtype),
    }
    check_finite(stacked)
    return HeadWeights(**stacked, layers=layers)


def embedding_weights(model: Any) -> EmbeddingWeights:
    """Read token and position embeddings and the unembedding. Raises ValueError where one is not finite."""
    W_E, W_U = _float(model.W_E), _float(model.W_U)
    try:
        W_pos: Tensor | None = _float(model.W_pos)
    except AttributeError:
        W_pos = None
    W_U = W_U * _norm_weight(model, "ln_final", W_E[0])[:, None]
    if str(model.cfg.normalization_type).startswith("LN"):
        W_E, W_U = W_E - W_E.mean(1, keepdim=True), W_U - W_U.mean(0, keepdim=True)
        W_pos = None if W_pos is None else W_pos - W_pos.mean(1, keepdim=True)
    check_finite({"W_E": W_E, "W_U": W_U} | ({} if W_pos is None else {"W_pos": W_pos}))
    return EmbeddingWeights(W_E=W_E, W_pos=W_pos, W_U=W_U, eps=float(model.cfg.eps))


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError for the first weight that holds NaN or infinity: scores and their order would hide it."""
    for name, weight in weights.items():
        bad = (~weight.isfinite()).nonzero()
        if len(bad):
            raise ValueError(
                f"model: {name} holds NaN or infinity at {bad[0].tolist()}, one of {len(bad)} such "
                "places; expected finite weights. Mend the model, or load its checkpoint again."
            )


def qk_circuit(model: Any) -> FactoredMatrix:
    """`W_Q W_K^T` of every head [layer, head, d_model, d_model], kept as its two factors.

    Of composed heads, the parts that are mixed (see `circuits.composition.folded_circuits`).
    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".

    Examples:
        >>> circuits.heads.qk_circuit(circuits.load("induction").model).AB.shape
        torch.Size([2, 4, 64, 64])
    """
    heads = head_weights(model)
    return FactoredMatrix(heads.W_Q, heads.W_K.transpose(-2, -1))


def ov_circuit(model: Any) -> FactoredMatrix:
    """`W_V W_O` of every head [layer, head, d_model, d_model], kept as its two factors.

    Examples:
        >>> circuits.heads.ov_circuit(circuits.load("induction").model).AB.shape
        torch.Size([2, 4, 64, 64])
    """
    heads = head_weights(model)
    return FactoredMatrix(heads.W_V, heads.W_O)


def rms_normed(x: Float[Tensor, "... d_model"], eps: float) -> Float[Tensor, "... d_model"]:
    """`x / sqrt(mean(x^2) + eps)`."""
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def _float(value: Tensor) -> Tensor:
    return value.detach() if value.dtype == torch.float64 else value.detach().float()


def _expanded(weight: Tensor, n_heads: int) -> Tensor:
    """Grouped heads repeated so that query head h finds its keys and values at h."""
    return _float(weight).repeat_interleave(n_heads // weight.shape[0], dim=0)


def _bias(attn: Any, which: str, like: Float[Tensor, "head d_head"]) -> Float[Tensor, "head d_head"]:
    bias = getattr(attn, f"b_{which.upper()}", None)
    if bias is None:
        bias = getattr(getattr(attn, which, None), "bias", None)
    if not isinstance(bias, Tensor):
        return torch.zeros_like(like)
    bias = _float(bias).reshape(-1, like.shape[-1])
    return bias.repeat_interleave(len(like) // len(bias), dim=0)


def _norm_weight(owner: Any, name: str, like: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    weight = getattr(getattr(owner, name, None), "weight", None)
    return _float(weight) if isinstance(weight, Tensor) else torch.ones_like(like)
