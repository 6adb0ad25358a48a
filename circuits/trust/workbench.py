"""What every check is made of: runs of the model with some nodes kept, and the judgement that pruning used."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.circuit.circuit import Circuit
from circuits.circuit.evaluator import Evaluator, Kept, MaskedModel
from circuits.circuit.masked import run_masked
from circuits.circuit.nodes import AllBut, Edge, Node
from circuits.circuit.score import Score, margins
from circuits.model.sites import Site
from circuits.model.subject import SparseSubject, Subject
from circuits.trust.config import TrustConfig
from circuits.trust.report import Entry
from tasks import Batch, Task
from tasks.base import Targets


class Bench(MaskedModel):
    """A circuit of a model on one batch of test prompts, clean ones first.

    Margins are as the masked model gives them. A loss or a score is that of the circuit's criterion: against the
    right answers, or against the whole model's.
    """

    model: Subject
    "The model that the circuit belongs to."

    def __init__(
        self,
        model: Subject,
        circuit: Circuit,
        task: Task,
        config: TrustConfig | None = None,
        others: Sequence[Circuit] = (),
        batch: Batch | None = None,
        text: Int[Tensor, "windows pos"] | None = None,
    ) -> None:
        """batch: prompts of your own, in place of the test prompts that the config asks for. text: training text."""
        self.text = text
        self.circuit, self.task, self.others = circuit, task, others
        self.config = config = config or TrustConfig()
        criterion = circuit.criterion
        if config.target_loss is not None:
            criterion = replace(criterion, target_loss=config.target_loss)
        if batch is None:
            batch = task.batch(config.n_pairs, split="test", seed=config.seed)
        super().__init__(model, {site: circuit.values[site] for site in circuit.sites}, batch)
        self.judge = Evaluator(model, task, criterion, self.values)

    @property
    def target(self) -> float:
        """Nats that the criterion allows."""
        return self.judge.criterion.target

    @cached_property
    def scale(self) -> float:
        """The circuit's calibration factor."""
        return self.judge.scale(*self.circuit_without())

    @cached_property
    def circuit_logits(self) -> Float[Tensor, "rows d_vocab"]:
        """Logits at the answer position with only the circuit kept."""
        return self.logits(*self.circuit_without())

    @cached_property
    def full_logits(self) -> Float[Tensor, "rows d_vocab"]:
        """Logits at the answer position of the whole model."""
        return self.logits(self.every, "all")

    @cached_property
    def empty_logits(self) -> Float[Tensor, "rows d_vocab"]:
        """Logits at the answer position with nothing kept."""
        return self.logits([], [])

    def score(self, nodes: Iterable[Node], edges: Kept, scale: float = 1.0) -> Score:
        """Score of a part of the model, by the criterion."""
        return self.judge.scored(self, nodes, edges, scale)

    def best_score(self, nodes: Iterable[Node], edges: Kept) -> Score:
        """Such a score after a calibration of these parts' own, where the criterion calibrates."""
        margin = self.margins(nodes, edges)
        return self.judge.score_of(self, margin, self.judge.fitted(margin))

    def circuit_margins(self, gone: Iterable[Node] = ()) -> Float[Tensor, " rows"]:
        """Margins of the circuit, less some nodes."""
        return self.margins(*self.circuit_without(gone))

    def circuit_without(self, gone: Iterable[Node] = ()) -> tuple[list[Node], list[Edge]]:
        """Nodes and edges of the circuit, less some nodes."""
        gone = set(gone)
        nodes = [node for node in self.circuit.nodes if node not in gone]
        edges = [e for e in self.circuit.edges if e.source not in gone and e.target not in gone]
        return nodes, edges

    def model_without(self, gone: Iterable[Node]) -> tuple[Sequence[Node], Kept]:
        """All nodes of the model, less some, with every weight."""
        return AllBut(self.widths, gone), "all"

    def random_like(self, rng: random.Random, *, outside: bool) -> list[Node]:
        """As many nodes at each site as the circuit has; `outside`: none of the circuit's own, where possible."""
        drawn: list[Node] = []
        by_site: dict[Site, list[Node]] = {}
        for node in self.circuit.nodes:
            by_site.setdefault(node.at, []).append(node)
        for site, own in by_site.items():
            pool = [Node.of(site, i) for i in range(self.widths[site])]
            others = [node for node in pool if node not in own]
            pool = others if outside and len(others) >= len(own) else pool
            drawn += rng.sample(pool, len(own))
        return drawn

    def alike(self, rng: random.Random) -> list[Node]:
        """For each node of the circuit another of its site, drawn among those with as many and as large weights.

        Where no weights lead from node to node, among all of its site.
        """
        if not isinstance(self.model, SparseSubject):
            return self.random_like(rng, outside=True)
        drawn: list[Node] = []
        own = set(self.circuit.nodes)
        for node in self.circuit.nodes:
            pool = [other for other in self._by_likeness(node) if other not in own and other not in drawn]
            drawn += rng.sample(pool[: max(N_ALIKE, len(pool) // 10)], 1) if pool else []
        return drawn

    def _by_likeness(self, node: Node) -> list[Node]:
        """Every other node of the site, those first that are most like this one in number and size of weights."""
        looks = self._looks[node.at]
        far = (looks - looks[node.index]).square().sum(dim=1)
        return [Node.of(node.at, i) for i in far.argsort(stable=True).tolist() if i != node.index]

    @cached_property
    def _looks(self) -> dict[Site, Float[Tensor, "width looks"]]:
        """For each coordinate, on a logarithmic scale: nonzero weights into and out of it, and their mean sizes."""
        assert isinstance(self.model, SparseSubject), "only weights that lead from node to node have looks"
        found = {site: torch.zeros(width, 4) for site, width in self.widths.items()}
        for at in self.model.weights_among(self.widths):
            weight = self.model.linear(*at).weight.detach().cpu().float().abs()
            for site, axis, column in ((at.source, 1, 0), (at.target, 0, 2)):
                number = (weight > 0).sum(dim=axis)
                found[site][:, column] += number.log1p()
                found[site][:, column + 1] += (weight.sum(dim=axis) / number.clamp_min(1)).log1p()
        return found

    def patched_margins(
        self, nodes: Iterable[Node], *, in_circuit: bool, share: float = 1.0
    ) -> Float[Tensor, " pairs"]:
        """Margins on clean prompts while nodes take their values from the corrupted prompt of the pair.

        share: how far towards those values, 1 = all the way.
        """
        n, masks, edges = self.n_pairs, None, None
        if in_circuit:
            masks = self.node_masks(self.circuit.nodes)
            edges = self.edge_masks(self.circuit.edges) if isinstance(self.model, SparseSubject) else None

        # Hooks run in the order in which they were added, so the mask of a kept node passes the swapped value.
        hooks = [
            (self.model.hook_name(node.at), partial(_swap, node.index, self.widths[node.at], share))
            for node in nodes
        ]
        with torch.no_grad(), self.model.hooks(fwd_hooks=hooks):
            logits = run_masked(self.model, self.targets.tokens, masks or {}, self.values, edges)
        clean = Targets(*(part[:n] for part in self.targets))
        return margins(logits[:n], clean)


def _swap(index: int, width: int, share: float, value: Tensor, hook: Any) -> Tensor:
    """A node's value on the clean prompts, the first half of the rows, moved by `share` towards the corrupted ones."""
    flat = value.flatten(2).clone()
    clean, corrupted = flat.unflatten(2, (width, -1))[:, :, index].chunk(2)
    clean += share * (corrupted - clean)
    return flat.view(value.shape)


N_ALIKE = 8
"""Nodes, at least, among which one like another is drawn."""
Check = Callable[[Bench, random.Random], Sequence[Entry]]
"""A check: entries of the report, from a bench and a stream of random numbers that is the check's own."""


def greedy(candidates: Sequence[Node], gain: Callable[[list[Node]], float], steps: int) -> list[Node]:
    """Add, one by one, the candidate with the greatest gain while the gain grows."""
    chosen: list[Node] = []
    best = 0.0
    for _ in range(steps):
        scored = [(gain([*chosen, c]), c) for c in candidates if c not in chosen]
        if not scored or max(scored)[0] <= best:
            break
        best, node = max(scored)
        chosen.append(node)
    return chosen
