"""A model with only some parts kept: a coordinate that is left out is replaced, a weight passes a constant.

One function, `run_masked`, serves pruning, trust and everything else that leaves parts out. It runs
the model's own forward pass (AbsTopK included) with a hook at each site.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from circuits.circuit.circuit import Circuit
from circuits.circuit.parts import edges_between
from circuits.kernels import replace_features, sparse_linear
from circuits.model.kinds import of_subjects
from circuits.model.sites import Site, WeightAt
from circuits.model.subject import SparseSubject, Subject
from circuits.model.transformer import SparseTransformer
from circuits.settings import check_kind

Masks = Mapping[Site, Tensor]
"""A tensor [width] for each masked site: 1 = keep. Of whole heads, one number each."""
Values = Mapping[Site, Tensor]
"""The replacement value of every coordinate of every site: [width], [pos, width] or [text, pos, width];
of whole heads, of all their channels."""
EdgeMasks = Mapping[WeightAt, Tensor]
"""A tensor [d_in, d_out] for each masked weight matrix, by the matrix: 1 = keep."""


@of_subjects
def run_masked(
    model: Subject,
    tokens: Int[Tensor, "batch pos"],
    masks: Masks,
    values: Values,
    edge_masks: EdgeMasks | None = None,
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits with every masked coordinate x replaced by `x * m + value * (1 - m)`; differentiable in the masks.

    A masked weight passes its source's replacement value instead of its source: what it contributes becomes a
    constant. With all masks one, the result is the plain model's, bit for bit, in or out of `sparse_compute`;
    in it, a run costs what the nonzeros cost.

    Examples:
        >>> found = circuits.load("quotes-128")
        >>> tokens = found.task.batch(4, split="test", seed=0).clean
        >>> removed = {site: 1 - mask.float() for site, mask in found.circuit.to_mask().items()}
        >>> circuits.run_masked(found.model, tokens, removed, found.circuit.values).shape[:2] == tokens.shape
        True
    """
    hooks = [(model.hook_name(site), partial(_replace, mask, values[site])) for site, mask in masks.items()]
    with model.hooks(fwd_hooks=hooks):
        if not edge_masks:
            return model(tokens)
        if not isinstance(model, SparseTransformer):
            raise ValueError(
                f"edge_masks: got some for a {type(model).__name__}; expected none, since only the weights of a "
                "SparseTransformer lead from site to site. Mask its sites."
            )
        with _cut(model, edge_masks, values) as parameters:
            return torch.func.functional_call(model, parameters, (tokens,))


