"""Where a router sends tokens, and in which experts a circuit has its neurons."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import check_belongs
from circuits.model.hooks import keep
from circuits.model.kinds import of_ours
from circuits.model.sites import Site
from circuits.model.tokens import check_tokens, only, real_places
from circuits.model.transformer import SparseTransformer
from circuits.views import Plotted


@dataclass(frozen=True, kw_only=True, eq=False)
class Routing(Plotted):
    """Which experts take part at each token of one text, and with what share."""

    tokens: tuple[str, ...]
    "What stands at each position."
    share: Float[Tensor, "layer pos expert"]
    "0 where an expert is not chosen; an expert that takes part as in the plain MLP has 1."

    @property
    def chosen(self) -> Bool[Tensor, "layer pos expert"]:
        """Whether an expert takes part."""
        return self.share > 0


@of_ours
def routing(model: SparseTransformer, tokens: Int[Tensor, "*pos"]) -> Routing:
    """The routing of one text; `.plot()` shows it.

    Raises ValueError for a model without experts, and for tokens that are no single text of it.
    """
    if not isinstance(tokens, Tensor) or tokens.ndim != 1:
        shape = tuple(getattr(tokens, "shape", ()))
        raise ValueError(
            f"tokens: got shape {shape}; expected token ids [pos] of one text, such as batch.clean[0]."
        )
    share = _shares(model, tokens[None], "routing")
    name = str if model.tokenizer is None else model.tokenizer.token
    return Routing(tokens=tuple(name(token) for token in tokens.tolist()), share=share[:, 0])


@of_ours
def choices(
    model: SparseTransformer,
    tokens: Int[Tensor, "batch pos"],
    *,
    lengths: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, "layer expert"]:
    """The share of a layer's choices that falls on each expert; rows sum to 1.

    lengths: tokens of each row that are text; padding chooses too, and is not counted. Raises ValueError for a model
    without experts.
    """
    check_tokens(tokens)
    real = real_places(tokens, lengths)
    chosen = [only(real, share) > 0 for share in _shares(model, tokens, "choices")]
    counts = torch.stack([layer.flatten(0, 1).sum(0).double() for layer in chosen])
    return (counts / counts.sum(-1, keepdim=True)).float()


@of_ours
def neurons_by_expert(model: SparseTransformer, circuit: Circuit) -> Int[Tensor, "layer expert"]:
    """How many neurons of a circuit each expert holds.

    Raises ValueError for a model without experts, and for a circuit of another model.
    """
    _check(model, "neurons_by_expert")
    check_belongs(model, circuit)
    config = model.config
    counts = torch.zeros(config.n_layers, config.experts, dtype=torch.int64)
    for node in circuit.nodes:
        if node.site == "mlp_neuron":
            counts[node.layer, node.index // config.expert_size] += 1
    return counts


def _shares(
    model: SparseTransformer, tokens: Int[Tensor, "batch pos"], analysis: str
) -> Float[Tensor, "layer batch pos expert"]:
    _check(model, analysis)
    kept: dict[int, Tensor] = {}
    names = [model.hook_name(Site(layer, "router")) for layer in range(model.config.n_layers)]
    hooks: list[Any] = [(name, partial(keep, kept, layer)) for layer, name in enumerate(names)]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        model(tokens, return_type=None)
    return torch.stack([kept[layer].cpu() for layer in range(model.config.n_layers)])


def _check(model: SparseTransformer, analysis: str) -> None:
    if model.config.experts == 0:
        raise ValueError(
            f"model: it has experts=0; {analysis} expected a model whose MLPs have experts, and a router. Train one: "
            "ModelConfig(experts=16, experts_active=2)."
        )
