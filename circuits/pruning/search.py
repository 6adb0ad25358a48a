"""The search for a circuit: learn gates, take what they leave, drop what can go."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations

import torch
from torch import Tensor

from circuits.circuit.ablation import ablation_values
from circuits.circuit.circuit import Circuit
from circuits.circuit.criterion import Criterion
from circuits.circuit.effects import effects_between
from circuits.circuit.evaluator import Evaluator, Kept
from circuits.circuit.masked import run_masked
from circuits.circuit.nodes import (
    AllBut,
    Edge,
    Effect,
    Node,
    NodeFacts,
    NodesOf,
    among,
    is_pair,
    numbers_of,
    weight_of,
    without,
)
from circuits.circuit.parts import edges_between, io_edges
from circuits.circuit.scope import scope
from circuits.circuit.score import (
    TARGETS,
    Score,
    UnsolvedError,
    margin_correlation,
    margin_error,
    margin_ratio,
    score_against,
    score_margins,
    task_margins,
)
from circuits.model.sites import Site, WeightAt
from circuits.model.subject import Subject
from circuits.model.transformer import SparseTransformer
from circuits.pruning.config import PruneConfig
from circuits.pruning.learn import learn_gates
from circuits.pruning.minimal import minimal, thinned
from tasks import Corpus, Task
from tasks.base import Targets

N_EFFECTS = 32
"""Prompt pairs over which the effects of nodes on one another are averaged."""
PAIRS = 1000
"""Pairs of nodes of one site, at most, that are tried together."""
WEAKER = (1, 10, 100)
"""What the penalty is divided by, one after the other, until gates do not close too fast."""


class Search:
    """One pruning run: what it is judged by, the prompts that gates learn from, and its history."""

    def __init__(
        self,
        model: Subject,
        task: Task,
        config: PruneConfig,
        corpus: Corpus | None,
        without: Collection[Node] = (),
    ) -> None:
        """corpus: text for ablation values; None: the task's own prompts. without: nodes that no circuit may have."""
        self.model, self.task, self.config, self.without = model, task, config, frozenset(without)
        self.criterion = config.criterion(task)
        self.values = self._values(corpus)
        self.pool = task.batch(16 * config.batch_size, split="train", seed=config.seed)
        self.reference = None if config.objective == "task" else task_margins(model, self.pool)
        self.judge = Evaluator(model, task, self.criterion, self.values)
        # A faithful circuit is one for what the model does, whatever that is.
        if config.objective != "faithful":
            _check_solved(self.judge)
        self.history: list[dict[str, float]] = []

    def _values(self, corpus: Corpus | None) -> dict[Site, Tensor]:
        config = self.config
        if corpus is None:
            prompts = self.task.batch(config.n_mean, split="train", seed=config.seed).to(
                self.model.like.device
            )
            return ablation_values(self.model, prompts.clean, config.ablation, lengths=prompts.lengths)
        generator = torch.Generator().manual_seed(config.seed)
        text = corpus.windows(config.n_mean, self.model.n_ctx, split="train", generator=generator)
        return ablation_values(self.model, text, config.ablation)

    def best(self, show: Callable[..., None]) -> tuple[list[Node], list[Edge]]:
        """The smallest 1-minimal nodes and edges over all starts.

        A start whose gates stayed open in much greater numbers than another's is not followed further.
        """
        starts = [self.nodes_by_gates(start, show) for start in range(self.config.starts)]
        fewest = min(map(len, starts))
        found = [
            self.drop(ranked, start, show) for start, ranked in enumerate(starts) if len(ranked) <= 3 * fewest
        ]
        return min(found, key=lambda parts: len(parts[0]) + len(parts[1]))

    def drop(
        self, ranked: list[Node], start: int, show: Callable[..., None]
    ) -> tuple[list[Node], list[Edge]]:
        """Drop nodes, then edges, until no single one can go: large groups of the lowest rank first."""
        show(stage="discretise", nodes=len(ranked))
        nodes = self.minimal_nodes(thinned(ranked, self._solved_between), "between", show)
        edges = edges_between(self.model, nodes) if isinstance(self.model, SparseTransformer) else []
        if not self.config.prune_edges:
            return nodes, edges
        if len(edges) > self.config.edge_gates:
            edges = self.edges_by_gates(nodes, edges, start, show)
        return self.without_pairs(*self.minimal(nodes, edges, show), show)

    def nodes_by_gates(self, start: int, show: Callable[..., None]) -> list[Node]:
        """Learn gates on nodes; the last open ones on the way that they closed that meet the target, best first."""
        barred: dict[Site, set[int]] = {site: set() for site in self.judge.widths}
        for node in self.without:
            barred[node.at].add(node.index)
        parts = {site: _allowed(site, n, barred[site]) for site, n in self.judge.widths.items()}
        places = {site: torch.tensor([node.index for node in parts[site]]) for site in parts if barred[site]}
        closed = self.judge.node_masks([])

        def forward(targets: Targets, masks: dict[Site, Tensor]) -> Tensor:
            whole = {
                site: mask if not barred[site] else closed[site].index_put((places[site],), mask)
                for site, mask in masks.items()
            }
            return run_masked(self.model, targets.tokens, whole, self.values)

        found = self._closed(parts, forward, self._solved_between, start, show, "nodes")
        found = found or list(AllBut(self.judge.widths, self.without))
        if self.without and not self._solved_between(found):
            raise NoCircuitError(self.judge.score(found, "between"), self.criterion, len(self.without))
        return found

    def edges_by_gates(
        self, nodes: list[Node], edges: list[Edge], start: int, show: Callable[..., None]
    ) -> list[Edge]:
        """Learn gates on weights between the nodes; the fewest open ones that meet the target, and all q-k pairs."""
        parts: dict[WeightAt, list[Edge]] = {}
        for edge in edges:
            if not is_pair(edge):
                parts.setdefault(weight_of(edge), []).append(edge)
        kept = self.judge.node_masks(nodes)
        places = {
            key: (torch.tensor([e.source.index for e in own]), torch.tensor([e.target.index for e in own]))
            for key, own in parts.items()
        }
        closed = self.judge.edge_masks([])

        def forward(targets: Targets, masks: dict[WeightAt, Tensor]) -> Tensor:
            cut = {k: m.index_put(places[k], masks[k]) if k in masks else m for k, m in closed.items()}
            return run_masked(self.model, targets.tokens, kept, self.values, cut)

        pairs = [edge for edge in edges if is_pair(edge)]
        solved = partial(self.judge.solved, nodes)
        found = self._closed(parts, forward, solved, start, show, "edges")
        return [*thinned(found, solved), *pairs] if found else edges

    def _closed(
        self,
        parts: dict,
        forward: Callable,
        solved: Callable[[list], Score | None],
        start: int,
        show: Callable[..., None],
        what: str,
    ) -> list:
        """The last open ones on the way that gates closed that meet the target; empty where not even all do.

        Where that is all of them, gates closed too fast, as they do where there are many more than the penalty was made
        for: they learn again at a tenth of it, and at last at a hundredth.
        """
        total, before = sum(map(len, parts.values())), list(self.history)
        for weaker in WEAKER:
            self.history = list(before)
            config = replace(self.config, penalty=self.config.penalty / weaker)
            found = _last(self._learn(parts, forward, config, start, show, what), solved)
            if len(found) < total:
                break
        return found

    def _learn(
        self,
        parts: dict,
        forward: Callable,
        config: PruneConfig,
        start: int,
        show: Callable[..., None],
        what: str,
    ) -> list:
        def log(step: int, loss: float, n_open: int) -> None:
            so_far = start * config.steps + step
            if what == "nodes":
                self.history.append({"step": so_far, "task_loss": loss, "n_open": n_open})
            done = so_far / (config.steps * config.starts)
            show(stage=f"{what[:-1]} gates", completed=done, loss=loss, **{what: n_open})

        seed = config.seed + 1000 * start
        return learn_gates(
            parts, forward, self.pool, self.reference, config, seed=seed, like=self.model.like, log=log
        )

    def _solved_between(self, nodes: list[Node]) -> Score | None:
        return self.judge.solved(nodes, "between")

    def minimal_nodes(self, nodes: list[Node], edges: Kept, show: Callable[..., None]) -> list[Node]:
        """Drop nodes, least needed first, until no single one can go."""

        def solved(kept: list[Node]) -> Score | None:
            return self.judge.solved(kept, edges if isinstance(edges, str) else among(edges, kept))

        return minimal(nodes, solved, lambda n: show(stage="nodes", nodes=n))

    def minimal(
        self, nodes: list[Node], edges: list[Edge], show: Callable[..., None]
    ) -> tuple[list[Node], list[Edge]]:
        """Drop edges and the nodes that lost their use, until no single node and no single edge can go."""
        while True:
            # A q-k pair has no weight that could be cut: it stands as long as both of its channels do.
            pairs = [edge for edge in edges if is_pair(edge)]
            weights = [edge for edge in edges if not is_pair(edge)]
            solved = partial(self.judge.solved, nodes)
            edges = sorted(minimal(weights, solved, lambda n: show(stage="edges", edges=n)) + pairs)
            fewer = self.minimal_nodes(nodes, edges, show)
            if fewer == nodes:
                return nodes, edges
            nodes, edges = fewer, among(edges, fewer)

    def without_pairs(
        self, nodes: list[Node], edges: list[Edge], show: Callable[..., None]
    ) -> tuple[list[Node], list[Edge]]:
        """Drop two nodes of a site that can go together though neither can alone, as two that cancel; 1-minimal again.

        Of circuits with more than `PAIRS` such pairs none is tried.
        """
        pairs = [pair for pair in combinations(nodes, 2) if pair[0].at == pair[1].at]
        for pair in pairs if len(pairs) <= PAIRS else ():
            show(stage="pairs", nodes=len(nodes), edges=len(edges))
            rest = [node for node in nodes if node not in pair]
            kept = among(edges, rest)
            if self.judge.solved(rest, kept):
                return self.without_pairs(*self.minimal(rest, kept, show), show)
        return nodes, edges

    def circuit(self, nodes: list[Node], edges: list[Edge]) -> Circuit:
        """The result with its score on test prompts and each node's effect."""
        here = self.judge.score(nodes, edges)
        ours = self.model if isinstance(self.model, SparseTransformer) else None
        circuit = Circuit(
            nodes=tuple(nodes),
            edges=tuple(edges),
            io_edges=tuple(io_edges(ours, nodes, self.judge.batch, self.task.tokenizer)) if ours else (),
            effects=() if ours else self._effects(nodes),
            widths=self.model.widths,
            n_layers=ours.config.n_layers if ours else 1 + max(site.layer for site in self.model.widths),
            d_head=ours.config.d_head if ours else None,
            criterion=self.criterion,
            model_hash=self.model.fingerprint(),
            values={site: value.cpu() for site, value in self.values.items()},
            facts=self._facts(nodes, edges, here),
        )
        return circuit.with_metrics(
            **self._held_out(nodes, edges),
            val_task_loss=here.loss,
            val_task_accuracy=here.accuracy,
            one_minimal=not self.judge.spare(nodes, edges),
            scope={
                name: holds._asdict()
                for name, holds in scope(
                    self.model, self.values, nodes, edges, self.task, seed=self.config.seed
                ).items()
            },
            target_loss=self.criterion.target,
            target_accuracy=self.config.target_accuracy,
            history=self.history,
            prune=self.config.to_json(),
        )

    def _effects(self, nodes: list[Node]) -> tuple[Effect, ...]:
        """Of nodes on one another, where no weights lead from one to the other."""
        batch = self.judge.batch.rows(slice(N_EFFECTS))
        return tuple(effects_between(self.model, nodes, self.values, batch))

    def _facts(self, nodes: list[Node], edges: list[Edge], here: Score) -> dict[Node, NodeFacts]:
        return {
            node: NodeFacts(
                mean=_mean_of(self.values[node.at], node, self.judge.widths[node.at]),
                effect=self.judge.score(*without(node, nodes, edges)).loss - here.loss,
                model_loss=self.judge.score(AllBut(self.judge.widths, [node]), "all").loss,
            )
            for node in nodes
        }

    def _held_out(self, nodes: list[Node], edges: list[Edge]) -> dict[str, float]:
        """Scores on test prompts, of the circuit (calibrated by the validation prompts, where so) and the model."""
        test, own_scale = self.judge.test, self.judge.own_scale(nodes, edges)
        scale = own_scale if self.criterion.calibrated else 1.0
        margin, full = test.margins(nodes, edges), test.full_margins
        score, own = score_margins(margin * scale), score_margins(full)
        same, asked = score_against(margin, full), self.judge.score_of(test, margin, scale)
        return {
            "criterion_loss": self.judge.hardest(test, asked, nodes, edges, scale).loss,
            "task_loss": score.loss,
            "task_accuracy": score.accuracy,
            "uncalibrated_task_loss": score_margins(margin).loss,
            "calibrated_task_loss": score_margins(margin * own_scale).loss,
            "logit_scale": scale,
            "margin_error": float(margin_error(margin, full)),
            "margin_ratio": margin_ratio(margin, full),
            "margin_correlation": margin_correlation(margin, full, test.targets.answer),
            "kl_to_model": same.loss,
            "agreement_with_model": same.accuracy,
            "adversarial_loss": self.judge.under_attack(test, nodes, edges, scale).loss,
            "stochastic_loss": self.judge.at_random(test, nodes, edges, scale).loss,
            "full_task_loss": own.loss,
            "full_task_accuracy": own.accuracy,
        }


