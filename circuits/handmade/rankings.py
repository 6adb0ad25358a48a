"""Other ways to find a circuit, behind one signature: `(model, task) -> nodes, most important first`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from circuits.circuit.ablation import mean_values
from circuits.circuit.evaluator import MaskedModel
from circuits.circuit.nodes import Node
from circuits.circuit.score import margins, two_way_loss
from circuits.heads.weights import check_finite
from circuits.model.compute import check_learnable, with_gradients
from circuits.model.hooks import keep
from circuits.model.kinds import of_ours
from circuits.model.options import Says
from circuits.model.sites import Site, weights_among
from circuits.model.transformer import SparseTransformer
from tasks import Task
from tasks.base import Targets

Ranking = Callable[[SparseTransformer, Task], list[Node]]
N_PAIRS = 64
"""Prompt pairs that gradients are averaged over."""
SAYS = Says(act=None, arch=None, norm=None, norm_position=None, embed_scale=None)
"""What weight magnitude sees: composed heads read the stream through weights that belong to no edge."""
IG_STEPS = 8
"""Points between corrupted and clean embeddings."""


@of_ours
def attribution_patching(model: SparseTransformer, task: Task) -> list[Node]:
    """By |(clean - corrupt) * d loss / d node| at the clean prompts: a first-order guess at patching each node.

    Source: Nanda 2023, attribution patching; Syed et al. 2023 (arXiv 2310.10348).
    """
    return _by_attribution(model, task, [1.0])


@of_ours
def integrated_gradients(model: SparseTransformer, task: Task) -> list[Node]:
    """The same with gradients averaged on the way from corrupted to clean embeddings.

    Source: Hanna et al. 2024 (arXiv 2403.17806), EAP-IG, for nodes.
    """
    return _by_attribution(model, task, [(i + 0.5) / IG_STEPS for i in range(IG_STEPS)])


@of_ours
def single_ablation(model: SparseTransformer, task: Task) -> list[Node]:
    """By how far ablating each node alone, at its mean over prompts, moves the margins: the simplest baseline."""
    check_learnable(model)
    text = task.batch(256, split="train", seed=0)
    values = mean_values(model, text.clean, lengths=text.lengths)
    runs = MaskedModel(model, values, task.batch(N_PAIRS // 2, split="train", seed=1))
    scores = {site: torch.zeros(width) for site, width in runs.widths.items()}
    for node in runs.every:
        rest = [other for other in runs.every if other != node]
        moved = runs.margins(rest, "all") - runs.full_margins
        scores[node.at][node.index] = moved.abs().mean()
    return _ranked(scores)


@of_ours
def weight_magnitude(model: SparseTransformer, task: Task) -> list[Node]:
    """By the sum of |weight| over everything that the node reads and writes; the task is not looked at.

    Raises ValueError for composed heads.
    """
    SAYS.check(model, "weight_magnitude", instead="Rank by attribution_patching, which runs the model.")
    scores = {site: torch.zeros(width) for site, width in model.config.widths.items()}
    for at in weights_among(scores):
        magnitude = model.linear(*at).weight.detach().abs().cpu()
        scores[at.source] += magnitude.sum(1)
        scores[at.target] += magnitude.sum(0)
    return _ranked(scores)


@of_ours
def random_order(model: SparseTransformer, task: Task) -> list[Node]:
    """In an order drawn once from a fixed seed: what chance gives."""
    generator = torch.Generator().manual_seed(0)
    widths = model.config.widths
    return _ranked({site: torch.rand(width, generator=generator) for site, width in widths.items()})


METHODS: dict[str, Ranking] = {
    "single ablation": single_ablation,
    "attribution patching": attribution_patching,
    "integrated gradients": integrated_gradients,
    "weight magnitude": weight_magnitude,
    "random": random_order,
}
"""Every ranking by its name."""


@with_gradients
def _by_attribution(model: SparseTransformer, task: Task, points: list[float]) -> list[Node]:
    check_learnable(model)
    batch = task.batch(N_PAIRS, split="train", seed=0)
    both = batch.tokens_and_targets()
    n = len(batch)
    clean = Targets(both.tokens[:n], both.answer[:n], both.foil[:n], both.position[:n])
    ends = {
        name: _cached(model, tokens) for name, tokens in (("clean", batch.clean), ("corrupt", batch.corrupt))
    }
    gradients = {site: torch.zeros_like(value) for site, value in ends["clean"].items()}
    for point in points:
        for site, gradient in _gradients(model, clean, batch.corrupt, point).items():
            gradients[site] += gradient / len(points)
    return _ranked(
        {
            site: ((ends["clean"][site] - ends["corrupt"][site]) * gradients[site])
            .sum(dim=1)
            .abs()
            .mean(dim=0)
            for site in gradients
        }
    )


def _cached(model: SparseTransformer, tokens: Tensor) -> dict[Site, Tensor]:
    kept: dict[Site, Tensor] = {}
    with torch.no_grad(), _watched(model, kept):
        model(tokens)
    return {site: value.flatten(2) for site, value in kept.items()}


def _gradients(model: SparseTransformer, clean: Targets, corrupt: Tensor, point: float) -> dict[Site, Tensor]:
    """d loss / d node with embeddings, of both texts where there are two, at `point` of the way to clean ones."""
    kept: dict[Site, Tensor] = {}
    others = _embeddings(model, corrupt)

    blends = [(name, partial(_blend, other, point)) for name, other in others.items()]
    with torch.enable_grad(), _watched(model, kept), model.hooks(fwd_hooks=blends):
        loss = two_way_loss(margins(model(clean.tokens), clean)) * len(clean.tokens)
        found = torch.autograd.grad(loss, list(kept.values()))
    return {site: gradient.flatten(2) for site, gradient in zip(kept, found, strict=True)}


def _embeddings(model: SparseTransformer, tokens: Tensor) -> dict[str, Tensor]:
    """What tokens are embedded as, by the hook where it passes."""
    kept: dict[str, Tensor] = {}
    names = ["hook_embed", *(["encoder.embedding.hook_embed"] if model.encoder is not None else [])]
    with torch.no_grad(), model.hooks(fwd_hooks=[(name, partial(keep, kept, name)) for name in names]):
        model(tokens)
    return kept


@contextmanager
def _watched(model: SparseTransformer, kept: dict[Site, Tensor]) -> Iterator[None]:
    with model.hooks(
        fwd_hooks=[(model.hook_name(site), partial(keep, kept, site)) for site in model.sites()]
    ):
        yield


def _blend(other: Tensor, point: float, embedded: Tensor, hook: Any) -> Tensor:
    """Embeddings at `point` of the way from others, from which gradients start."""
    return (other + point * (embedded.detach() - other)).requires_grad_()


def _ranked(scores: dict[Site, Tensor]) -> list[Node]:
    check_finite({str(site): values for site, values in scores.items()})
    rows = [
        (-float(score), Node.of(site, i)) for site, values in scores.items() for i, score in enumerate(values)
    ]
    return [node for _, node in sorted(rows)]
