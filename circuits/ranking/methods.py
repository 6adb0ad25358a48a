"""Ways to rank the parts of a model for a task, behind one signature; the baselines that a circuit is held against."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from circuits.circuit.ablation import mean_values, site_values
from circuits.circuit.evaluator import MaskedModel
from circuits.circuit.masked import run_masked
from circuits.circuit.nodes import Node, NodesOf
from circuits.circuit.score import TARGETS, Score, check_task, margin_error, margins, task_margins
from circuits.heads.weights import check_finite
from circuits.model.compute import check_learnable, resting, with_gradients
from circuits.model.kinds import check_ours, of_subjects
from circuits.model.options import Says
from circuits.model.sites import Site
from circuits.model.subject import Subject
from circuits.model.transformer import SparseTransformer
from circuits.pruning.config import PruneConfig
from circuits.pruning.learn import learn_gates
from circuits.pruning.minimal import thinned
from circuits.ranking.gradients import ONE, WAY, clean_targets, edge_scores, node_scores
from circuits.ranking.ranking import Kind, Ranking
from circuits.settings import Count, Seed, Settings
from tasks import Task
from tasks.base import Targets
from tasks.near import unknown

SAYS = Says(
    act=None, arch=None, norm=None, norm_position=None, embed_scale=None, experts=None, factor_ratio=None
)
"""What weight magnitude sees: composed heads read the stream through weights that belong to no edge."""
Scores = Mapping[Any, Tensor]


@dataclass(frozen=True, kw_only=True)
class RankConfig(Settings):
    """What decides a ranking."""

    n_pairs: Count = 64
    "Prompt pairs that effects and gradients are averaged over."
    n_mean: Count = 256
    "Prompts that ablation means are taken over."
    steps: Count = 150
    "Gates: optimiser steps."
    seed: Seed = 0
    "Decides gates and random orders. Prompts are the same for all."


@of_subjects
@with_gradients
def rank(model: Subject, task: Task, *, method: str = "gates", config: RankConfig | None = None) -> Ranking:
    """Every node (or edge) of a model with a score for how much it matters to a task.

    model: ours, or any wrapped model as a LensSubject; magnitude needs ours. method: one of `METHODS`. No weight of a
    wrapped model leads from node to node: EAP and EAP-IG then rank nodes, each by all that it sends on to others.
    Raises ValueError for another method, a task that does not fit the model, and a model that a method cannot rank.

    Examples:
        >>> found = circuits.load("quotes-handmade")
        >>> ranking = circuits.ranking.rank(found.model, found.task, method="attribution patching")
        >>> ranking.nodes()[0] in found.circuit.nodes
        True
    """
    if method not in METHODS:
        raise ValueError(unknown("method", method, METHODS))
    check_task(model, task)
    kind, score = METHODS[method]
    if kind == "edges" and not isinstance(model, SparseTransformer):
        kind, score = OF_NODES[method]
    if isinstance(model, nn.Module):
        check_learnable(model)
    scores = score(model, task, config or RankConfig())
    if kind == "nodes":  # edges have minus infinity where there is none
        check_finite({str(key): value for key, value in scores.items()})
    return Ranking(method=method, kind=kind, scores=scores)


def _by_gradients(
    points: tuple[float, ...], of: Callable[..., Scores], model: Subject, task: Task, config: RankConfig
) -> Scores:
    batch = task.batch(config.n_pairs, split="train", seed=0).to(model.like.device)
    return of(model, batch, points)


def _activation_patching(model: Subject, task: Task, config: RankConfig) -> Scores:
    """By how far a node's value of the corrupted prompt, put into the clean one, moves the margin: one run a node.

    Source: Vig et al. 2020 (arXiv 2004.12265); Meng et al. 2022 (arXiv 2202.05262).
    """
    batch = task.batch(config.n_pairs // 2 or 1, split="train", seed=1).to(model.like.device)
    clean = clean_targets(batch)
    with torch.no_grad():
        corrupted = site_values(model, batch.corrupt)
        full = margins(model(clean.tokens), clean)
        return {
            site: torch.tensor(
                [_moved(model, clean, masks, corrupted, full) for masks in _one_less(model, site)]
            )
            for site in model.widths
        }


def _moved(
    model: Subject, clean: Targets, masks: dict[Site, Tensor], values: dict[Site, Tensor], full: Tensor
) -> float:
    """Mean distance that margins move under masks."""
    return float((margins(run_masked(model, clean.tokens, masks, values), clean) - full).abs().mean())


def _single_ablation(model: Subject, task: Task, config: RankConfig) -> Scores:
    """By how far ablating each node alone, at its mean over prompts, moves the margins: the simplest baseline."""
    values = task_means(model, task, config.n_mean)
    runs = MaskedModel(model, values, task.batch(config.n_pairs // 2 or 1, split="train", seed=1))
    with torch.no_grad():
        full = runs.full_margins
        return {
            site: torch.tensor(
                [
                    float((runs.margins_under(dict(masks.items())) - full).abs().mean())
                    for masks in _one_less(model, site)
                ]
            )
            for site in model.widths
        }


def _one_less(model: Subject, site: Site) -> Iterator[dict[Site, Tensor]]:
    """Masks that leave out one coordinate of a site, one after the other."""
    for i in range(model.widths[site]):
        mask = torch.ones(model.widths[site]).to(model.like)
        mask[i] = 0
        yield {site: mask}


def _magnitude(model: Subject, task: Task, config: RankConfig) -> Scores:
    """By the sum of |weight| over everything that the node reads and writes; the task is not looked at."""
    check_ours(model, "magnitude")
    SAYS.check(model, "weight_magnitude", instead="Rank by attribution patching, which runs the model.")
    scores = {site: torch.zeros(width) for site, width in model.widths.items()}
    for at in model.weights_among(scores):  # type: ignore[attr-defined]
        magnitude = model.linear(*at).weight.detach().abs().cpu()  # type: ignore[attr-defined]
        scores[at.source] += magnitude.sum(1)
        scores[at.target] += magnitude.sum(0)
    return scores


def _random(model: Subject, task: Task, config: RankConfig) -> Scores:
    """In an order drawn once from the seed: what chance gives."""
    generator = torch.Generator().manual_seed(config.seed)
    return {site: torch.rand(width, generator=generator) for site, width in model.widths.items()}


def _gates(model: Subject, task: Task, config: RankConfig) -> Scores:
    """What is left when gates that cost more and more have closed, and then parts were dropped; then the last to close.

    Source: Gao et al. 2025 (arXiv 2511.13653); asked for the model's margins, as pruning is by default.
    """
    learning = PruneConfig(steps=config.steps, batch_size=config.n_pairs, seed=config.seed)
    values = task_means(model, task, config.n_mean)
    pool = task.batch(16 * config.n_pairs, split="train", seed=config.seed).to(model.like.device)
    named = {site: NodesOf(site, width) for site, width in model.widths.items()}
    with resting(model):
        way: Sequence[Sequence[Node]] = learn_gates(
            named,
            partial(_masked, model, values),
            pool,
            task_margins(model, pool),
            learning,
            seed=config.seed,
            like=model.like,
            log=_quiet,
        )
        runs = MaskedModel(model, values, task.batch(config.n_pairs, split="val", seed=config.seed))
        way = _while_it_works(runs, way)
        needed = _needed(runs, way[-1])
    scores = {site: torch.zeros(width) for site, width in model.widths.items()}
    # Later sets are smaller, and what is needed of the last one is smaller still: they write over earlier ones.
    for stage, ranked in enumerate([*way, needed]):
        for place, node in enumerate(ranked):
            scores[node.at][node.index] = stage + 1 - place / len(ranked)
    return scores


def _while_it_works(runs: MaskedModel, way: Sequence[Sequence[Node]]) -> Sequence[Sequence[Node]]:
    """The open sets up to the last with the model's margins: when gates close on, the order says nothing more."""
    good = [n for n, nodes in enumerate(way, start=1) if _good(runs, nodes)]
    return way[: good[-1]] if good else way


