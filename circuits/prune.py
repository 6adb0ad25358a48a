"""Pruning: from a model and a task to the smallest circuit that still solves the task.

1. Learn gates on all coordinates of all sites: task loss + penalty * number of open gates. Along the way that
   they close, take the smallest open set that meets the target.
2. Rank it by gate (ties, by measured importance) and drop groups of the lowest rank, halving their size.
3. Drop nodes, then edges, while the rest meets the target, until no single one can go (1-minimal).
4. Do so from several starts, and keep the smallest circuit.
Gates learn on training prompts; steps 2 and 3 look at validation prompts; the reported score is on test prompts.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from circuits.ablation import ablation_values, run_circuit, run_masked
from circuits.circuit import WEIGHTS, Circuit, Edge, IOEdge, Node, NodeFacts, Site
from circuits.compute import frozen
from circuits.gates import Gates
from circuits.judge import Judge
from circuits.model import SparseTransformer, check_keys, with_tuples
from circuits.score import Score, check_task, margins, score_margins, task_score, two_way_loss
from tasks import Batch, Corpus, Task, Tokenizer, load_corpus


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Everything that decides a pruning run."""

    target_loss: float = 0.15
    "Task loss that the circuit may reach at most, in nats (two-way; chance is 0.693)."
    target_accuracy: float = 0.985
    "Fraction of prompts that the circuit must get right at least; a calibrated loss alone would forgive errors."
    starts: int = 4
    "Independent runs of gate training and dropping, from other random gates and prompts; the smallest result wins."
    steps: int = 150
    "Steps of gate training in each."
    batch_size: int = 64
    "Prompt pairs per step."
    lr: float = 3e-2
    "Peak learning rate of the gates; falls linearly to 0."
    betas: tuple[float, float] = (0.9, 0.95)
    "AdamW's averaging constants."
    weight_decay: float = 1e-3
    "AdamW's weight decay."
    penalty: float = 1e-2
    "Nats of task loss that one open gate is worth; rises from 0 over the first half, so that gates close one by one."
    calibrate: bool = True
    "Score with the logits times one fitted factor: a circuit may hold the right margins at the wrong size."
    ablation: Literal["mean", "zero"] = "mean"
    "What a closed coordinate is replaced by; means are over batch and positions of training text."
    n_mean: int = 512
    "Sequences of training text that the means are taken over."
    n_eval: int = 512
    "Validation prompt pairs that decide what is dropped."
    n_test: int = 1024
    "Test prompt pairs that the final score is measured on."
    prune_edges: bool = True
    "Drop edges too; otherwise every nonzero weight between two kept nodes is an edge."
    seed: int = 0
    "Decides gates and prompts."

    def __post_init__(self) -> None:
        for name in ("starts", "steps", "batch_size", "n_mean", "n_eval", "n_test"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}; expected a whole number of at least 1."
                )
        for name in ("target_loss", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: got {getattr(self, name)!r}; expected a positive number.")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "PruneConfig":
        """The inverse of `to_json`. Raises ValueError on an unknown key."""
        return cls(**with_tuples(check_keys(cls, data), "betas"))


def prune(
    model: SparseTransformer,
    task: Task,
    config: PruneConfig | None = None,
    *,
    corpus: Corpus | None = None,
    progress: bool = True,
) -> Circuit:
    """The smallest circuit found that solves `task` within `config.target_loss`; 1-minimal in nodes and edges.

    corpus: the training text for the ablation means (default: mini-Python). Raises ValueError when the task
    does not fit the model, or the whole model misses the target.
    """
    config = config or PruneConfig()
    check_task(model, task)
    _check_solved(model, task, config)
    started = time.perf_counter()
    search = _Search(model, task, config, corpus or load_corpus("mini"))
    with frozen(model), _progress_bar(config, progress) as show:
        circuit = search.circuit(*search.best(show))
    return circuit.with_metrics(seconds=time.perf_counter() - started)


def edges_between(model: SparseTransformer, nodes: Sequence[Node]) -> list[Edge]:
    """Every nonzero weight that runs between two of the nodes, and every q-k pair."""
    edges = []
    by_site: dict[Site, list[Node]] = {}
    for node in nodes:
        by_site.setdefault(node.at, []).append(node)
    for layer in range(model.config.n_layers):
        for name, (source, target) in WEIGHTS.items():
            rows, columns = by_site.get(Site(layer, source), []), by_site.get(Site(layer, target), [])
            weight = model.linear(layer, name).weight.detach()
            block = weight[[a.index for a in rows]][:, [b.index for b in columns]]
            edges += [Edge(rows[i], columns[j], float(block[i, j])) for i, j in block.nonzero().tolist()]
        keys = {node.index: node for node in by_site.get(Site(layer, "attn_k"), [])}
        for query in by_site.get(Site(layer, "attn_q"), []):
            if query.index in keys:
                edges.append(Edge(keys[query.index], query, model.config.d_head**-0.5))
    return edges


def io_edges(
    model: SparseTransformer, nodes: Sequence[Node], batch: Batch, tokenizer: Tokenizer
) -> list[IOEdge]:
    """Embedding and unembedding nonzeros that tie the task's tokens to nodes on the residual stream.

    The task's tokens: those in which clean and corrupted prompts differ (embedding), answers and foils
    (unembedding).
    """
    differ = batch.clean != batch.corrupt
    told_apart = set(batch.clean[differ].tolist()) | set(batch.corrupt[differ].tolist())
    answers = set(batch.answer.tolist()) | set(batch.foil.tolist())
    name = tokenizer.token
    found = []
    for node in nodes:
        if node.site in ("attn_in", "mlp_in"):
            column = model.W_E.detach()[:, node.index]
            found += [IOEdge("embed", name(t), node, float(column[t])) for t in told_apart if column[t] != 0]
        elif node.site in ("attn_out", "mlp_out"):
            row = model.W_U.detach()[node.index]
            found += [IOEdge("unembed", name(t), node, float(row[t])) for t in answers if row[t] != 0]
    return found


def _check_solved(model: SparseTransformer, task: Task, config: PruneConfig) -> None:
    full = task_score(model, task.batch(config.n_eval, split="val", seed=config.seed))
    if full.loss > config.target_loss or full.accuracy < config.target_accuracy:
        raise ValueError(
            f"task: the whole model's loss on {task.name!r} is {full.loss:.3f} nats (accuracy "
            f"{full.accuracy:.3f}); expected at most target_loss = {config.target_loss} and at least "
            f"target_accuracy = {config.target_accuracy}. Train it longer, or relax the targets."
        )


class _Search:
    """One pruning run: the prompts it looks at, the values it ablates with, and its history."""

    def __init__(self, model: SparseTransformer, task: Task, config: PruneConfig, corpus: Corpus) -> None:
        self.model, self.task, self.config = model, task, config
        generator = torch.Generator().manual_seed(config.seed)
        text = corpus.windows(config.n_mean, model.config.n_ctx, split="train", generator=generator)
        self.values = ablation_values(model, text, config.ablation)
        self.batch = task.batch(config.n_eval, split="val", seed=config.seed)
        self.judge = Judge(
            model,
            self.batch,
            self.values,
            target_loss=config.target_loss,
            target_accuracy=config.target_accuracy,
            calibrate=config.calibrate,
        )
        self.history: list[dict[str, float]] = []

    def best(self, show: Callable[..., None]) -> tuple[list[Node], list[Edge]]:
        """The smallest 1-minimal nodes and edges over all starts.

        A start whose gates stayed open in much greater numbers than another's is not followed further.
        """
        starts = [self.nodes_by_gates(start, show) for start in range(self.config.starts)]
        fewest = min(map(len, starts))
        found = [self.drop(ranked, show) for ranked in starts if len(ranked) <= 3 * fewest]
        return min(found, key=lambda parts: len(parts[0]) + len(parts[1]))

    def drop(self, ranked: list[Node], show: Callable[..., None]) -> tuple[list[Node], list[Edge]]:
        """Drop nodes, then edges, until no single one can go: large groups of the lowest rank first."""
        show(stage="discretise", nodes=len(ranked))
        nodes = _without_most(ranked, ranked[::-1], self.judge.solved, finest=4)
        nodes = self.minimal_nodes(sorted(nodes), None, show)
        edges = edges_between(self.model, nodes)
        return self.minimal(nodes, edges, show) if self.config.prune_edges else (nodes, edges)

    def nodes_by_gates(self, start: int, show: Callable[..., None]) -> list[Node]:
        """Learn gates, and take the fewest open ones, along the way that they closed, that meet the target."""
        for ranked in reversed(self._learn(start, show)):
            if self.judge.solved(ranked):
                return ranked
        return [Node(site.layer, site.name, i) for site, v in self.values.items() for i in range(len(v))]

    def _learn(self, start: int, show: Callable[..., None]) -> list[list[Node]]:
        """Train gates; returns the open nodes at each tenth that closed, from all to few, best first.

        Ranked by gate, and where gates tie by importance: the mean |d loss / d mask| so far.
        """
        config, seed = self.config, self.config.seed + 1000 * start
        shapes = {site: tuple(value.shape) for site, value in self.values.items()}
        gates = Gates(shapes, seed=seed, like=self.model.W_E)
        log_scale = torch.zeros((), requires_grad=config.calibrate)
        groups: list[dict[str, Any]] = [
            {"params": [*gates.parameters.values()]},
            {"params": [log_scale], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
        )
        pool = self.task.batch(16 * config.batch_size, split="train", seed=config.seed)
        generator = torch.Generator().manual_seed(seed)
        importance = {site: torch.zeros_like(gate) for site, gate in gates.parameters.items()}
        way: list[list[Node]] = []
        for step in range(config.steps):
            rows = torch.randint(len(pool), (config.batch_size,), generator=generator)
            targets = pool.rows(rows).tokens_and_targets()
            masks = gates.masks()
            for mask in masks.values():
                mask.retain_grad()
            logits = run_masked(self.model, targets.tokens, masks, self.values)
            margin = margins(logits, targets)
            task_loss = two_way_loss(margin * log_scale.exp())
            n_open = torch.stack([mask.sum() for mask in masks.values()]).sum()
            for group in optimizer.param_groups:
                group["lr"] = config.lr * (1 - step / config.steps)
            optimizer.zero_grad(set_to_none=True)
            penalty = config.penalty * min(1.0, 2 * step / config.steps)
            (task_loss + penalty * n_open).backward()
            for site, mask in masks.items():
                assert mask.grad is not None
                importance[site].lerp_((mask.grad - penalty).abs(), 0.05)
            if not way or n_open < min(0.9 * len(way[-1]), len(way[-1]) - 1):
                way.append(_ranked(gates, importance))
            optimizer.step()
            gates.clamp()
            if step % 20 == 0 or step == config.steps - 1:
                so_far = start * config.steps + step
                loss = float(task_loss.detach())
                self.history.append({"step": so_far, "task_loss": loss, "n_open": int(n_open)})
                done = so_far / (config.steps * config.starts)
                show(stage="gates", completed=done, nodes=int(n_open), loss=loss)
        return [*way, _ranked(gates, importance)]

    def minimal_nodes(
        self, nodes: list[Node], edges: list[Edge] | None, show: Callable[..., None]
    ) -> list[Node]:
        """Drop nodes, least needed first, until no single one can go."""

        def solved(kept: list[Node]) -> Score | None:
            return self.judge.solved(kept, None if edges is None else _among(edges, kept))

        return _minimal(nodes, solved, lambda n: show(stage="nodes", nodes=n))

    def minimal(
        self, nodes: list[Node], edges: list[Edge], show: Callable[..., None]
    ) -> tuple[list[Node], list[Edge]]:
        """Drop edges and the nodes that lost their use, until no single node and no single edge can go."""
        while True:
            # A q-k pair has no weight that could be cut: it stands as long as both of its channels do.
            pairs = [edge for edge in edges if _is_pair(edge)]
            weights = [edge for edge in edges if not _is_pair(edge)]
            weights = _minimal(
                weights, partial(self.judge.solved, nodes), lambda n: show(stage="edges", edges=n)
            )
            edges = sorted(weights + pairs)
            fewer = self.minimal_nodes(nodes, edges, show)
            if fewer == nodes:
                return nodes, edges
            nodes, edges = fewer, _among(edges, fewer)

    def circuit(self, nodes: list[Node], edges: list[Edge]) -> Circuit:
        """The result with its score on test prompts and each node's effect."""
        here = self.judge.score(nodes, edges)
        without = {node: self.judge.score(*_without(node, nodes, edges)) for node in nodes}
        facts = {
            node: NodeFacts(mean=float(self.values[node.at][node.index]), effect=score.loss - here.loss)
            for node, score in without.items()
        }
        spare = [
            e for e in edges if not _is_pair(e) and self.judge.solved(nodes, [x for x in edges if x != e])
        ]
        circuit = Circuit(
            nodes=tuple(nodes),
            edges=tuple(edges),
            io_edges=tuple(io_edges(self.model, nodes, self.batch, self.task.tokenizer)),
            widths=self.model.config.widths,
            n_layers=self.model.config.n_layers,
            d_head=self.model.config.d_head,
            task=self.task.name,
            model_hash=self.model.fingerprint(),
            ablation=self.config.ablation,
            values={site: value.cpu() for site, value in self.values.items()},
            facts=facts,
        )
        return circuit.with_metrics(
            **self._held_out(circuit, self.judge.scale(self.judge.margins(nodes, edges))),
            val_task_loss=here.loss,
            val_task_accuracy=here.accuracy,
            one_minimal=not spare and not any(map(self.judge.meets, without.values())),
            target_loss=self.config.target_loss,
            target_accuracy=self.config.target_accuracy,
            history=self.history,
            prune=self.config.to_json(),
        )

    def _held_out(self, circuit: Circuit, logit_scale: float) -> dict[str, float]:
        """Scores on test prompts, of the circuit (the calibration is that of the validation prompts) and the model."""
        test = self.task.batch(self.config.n_test, split="test", seed=self.config.seed)
        targets = test.tokens_and_targets()
        with torch.no_grad():
            margin = margins(run_circuit(self.model, circuit, targets.tokens), targets)
        score, full = score_margins(margin * logit_scale), task_score(self.model, test)
        return {
            "task_loss": score.loss,
            "task_accuracy": score.accuracy,
            "uncalibrated_task_loss": score_margins(margin).loss,
            "logit_scale": logit_scale,
            "full_task_loss": full.loss,
            "full_task_accuracy": full.accuracy,
        }


def _minimal(
    parts: list[Any], solved: Callable[[list[Any]], Score | None], show: Callable[[int], None]
) -> list[Any]:
    """Drop parts, cheapest first, while the rest meets the target; ends when no single one can go."""
    parts = list(parts)
    while True:
        without = {part: solved([p for p in parts if p != part]) for part in parts}
        losses = {part: score.loss for part, score in without.items() if score is not None}
        if not losses:
            return parts
        parts = _without_most(parts, sorted(losses, key=lambda part: (losses[part], part)), solved)
        show(len(parts))


def _without_most(
    parts: list[Any], free: list[Any], solved: Callable[[list[Any]], Score | None], finest: int = 1
) -> list[Any]:
    """The parts without all of `free` if the rest meets the target, else half by half, down to `finest` parts."""
    gone = set(free)
    rest = [part for part in parts if part not in gone]
    if solved(rest):
        return rest
    if len(free) <= finest:
        return parts
    half = len(free) // 2
    parts = _without_most(parts, free[:half], solved, finest)
    return _without_most(parts, free[half:], solved, finest)


def _ranked(gates: Gates[Site], importance: dict[Site, Tensor]) -> list[Node]:
    """The open nodes, by gate, then by importance where gates tie (as they do at the clamp)."""
    rows = [
        (value, weight, Node(site.layer, site.name, i))
        for site, gate in gates.parameters.items()
        for i, (value, weight) in enumerate(zip(gate.tolist(), importance[site].tolist(), strict=True))
        if value > 0
    ]
    return [node for _, _, node in sorted(rows, key=lambda row: (-row[0], -row[1], row[2]))]


def _is_pair(edge: Edge) -> bool:
    return edge.source.site == "attn_k"


def _among(edges: Sequence[Edge], nodes: Sequence[Node]) -> list[Edge]:
    kept = set(nodes)
    return [edge for edge in edges if edge.source in kept and edge.target in kept]


def _without(node: Node, nodes: Sequence[Node], edges: Sequence[Edge]) -> tuple[list[Node], list[Edge]]:
    rest = [n for n in nodes if n != node]
    return rest, _among(edges, rest)


@contextmanager
def _progress_bar(config: PruneConfig, shown: bool) -> Iterator[Callable[..., None]]:
    columns = (
        TextColumn("prune {task.fields[stage]:<10}"),
        BarColumn(),
        TextColumn("nodes {task.fields[nodes]}  edges {task.fields[edges]}  loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, disable=not shown, console=Console(stderr=True)) as bar:
        line = bar.add_task("prune", total=1.0, stage="gates", nodes="-", edges="-", loss=float("nan"))
        yield lambda completed=None, **fields: bar.update(line, completed=completed, **fields)
