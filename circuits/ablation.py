"""What happens to a coordinate or a weight that is left out: replaced by its mean, or by zero.

One function, `run_masked`, serves pruning, faithfulness and everything else that leaves parts out. It runs
the model's own forward pass (AbsTopK included) with a hook at each site.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.circuit import WEIGHTS, Circuit, Site
from circuits.kernels import sparse_linear
from circuits.kernels.masking import replace_features
from circuits.model import SparseTransformer

Masks = Mapping[Site, Tensor]
"""A tensor [width] for each masked site: 1 = keep."""
Values = Mapping[Site, Tensor]
"""The replacement value [width] of every coordinate of every site."""
EdgeMasks = Mapping[tuple[int, str], Tensor]
"""A tensor [d_in, d_out] for each masked weight matrix, keyed by (layer, weight name): 1 = keep."""


def mean_values(
    model: SparseTransformer, tokens: Int[Tensor, "batch pos"], *, batch_size: int = 64
) -> dict[Site, Tensor]:
    """Mean of every coordinate of every site, averaged over batch and positions of a real forward pass."""
    sums = {site: torch.zeros(model.config.widths[site.name], dtype=torch.float64) for site in model.sites()}

    def adder(site: Site) -> Callable[..., None]:
        def add(value: Tensor, hook: Any) -> None:
            sums[site] += value.flatten(2).double().sum(dim=(0, 1)).cpu()

        return add

    hooks: list[tuple[str, Callable]] = [(model.hook_name(site), adder(site)) for site in model.sites()]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        for chunk in tokens.split(batch_size):
            model(chunk)
    return {site: (total / tokens.numel()).to(model.W_E) for site, total in sums.items()}


def ablation_values(
    model: SparseTransformer, tokens: Int[Tensor, "batch pos"], kind: Literal["mean", "zero"]
) -> dict[Site, Tensor]:
    """Replacement values: means over `tokens` (batch and positions averaged), or zeros."""
    if kind not in ("mean", "zero"):
        raise ValueError(f"ablation: got {kind!r}; expected 'mean' or 'zero'.")
    if kind == "mean":
        return mean_values(model, tokens)
    return {site: torch.zeros(model.config.widths[site.name]).to(model.W_E) for site in model.sites()}


def run_masked(
    model: SparseTransformer,
    tokens: Int[Tensor, "batch pos"],
    masks: Masks,
    values: Values,
    edge_masks: EdgeMasks | None = None,
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits with every masked coordinate x replaced by `x * m + value * (1 - m)`; differentiable in the masks.

    A masked weight passes its source's replacement value instead of its source: what it contributes becomes a
    constant. With all masks one, the result is the plain model's, bit for bit, in or out of `sparse_compute`;
    in it, a run costs what the nonzeros cost.
    """
    hooks = [(model.hook_name(site), _replacer(mask, values[site])) for site, mask in masks.items()]
    with model.hooks(fwd_hooks=hooks):
        if not edge_masks:
            return model(tokens)
        with _cut(model, edge_masks, values) as parameters:
            return torch.func.functional_call(model, parameters, (tokens,))


def run_circuit(
    model: SparseTransformer, circuit: Circuit, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits when only the circuit is kept: its nodes, its edges, and everything else at its ablation values.

    Raises ValueError when the circuit belongs to another model.
    """
    check_belongs(model, circuit)
    device = model.W_E.device
    masks = {site: mask.to(model.W_E) for site, mask in circuit.to_mask().items()}
    edges = {key: mask.to(model.W_E) for key, mask in circuit.to_edge_mask().items()}
    values = {site: value.to(device) for site, value in circuit.values.items()}
    return run_masked(model, tokens, masks, values, edges)


def check_belongs(model: SparseTransformer, circuit: Circuit) -> None:
    """Raise ValueError when the circuit was found in another model."""
    found = model.fingerprint()
    if circuit.model_hash != found:
        raise ValueError(
            f"circuit: it belongs to model {circuit.model_hash}, but this model is {found}; expected the same "
            "weights. Load the checkpoint it was found in, or prune this model."
        )


def _replacer(mask: Tensor, value: Tensor) -> Callable[..., Tensor]:
    def replace(x: Tensor, hook: Any) -> Tensor:
        m, v = (t.view(x.shape[2:]) for t in (mask, value))
        return replace_features(x, m, v)

    return replace


@contextmanager
def _cut(model: SparseTransformer, edge_masks: EdgeMasks, values: Values) -> Iterator[dict[str, Tensor]]:
    """Parameters with the weights cut, and biases that pass on what a cut weight's source contributes on average.

    A frozen weight that runs on its nonzeros is cut there; inside, its map then has no use for the parameter.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    before = {key: model.linear(*key).sparse for key in edge_masks}
    replaced: dict[str, Tensor] = {}
    try:
        for (layer, name), mask in edge_masks.items():
            linear, value = model.linear(layer, name), values[Site(layer, WEIGHTS[name][0])]
            if linear.sparse is None or linear.weight.requires_grad or _reads_weights(model):
                linear.sparse = None
                replaced[names[id(linear.weight)]] = linear.weight * mask
                passed = value @ (linear.weight * (1 - mask))
            else:
                kept = mask[linear.sparse.rows_of_values(), linear.sparse.column.long()]
                rest = linear.sparse.values * (1 - kept)
                passed = sparse_linear(value[:, None], linear.sparse, values=rest).squeeze(1)
                linear.sparse = linear.sparse.with_values(linear.sparse.values * kept)
            replaced[names[id(linear.bias)]] = linear.bias + passed
        yield replaced
    finally:
        for key, sparse in before.items():
            model.linear(*key).sparse = sparse


def _reads_weights(model: SparseTransformer) -> bool:
    """Whether TransformerLens's per-head options are on, under which attention reads weights head by head."""
    return model.cfg.use_split_qkv_input or model.cfg.use_attn_result