def _needed(runs: MaskedModel, nodes: Sequence[Node]) -> list[Node]:
    """Of a set with the model's margins those that it cannot do without, most needed first; none if it has not."""
    if not _good(runs, nodes):
        return []
    kept = thinned(nodes, partial(_good, runs), 1)
    errors = {node: _error(runs, [other for other in kept if other != node]) for node in kept}
    return sorted(kept, key=lambda node: (-errors[node], node))


def _good(runs: MaskedModel, nodes: Sequence[Node]) -> Score | None:
    error = _error(runs, nodes)
    return Score(error, 1.0) if error <= TARGETS["margins"] else None


def _error(runs: MaskedModel, nodes: Sequence[Node]) -> float:
    return float(margin_error(runs.margins(nodes, "all"), runs.full_margins))


def _masked(
    model: Subject, values: dict[Site, Tensor], targets: Targets, masks: dict[Site, Tensor]
) -> Tensor:
    return run_masked(model, targets.tokens, masks, values)


def _quiet(*_: object) -> None:
    """Nobody watches."""


def task_means(model: Subject, task: Task, n: int = 256) -> dict[Site, Tensor]:
    """Means over clean training prompts of the task: what rankings put in the place of a node that is left out."""
    text = task.batch(n, split="train", seed=0).to(model.like.device)
    return mean_values(model, text.clean, lengths=text.lengths)


METHODS: dict[str, tuple[Kind, Callable[[Subject, Task, RankConfig], Scores]]] = {
    "gates": ("nodes", _gates),
    "single ablation": ("nodes", _single_ablation),
    "activation patching": ("nodes", _activation_patching),
    "attribution patching": ("nodes", partial(_by_gradients, ONE, node_scores)),
    "integrated gradients": ("nodes", partial(_by_gradients, WAY, node_scores)),
    "weight magnitude": ("nodes", _magnitude),
    "random": ("nodes", _random),
    "EAP": ("edges", partial(_by_gradients, ONE, edge_scores)),
    "EAP-IG": ("edges", partial(_by_gradients, WAY, edge_scores)),
}
"""Every method by its name: what it ranks, and how."""
OF_NODES: dict[str, tuple[Kind, Callable[[Subject, Task, RankConfig], Scores]]] = {
    "EAP": ("nodes", partial(_by_gradients, ONE, node_scores)),
    "EAP-IG": ("nodes", partial(_by_gradients, WAY, node_scores)),
}
"""What stands for rankings of edges where no weight is one: the scores of a node's outgoing edges add up to these."""
