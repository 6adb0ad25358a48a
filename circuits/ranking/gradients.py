"""What rankings by gradients are made of: values at sites and through weights, and gradients of the loss there."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from circuits.circuit.score import margins, two_way_loss
from circuits.model.hooks import keep
from circuits.model.sites import Site, WeightAt
from circuits.model.subject import Subject
from circuits.model.transformer import SparseTransformer
from tasks import Batch
from tasks.base import Targets

IG_STEPS = 8
"""Points between corrupted and clean embeddings."""
ONE: tuple[float, ...] = (1.0,)
"""The clean embeddings alone: attribution patching."""
WAY: tuple[float, ...] = tuple((i + 0.5) / IG_STEPS for i in range(IG_STEPS))
"""Middles of equal parts of the way from corrupted to clean embeddings."""


def node_scores(model: Subject, batch: Batch, points: Sequence[float]) -> dict[Site, Tensor]:
    """|(clean - corrupt) * d loss / d node| summed over positions, averaged over prompts; [width] a site."""
    clean = clean_targets(batch)
    ends = [_site_values(model, tokens) for tokens in (batch.clean, batch.corrupt)]
    gradients = _mean_gradients(model, clean, batch.corrupt, points, partial(_watched_sites, model))
    moved = {
        site: ((ends[0][site] - ends[1][site]) * gradient.flatten(2)).sum(1)
        for site, gradient in gradients.items()
    }
    # A head's channels move the loss together.
    return {
        site: effect.unflatten(1, (model.widths[site], -1)).sum(2).abs().mean(0).cpu()
        for site, effect in moved.items()
    }


def edge_scores(model: SparseTransformer, batch: Batch, points: Sequence[float]) -> dict[WeightAt, Tensor]:
    """|(clean - corrupt) at the source * weight * d loss / d what the weight writes to|, for every nonzero weight.

    Summed over positions, averaged over prompts; [d_in, d_out] a matrix, minus infinity where it has a zero.
    Source: Syed et al. 2023 (arXiv 2310.10348); with several points, Hanna et al. 2024 (arXiv 2403.17806).
    """
    clean = clean_targets(batch)
    ends = [_inputs(model, tokens) for tokens in (batch.clean, batch.corrupt)]
    gradients = _mean_gradients(model, clean, batch.corrupt, points, partial(_watched_maps, model))
    return {at: _entries(model, at, ends[0][at] - ends[1][at], g) for at, g in gradients.items()}


def clean_targets(batch: Batch) -> Targets:
    """The clean prompts alone, with what each should predict."""
    return Targets(batch.clean, batch.answer, batch.foil, batch.position)


def embeddings(model: Subject, tokens: Tensor) -> dict[str, Tensor]:
    """What tokens are embedded as, by the hook where it passes; of both texts where there are two."""
    kept: dict[str, Tensor] = {}
    names = ["hook_embed"]
    if isinstance(model, SparseTransformer) and model.encoder is not None:
        names.append("encoder.embedding.hook_embed")
    with torch.no_grad(), model.hooks(fwd_hooks=[(name, partial(keep, kept, name)) for name in names]):
        model(tokens)
    return kept


def _mean_gradients(
    model: Subject, clean: Targets, corrupt: Tensor, points: Sequence[float], watched: Callable[..., Any]
) -> dict[Any, Tensor]:
    """d loss / d what is watched, averaged over points of the way from corrupted to clean embeddings."""
    others = embeddings(model, corrupt)
    total: dict[Any, Tensor] = {}
    for point in points:
        kept: dict[Any, Tensor] = {}
        blends = [(name, partial(_blend, other, point)) for name, other in others.items()]
        with torch.enable_grad(), watched(kept), model.hooks(fwd_hooks=blends):
            loss = two_way_loss(margins(model(clean.tokens), clean)) * len(clean.tokens)
            found = torch.autograd.grad(loss, list(kept.values()))
        for key, gradient in zip(kept, found, strict=True):
            total[key] = total.get(key, 0) + gradient / len(points)
    return total


def _blend(other: Tensor, point: float, embedded: Tensor, hook: Any) -> Tensor:
    """Embeddings at `point` of the way from others, from which gradients start."""
    return (other + point * (embedded.detach() - other)).requires_grad_()


def _site_values(model: Subject, tokens: Tensor) -> dict[Site, Tensor]:
    kept: dict[Site, Tensor] = {}
    with torch.no_grad(), _watched_sites(model, kept):
        model(tokens)
    return {site: value.flatten(2) for site, value in kept.items()}


@contextmanager
def _watched_sites(model: Subject, kept: dict[Site, Tensor]) -> Iterator[None]:
    hooks = [(model.hook_name(site), partial(_keep_and_pass, kept, site)) for site in model.sites()]
    with model.hooks(fwd_hooks=hooks):
        yield


def _keep_and_pass(kept: dict[Site, Tensor], site: Site, value: Tensor, hook: Any) -> Tensor:
    """The pass goes on with what is kept, so that gradients meet it: some wrapped models show their hooks a copy."""
    kept[site] = value.clone()
    return kept[site]


@contextmanager
def _watched_maps(
    model: SparseTransformer, kept: dict[WeightAt, Tensor], *, of_inputs: bool = False
) -> Iterator[None]:
    """Keeps what every weight matrix writes, or reads, of a pass."""
    handles = [
        model.linear(*at).register_forward_hook(partial(_keep_map, kept, at, of_inputs))
        for at in model.weights_among(model.widths)
    ]
    try:
        with model.turn:
            yield
    finally:
        for handle in handles:
            handle.remove()


def _keep_map(
    kept: dict[WeightAt, Tensor], at: WeightAt, of_inputs: bool, module: Any, inputs: Any, output: Tensor
) -> None:
    kept[at] = inputs[0] if of_inputs else output


def _inputs(model: SparseTransformer, tokens: Tensor) -> dict[WeightAt, Tensor]:
    kept: dict[WeightAt, Tensor] = {}
    with torch.no_grad(), _watched_maps(model, kept, of_inputs=True):
        model(tokens)
    return kept


def _entries(model: SparseTransformer, at: WeightAt, change: Tensor, gradient: Tensor) -> Tensor:
    """One matrix of scores, prompt by prompt: all of them at once would not fit for large models."""
    weight = model.linear(*at).weight.detach()
    total = torch.zeros_like(weight)
    for moved, slope in zip(change.flatten(2), gradient.flatten(2), strict=True):
        total += (moved.T @ slope).abs()
    score = total * weight.abs() / len(change)
    return score.masked_fill(weight == 0, -torch.inf).cpu()
