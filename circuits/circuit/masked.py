"""What happens to a coordinate or a weight that is left out: replaced by its mean, or by zero.

One function, `run_masked`, serves pruning, faithfulness and everything else that leaves parts out. It runs
the model's own forward pass (AbsTopK included) with a hook at each site.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.circuit.circuit import Circuit
from circuits.circuit.nodes import Ablation
from circuits.kernels import sparse_linear
from circuits.kernels.masking import replace_features
from circuits.model.sites import Site, WeightAt
from circuits.model.subject import SparseSubject, Subject
from circuits.model.transformer import SparseTransformer

Masks = Mapping[Site, Tensor]
"""A tensor [width] for each masked site: 1 = keep."""
Values = Mapping[Site, Tensor]
"""The replacement value of every coordinate of every site: [width], [pos, width] or [text, pos, width]."""
N_TEXTS = 16
"""Texts that resample ablation takes values from; prompt i meets text i modulo that many."""
EdgeMasks = Mapping[WeightAt, Tensor]
"""A tensor [d_in, d_out] for each masked weight matrix, by the matrix: 1 = keep."""


def mean_values(
    model: Subject, tokens: Int[Tensor, "batch pos"], *, batch_size: int = 64
) -> dict[Site, Tensor]:
    """Mean of every coordinate of every site, averaged over batch and positions of a real forward pass."""
    sums = {site: torch.zeros(width, dtype=torch.float64) for site, width in model.widths.items()}

    def adder(site: Site) -> Callable[..., None]:
        def add(value: Tensor, hook: Any) -> None:
            sums[site] += value.flatten(2).double().sum(dim=(0, 1)).cpu()

        return add

    hooks: list[tuple[str, Callable]] = [(model.hook_name(site), adder(site)) for site in model.sites()]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        for chunk in tokens.split(batch_size):
            model(chunk)
    return {site: (total / tokens.numel()).to(model.like) for site, total in sums.items()}


def ablation_values(model: Subject, tokens: Int[Tensor, "batch pos"], kind: Ablation) -> dict[Site, Tensor]:
    """Replacement values from text: what each kind of ablation is, `Ablation` says.

    mean and zero: [width] for each site; position: [pos, width]; resample: [text, pos, width], of the first texts.
    """
    if kind not in get_args(Ablation):
        raise ValueError(f"ablation: got {kind!r}; expected one of {get_args(Ablation)}.")
    if kind == "mean":
        return mean_values(model, tokens)
    if kind == "zero":
        return {site: torch.zeros(width).to(model.like) for site, width in model.widths.items()}
    found = _site_values(model, tokens[:N_TEXTS] if kind == "resample" else tokens)
    return found if kind == "resample" else {site: value.mean(dim=0) for site, value in found.items()}


def _site_values(model: Subject, tokens: Int[Tensor, "batch pos"]) -> dict[Site, Tensor]:
    """Values [batch, pos, width] of every site."""
    found: dict[Site, Tensor] = {}

    def keeper(site: Site) -> Callable[..., None]:
        def keep(value: Tensor, hook: Any) -> None:
            found[site] = value.flatten(2)

        return keep

    with torch.no_grad(), model.hooks(fwd_hooks=[(model.hook_name(s), keeper(s)) for s in model.sites()]):
        model(tokens)
    return found


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
    """
    hooks = [(model.hook_name(site), _replacer(mask, values[site])) for site, mask in masks.items()]
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


def run_circuit(
    model: Subject, circuit: Circuit, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits when only the circuit is kept: its nodes, its edges, and everything else at its ablation values.

    Raises ValueError when the circuit belongs to another model.
    """
    check_belongs(model, circuit)
    device = model.like.device
    masks = {site: mask.to(model.like) for site, mask in circuit.to_mask().items()}
    cut = circuit.to_edge_mask() if isinstance(model, SparseSubject) else {}
    edges = {key: mask.to(model.like) for key, mask in cut.items()}
    values = {site: value.to(device) for site, value in circuit.values.items()}
    return run_masked(model, tokens, masks, values, edges)


def check_belongs(model: Subject, circuit: Circuit) -> None:
    """Raise ValueError when the circuit was found in another model."""
    found = model.fingerprint()
    if circuit.model_hash != found:
        raise ValueError(
            f"circuit: it belongs to model {circuit.model_hash}, but this model is {found}; expected the same "
            "weights. Load the checkpoint it was found in, or prune this model."
        )


def _replacer(mask: Tensor, value: Tensor) -> Callable[..., Tensor]:
    def replace(x: Tensor, hook: Any) -> Tensor:
        m = mask.view(x.shape[2:])
        if value.ndim == 1:
            return replace_features(x, m, value.view(x.shape[2:]))
        v = _there(value, x)
        return x * m + v.reshape(*v.shape[:-1], *x.shape[2:]) * (1 - m)

    return replace


def _there(value: Tensor, x: Tensor) -> Tensor:
    """The part of a value that belongs to the rows and positions of x [batch, pos, ...]."""
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
                passed = sparse_linear(columns, linear.sparse, values=rest).T.reshape(*value.shape[:-1], -1)
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