@of_subjects
def run_circuit(
    model: Subject, circuit: Circuit, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits when only the circuit is kept: its nodes, its edges, and everything else at its ablation values.

    Raises ValueError when the circuit belongs to another model.

    Examples:
        >>> found = circuits.load("quotes-128")
        >>> prompts = found.task.batch(4, split="test", seed=0)
        >>> logits = circuits.run_circuit(found.model, found.circuit, prompts.clean)
        >>> last = logits[range(4), prompts.position]
        >>> (last[range(4), prompts.answer] > last[range(4), prompts.foil]).all().item()
        True
    """
    check_belongs(model, circuit)
    masks = {site: mask.to(model.like) for site, mask in circuit.to_mask().items()}
    edges = {}
    if isinstance(model, SparseSubject):
        cut = circuit.to_edge_mask()
        edges = {at: cut[at].to(model.like) for at in model.weights_among(circuit.sites)}
    values = {site: value.to(model.like) for site, value in circuit.values.items()}
    return run_masked(model, tokens, masks, values, edges)


def ordinary(value: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The tensor, or where it was made in inference mode a copy that gradients can pass by."""
    with torch.inference_mode(False):
        return value.clone() if value.is_inference() else value


def check_belongs(model: Subject, circuit: Circuit) -> None:
    """Raise ValueError when the circuit was found in another model, or an edge has another weight than the model."""
    check_kind("circuit", circuit, Circuit, "Load one: circuits.Circuit.load(path).")
    found = model.fingerprint()
    if circuit.model_hash != found:
        raise ValueError(
            f"circuit: it belongs to model {circuit.model_hash}, but this model is {found}; expected the same "
            "weights. Load the checkpoint it was found in, or prune this model."
        )
    if isinstance(model, SparseTransformer):
        _check_weights(model, circuit)
    unknown = sorted({site.name for site in circuit.sites if site not in model.widths})
    if unknown:
        raise ValueError(
            f"circuit: it is of sites {sorted({site.name for site in circuit.sites})}, but of {unknown} this "
            f"{type(model).__name__} has none; expected one of all of them. Make it for the circuit: "
            "LensSubject(bridge, sites=...)."
        )


def _check_weights(model: SparseTransformer, circuit: Circuit) -> None:
    entries = {(e.source, e.target): e.weight for e in edges_between(model, circuit.nodes)}
    for source, target, weight in circuit.edges:
        own = entries.get((source, target), 0.0)
        if not math.isclose(weight, own, rel_tol=1e-6):
            raise ValueError(
                f"circuit: its edge {source} -> {target} has weight {weight:g}, but the model's is {own:g}; "
                "expected the same. Load the circuit as pruning saved it, or take the edges of its nodes anew: "
                "circuits.circuit.edges_between(model, nodes)."
            )


def _replace(mask: Tensor, value: Tensor, x: Tensor, hook: Any) -> Tensor:
    m = spread(mask, x.shape[2:])
    if value.ndim == 1:
        return replace_features(x, m, value.view(x.shape[2:]))
    v = _there(value, x)
    return x * m + v.reshape(*v.shape[:-1], *x.shape[2:]) * (1 - m)


def spread(mask: Shaped[Tensor, " width"], shape: torch.Size) -> Shaped[Tensor, "..."]:
    """A mask over the numbers at a position: one for each of them, or one for all channels of a head."""
    return mask.view(shape) if mask.numel() == shape.numel() else mask.view(*shape[:-1], 1).expand(shape)


def _there(value: Tensor, x: Tensor) -> Tensor:
    """The part of a value that belongs to the rows and positions of x [batch, pos, ...]."""
    if value.ndim > 1 and value.shape[-2] < x.shape[1]:
        raise ValueError(
            f"values: got those of {value.shape[-2]} positions for prompts of {x.shape[1]} tokens; expected at least "
            "as many. Take them from longer text, or run shorter prompts."
        )
    if value.ndim == 3:
        return value[torch.arange(len(x), device=value.device) % len(value), : x.shape[1]]
    return value[: x.shape[1]] if value.ndim == 2 else value


@contextmanager
def _cut(model: SparseTransformer, edge_masks: EdgeMasks, values: Values) -> Iterator[dict[str, Tensor]]:
    """Parameters with the weights cut, and biases that pass on what a cut weight's source contributes on average.

    A frozen weight that runs on its nonzeros is cut there; inside, its map then has no use for the parameter.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    before = {key: model.linear(*key).sparse for key in edge_masks}
    replaced: dict[str, Tensor] = {}
    handles: list[Any] = []
    try:
        for key, mask in edge_masks.items():
            linear, value = model.linear(*key), values[WeightAt(*key).source]
            if linear.sparse is None or linear.trains or (_reads_weights(model) and not linear.is_compact):
                linear.sparse = None
                replaced[names[id(linear.weight)]] = linear.weight * mask
                passed = value @ (linear.weight * (1 - mask))
            else:
                kept = mask[linear.sparse.rows_of_values(), linear.sparse.column.long()]
                rest = linear.sparse.values * (1 - kept)
                columns = value.reshape(-1, value.shape[-1]).T.contiguous()
                passed = sparse_linear(linear.sparse, columns, values=rest).T.reshape(*value.shape[:-1], -1)
                linear.sparse = linear.sparse.with_values(linear.sparse.values * kept)
            if value.ndim == 1:
                replaced[names[id(linear.bias)]] = linear.bias + passed
            else:  # differs from place to place, as no bias can
                handles.append(linear.register_forward_hook(partial(_add, passed)))
        yield replaced
    finally:
        for handle in handles:
            handle.remove()
        for key, sparse in before.items():
            model.linear(*key).sparse = sparse


def _add(passed: Tensor, module: Any, inputs: Any, output: Tensor) -> Tensor:
    return output + _there(passed, output)


def _reads_weights(model: SparseTransformer) -> bool:
    """Whether TransformerLens's per-head options are on, under which attention reads weights head by head."""
    return model.cfg.use_split_qkv_input or model.cfg.use_attn_result
