"""A model with only some parts kept, on fixed prompts, and whether that will do: what pruning and trust both ask.

`MaskedModel` runs any nodes and edges on one batch of prompt pairs. `Evaluator` is such a run on the prompts of a
criterion, with its verdict. Nothing else decides whether a part of a model is good enough.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from circuits.circuit.adversary import Attack, Shares, drawn, worst
from circuits.circuit.criterion import Criterion
from circuits.circuit.masked import ordinary, run_masked
from circuits.circuit.nodes import HOSTILE, AllBut, Edge, Node, edge_masks, is_pair, node_masks, without
from circuits.circuit.score import (
    Score,
    fitted_scale,
    loss_against,
    margin_correlation,
    margin_of,
    margins,
    score_against,
    score_margins,
)
from circuits.model.sites import Site, WeightAt
from circuits.model.subject import SparseSubject, Subject
from tasks import Batch, Task
from tasks.base import Targets

Kept = Sequence[Edge] | Literal["between", "all"]
"""The weights that are kept: these, with none else; "between": all between kept nodes, with none else; "all": every
weight of the model, so that what is left out can still compete with what is kept in AbsTopK."""


N_ATTACKED, N_SCORED = 32, 256
"""Prompt pairs that an attack looks at, and those, at most, on which what it finds is scored."""
N_DRAWS = 8
"""Draws of stochastic ablation."""


class MaskedModel:
    """A model, replacement values and prompt pairs; runs the model with any nodes and edges kept."""

    def __init__(
        self, model: Subject, values: dict[Site, Tensor], batch: Batch, *, first: int | None = None
    ) -> None:
        """first: pairs to read before any others are, for whoever may stop there; None: all are read at once."""
        self.model = model
        self.values = {site: ordinary(value.to(model.like)) for site, value in values.items()}
        self.widths = {site: model.widths[site] for site in values}
        self.n_pairs = n = len(batch)
        self.batch = batch = batch.to(model.like.device)
        self.targets = batch.tokens_and_targets()
        parts = [torch.arange(n)] if first is None else _slices(batch.position.cpu(), first)
        self._parts = [_to_the_last(batch.rows(pairs).tokens_and_targets()) for pairs in parts]
        # Parts hold their clean prompts, then their corrupted ones; `_order[i]` is the row that is read i-th.
        self._order = torch.cat([pairs + half for pairs in parts for half in (0, n)])

    @cached_property
    def every(self) -> AllBut:
        """Every node of the model."""
        return AllBut(self.widths)

    def logits(self, nodes: Iterable[Node], edges: Kept) -> Float[Tensor, "rows d_vocab"]:
        """Logits at the answer position, clean prompts first."""
        return self._in_order(torch.cat([logits for logits, _ in self._read(nodes, edges)]))

    def margins(self, nodes: Iterable[Node], edges: Kept) -> Float[Tensor, " rows"]:
        """Logit of the answer minus logit of the foil, clean prompts first."""
        return self._in_order(self._margins(nodes, edges))

    @cached_property
    def full_margins(self) -> Float[Tensor, " rows"]:
        """Margins of the whole model, clean prompts first."""
        return self._in_order(self._full_margins)

    def node_masks(self, nodes: Iterable[Node]) -> dict[Site, Tensor]:
        """1 = keep, for these nodes, at every site."""
        return node_masks(nodes, self.widths, self.model.like)

    def edge_masks(self, edges: Iterable[Edge]) -> dict[WeightAt, Tensor]:
        """1 = keep, for these edges, in every weight matrix."""
        assert isinstance(self.model, SparseSubject), "only weights that lead from site to site can be cut"
        every = edge_masks(edges, self.widths, self.model.like)
        return {at: every[at] for at in self.model.weights_among(self.widths)}

    @cached_property
    def _full_margins(self) -> Tensor:
        """Margins of the whole model, in the order in which they are read."""
        return torch.cat([margin_of(self._run(part, {}, None), part) for part in self._parts])

    def kept(self, nodes: Iterable[Node], edges: Kept) -> Shares:
        """1 at each kept part, 0 elsewhere: masks of sites, and of the weights that can be cut."""
        masks = self.node_masks(nodes)
        shares: Shares = {site: mask for site, mask in masks.items()}
        for weight, mask in (self._cut(masks, edges) or {}).items():
            shares[weight] = mask
        return shares

    def margins_under(self, shares: Shares) -> Float[Tensor, " rows"]:
        """Margins while every part keeps such a share of itself, clean prompts first; differentiable in the shares."""
        masks = {key: share for key, share in shares.items() if isinstance(key, Site)}
        cut = {key: share for key, share in shares.items() if isinstance(key, WeightAt)}
        logits = run_masked(self.model, self.targets.tokens, masks, self.values, cut)
        return margins(logits, self.targets)

    def first(self, n_pairs: int) -> "MaskedModel":
        """The same on the first pairs alone."""
        if n_pairs >= self.n_pairs:
            return self
        return MaskedModel(self.model, self.values, self.batch.rows(slice(n_pairs)))

    def _margins(self, nodes: Iterable[Node], edges: Kept) -> Tensor:
        return torch.cat([margin_of(logits, part) for logits, part in self._read(nodes, edges)])

    def _read(self, nodes: Iterable[Node], edges: Kept) -> Iterator[tuple[Tensor, Targets]]:
        """Logits at the answer position and their prompts, a few rows, then many, at a time."""
        masks = self.node_masks(nodes)
        cut = self._cut(masks, edges)
        for part in self._parts:
            yield self._run(part, masks, cut), part

    def _cut(self, masks: dict[Site, Tensor], edges: Kept) -> dict[WeightAt, Tensor] | None:
        # Only the weights of a sparse subject lead from site to site, and can be cut.
        if edges == "all" or not isinstance(self.model, SparseSubject):
            return None
        if edges == "between":
            return {
                at: torch.outer(masks[at.source], masks[at.target]) for at in self.model.weights_among(masks)
            }
        assert not isinstance(edges, str), f"edges: got {edges!r}"
        return self.edge_masks(edges)

    def _run(
        self, part: Targets, masks: dict[Site, Tensor], cut: dict[WeightAt, Tensor] | None
    ) -> Float[Tensor, "rows d_vocab"]:
        with torch.inference_mode(False), torch.no_grad():
            logits = run_masked(self.model, part.tokens, masks, self.values, cut)
        return logits[torch.arange(len(logits), device=logits.device), part.position]

    def _in_order(self, read: Tensor) -> Tensor:
        """Rows as they were read, put back: clean prompts first."""
        return torch.empty_like(read).index_copy_(0, self._order.to(read.device), read)


class Evaluator(MaskedModel):
    """A criterion applied to parts of a model: their score on its prompts, and whether it meets the targets."""

    def __init__(self, model: Subject, task: Task, criterion: Criterion, values: dict[Site, Tensor]) -> None:
        criterion.check(task)
        self.task, self.criterion = task, criterion
        self._known: dict[tuple[frozenset[Node], frozenset[Edge] | str], Score | None] = {}
        batch = task.batch(criterion.n_eval, split="val", seed=criterion.seed)
        super().__init__(model, values, batch, first=16)

    def score(self, nodes: Sequence[Node], edges: Kept) -> Score:
        """Score on the validation prompts, after a calibration of these parts' own if the criterion asks for one."""
        return self.hardest(self, self._score(self._margins(nodes, edges)), nodes, edges)

    def solved(self, nodes: Sequence[Node], edges: Kept) -> Score | None:
        """The validation score if it meets both targets, else None.

        Most of what is tried fails on the first few prompts: reading stops as soon as no outcome on the
        remaining ones could meet the targets, which changes no answer. Answers are kept, since the last rounds of
        dropping, and whoever proves their result, ask the same again.
        """
        asked = (frozenset(nodes), edges if isinstance(edges, str) else frozenset(edges))
        if asked not in self._known:
            self._known[asked] = self._solved(nodes, edges)
        return self._known[asked]

    def _solved(self, nodes: Sequence[Node], edges: Kept) -> Score | None:
        read: list[Tensor] = []
        for logits, part in self._read(nodes, edges):
            read.append(margin_of(logits, part))
            if self._out_of_reach(torch.cat(read)):
                return None
        margin = torch.cat(read)
        score = self._score(margin)
        asked = self.criterion.aim_order
        if not self.meets(score) or (asked and self.order(margin) < asked):
            return None
        score = self.hardest(self, score, nodes, edges)
        return score if self.meets(score) else None

    def order(self, margin: Float[Tensor, " rows"]) -> float:
        """Correlation within an answer of margins, in the order in which they are read, with the model's.

        1 where the model is equally sure of every prompt of an answer, so that there is no order to have.
        """
        found = margin_correlation(margin, self._full_margins, self._answers)
        return 1.0 if math.isnan(found) else found

    @cached_property
    def _answers(self) -> Tensor:
        """The answer of each prompt, in the order in which they are read."""
        return torch.cat([part.answer for part in self._parts])

    def meets(self, score: Score) -> bool:
        """Whether a score on the prompts that decide is within both targets."""
        return score.loss <= self.criterion.aim and score.accuracy >= self.criterion.target_accuracy

    def spare(self, nodes: Sequence[Node], edges: Sequence[Edge]) -> list[Node | Edge]:
        """The nodes and weights that could go, one at a time, while the rest meets the targets: none if 1-minimal.

        A q-k pair has no weight that could be cut: it stands as long as both of its channels do.
        """
        weights = [edge for edge in edges if not is_pair(edge)]
        return [
            *(node for node in nodes if self.solved(*without(node, nodes, edges))),
            *(w for w in weights if self.solved(nodes, [edge for edge in edges if edge != w])),
        ]

    def scale(self, nodes: Sequence[Node], edges: Kept) -> float:
        """The calibration factor of these parts, fitted on the validation prompts; 1 without calibration."""
        return self.fitted(self._margins(nodes, edges)) if self.criterion.calibrated else 1.0

    def own_scale(self, nodes: Sequence[Node], edges: Kept) -> float:
        """Such a factor whether the criterion calibrates or not: the published calibration, to look at."""
        return fitted_scale(self._margins(nodes, edges))

    def fitted(self, margin: Float[Tensor, " rows"]) -> float:
        """The calibration factor of these margins; 1 without calibration."""
        return fitted_scale(margin) if self.criterion.calibrated else 1.0

    @cached_property
    def test(self) -> MaskedModel:
        """Runs on the test prompts, which decide nothing."""
        batch = self.task.batch(self.criterion.n_test, split="test", seed=self.criterion.seed)
        return MaskedModel(self.model, self.values, batch)

    def held_out(self, nodes: Sequence[Node], edges: Kept) -> Score:
        """Score on the test prompts, with the calibration of the validation prompts."""
        return self.scored(self.test, nodes, edges, self.scale(nodes, edges))

    def scored(self, runs: MaskedModel, nodes: Iterable[Node], edges: Kept, scale: float = 1.0) -> Score:
        """Score of parts on any prompts: against the right answers, or against the whole model's."""
        nodes = list(nodes)
        plain = self.score_of(runs, runs.margins(nodes, edges), scale)
        return self.hardest(runs, plain, nodes, edges, scale)

    def score_of(self, runs: MaskedModel, margin: Float[Tensor, " rows"], scale: float = 1.0) -> Score:
        """Score of margins on the prompts of `runs`, clean prompts first."""
        if self.criterion.objective == "task":
            return score_margins(margin * scale)
        return score_against(margin, runs.full_margins, self.criterion.objective)

    def under_attack(
        self,
        runs: MaskedModel,
        nodes: Sequence[Node],
        edges: Kept,
        scale: float = 1.0,
        attack: Attack | None = None,
    ) -> Score:
        """Score while what is left out takes the worst values there are between its mean and its own."""
        seen = runs.first(N_ATTACKED)
        found = worst(runs.kept(nodes, edges), partial(self._loss_under, seen, scale), attack or Attack())
        return self._score_under(runs.first(N_SCORED), found.shares, scale)

    def at_random(self, runs: MaskedModel, nodes: Sequence[Node], edges: Kept, scale: float = 1.0) -> Score:
        """Mean score over draws in which what is left out lies anywhere between its mean and its own value."""
        generator, kept = torch.Generator().manual_seed(self.criterion.seed), runs.kept(nodes, edges)
        seen = runs.first(N_SCORED)
        scores = [self._score_under(seen, drawn(kept, generator), scale) for _ in range(N_DRAWS)]
        return Score(*(sum(column) / N_DRAWS for column in zip(*scores, strict=True)))

    def _loss_under(self, runs: MaskedModel, scale: float, shares: Shares) -> Float[Tensor, ""]:
        return loss_against(self.criterion.objective, runs.margins_under(shares) * scale, runs.full_margins)

    def _score_under(self, runs: MaskedModel, shares: Shares, scale: float) -> Score:
        with torch.no_grad():
            return self.score_of(runs, runs.margins_under(shares), scale)

    def hardest(
        self, runs: MaskedModel, plain: Score, nodes: Sequence[Node], edges: Kept, scale: float = 1.0
    ) -> Score:
        """The plain score, or a worse one, where the criterion's ablation chooses what is left out."""
        if self.criterion.ablation not in HOSTILE or edges == "all":
            return plain
        score = self.at_random if self.criterion.ablation == "stochastic" else self.under_attack
        hard = score(runs, nodes, edges, scale)
        return Score(max(plain.loss, hard.loss), min(plain.accuracy, hard.accuracy))

    @cached_property
    def _power(self) -> float:
        """Mean square of the whole model's margins on all prompts, by which those on a few are measured."""
        return float(self._full_margins.square().mean())

    def _out_of_reach(self, read: Tensor) -> bool:
        share = len(read) / (2 * self.n_pairs)
        score = self._score(read)
        wrong = (1 - score.accuracy) * share
        return score.loss * share > self.criterion.aim or wrong > 1 - self.criterion.target_accuracy + 1e-9

    def _score(self, margin: Tensor) -> Score:
        """Of the margins read so far."""
        if self.criterion.objective == "task":
            return score_margins(margin * self.fitted(margin))
        return score_against(margin, self._full_margins[: len(margin)], self.criterion.objective, self._power)


def _to_the_last(targets: Targets) -> Targets:
    """The same without the places after the last one that is asked about, which no model reads before it."""
    return targets._replace(tokens=targets.tokens[:, : int(targets.position.max()) + 1])


def _slices(position: Int64[Tensor, " pairs"], first: int, most: int = 64) -> list[Int64[Tensor, " some"]]:
    """Pairs in parts: the first few, then the others by length, so that little of a part is padding.

    Parts after the first are as large as still fits the processor's cache.
    """
    others = first + position[first:].argsort(stable=True)
    return [torch.arange(len(position))[:first], *(others.split(most) if len(others) else ())]