class NoCircuitError(ValueError):
    """Everything but the nodes that a circuit may not have misses the targets, so no part of it could meet them."""

    def __init__(self, score: Score, asked: Criterion, n: int) -> None:
        super().__init__(
            f"without: all nodes but these {n} have loss {score.loss:.3g} (accuracy {score.accuracy:.3f}) on "
            f"{asked.task!r}; expected at most {asked.aim:g} and at least {asked.target_accuracy}. Allow some of "
            "them, or relax the targets."
        )
        self.score = score


def _check_solved(judge: Evaluator) -> None:
    full, asked = score_margins(judge.full_margins), judge.criterion
    nats = asked.target if asked.objective == "task" else TARGETS["task"]
    if full.loss > nats or full.accuracy < asked.target_accuracy:
        raise UnsolvedError(asked.task, full, nats, asked.target_accuracy)


def _allowed(site: Site, width: int, barred: set[int]) -> Sequence[Node]:
    """The nodes of a site, without those that no circuit may have."""
    return [Node.of(site, i) for i in range(width) if i not in barred] if barred else NodesOf(site, width)


def _mean_of(values: Tensor, node: Node, width: int) -> float:
    """What a node is held at, a mean over places; nan for a head, which is held at one number a channel."""
    own = numbers_of(values, node, width)
    return float(own.mean()) if own.shape[-1] == 1 else math.nan


def _last(way: Sequence[Sequence], solved: Callable[[list], Score | None]) -> list:
    """The last set along the way that meets the target; empty where none does."""
    sets = (list(ranked) for ranked in reversed(way) if len(ranked))
    return next((ranked for ranked in sets if solved(ranked)), [])
