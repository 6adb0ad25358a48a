"""Circuits side by side: what they share, and what a circuit does for other tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from circuits.circuit.circuit import Circuit
from circuits.circuit.criterion import Criterion
from circuits.circuit.masked import check_belongs, run_circuit
from circuits.circuit.score import check_task, margins, score_margins, task_score
from circuits.model.kinds import of_ours
from circuits.model.transformer import SparseTransformer
from circuits.settings import Count, Seed, checked
from circuits.views import Plotted
from tasks import Task


def union(first: Circuit, second: Circuit) -> Circuit:
    """Every node and edge of either; ablation values are the first's.

    Raises ValueError when the circuits are of different models or ablations.

    Examples:
        >>> circuit = circuits.load("quotes-128").circuit
        >>> circuits.circuit.union(circuit, circuit).edges == circuit.edges
        True
    """
    return _combined(
        first,
        second,
        sign="|",
        nodes=(*first.nodes, *second.nodes),
        edges=(*first.edges, *second.edges),
        io_edges=(*first.io_edges, *second.io_edges),
    )


def intersection(first: Circuit, second: Circuit) -> Circuit:
    """The nodes and edges of both; ablation values are the first's.

    Raises ValueError when the circuits are of different models or ablations.

    Examples:
        >>> circuit = circuits.load("quotes-128").circuit
        >>> circuits.circuit.intersection(circuit, circuit).n_nodes == circuit.n_nodes
        True
    """
    return _combined(
        first,
        second,
        sign="&",
        nodes=tuple(set(first.nodes) & set(second.nodes)),
        edges=tuple(set(first.edges) & set(second.edges)),
        io_edges=tuple(set(first.io_edges) & set(second.io_edges)),
    )


def difference(first: Circuit, second: Circuit) -> Circuit:
    """The nodes of the first that the second lacks, and the first's edges among them.

    Raises ValueError when the circuits are of different models or ablations.

    Examples:
        >>> circuit = circuits.load("quotes-128").circuit
        >>> circuits.circuit.difference(circuit, circuit).n_nodes
        0
    """
    nodes = set(first.nodes) - set(second.nodes)
    return _combined(
        first,
        second,
        sign="-",
        nodes=tuple(nodes),
        edges=tuple(e for e in first.edges if e.source in nodes and e.target in nodes),
        io_edges=tuple(io for io in first.io_edges if io.node in nodes),
    )


def overlap(first: Circuit, second: Circuit) -> dict[str, float]:
    """Shared parts over all parts, for nodes and for edges (two empty sets: 1).

    Raises ValueError when the circuits are of different models or ablations.

    Examples:
        >>> circuit = circuits.load("quotes-128").circuit
        >>> circuits.circuit.overlap(circuit, circuit)
        {'nodes': 1.0, 'edges': 1.0}
    """
    _check_pair(first, second)
    ends = [{(e.source, e.target) for e in circuit.edges} for circuit in (first, second)]
    return {
        "nodes": _jaccard(set(first.nodes), set(second.nodes)),
        "edges": _jaccard(*ends),
    }


@dataclass(frozen=True, kw_only=True)
class TransplantTable(Plotted):
    """Each circuit on each task."""

    circuits: tuple[str, ...]
    "Names of the circuits, one to a row."
    tasks: tuple[str, ...]
    "Names of the tasks, one to a column."
    loss: tuple[tuple[float, ...], ...]
    "Task loss in nats (two-way) of each circuit on each task."
    accuracy: tuple[tuple[float, ...], ...]
    "Accuracy of each circuit on each task."
    full_loss: tuple[float, ...]
    "Task loss of the whole model on each task."
    overlap: tuple[tuple[float, ...], ...]
    "Overlap of nodes of each circuit with each circuit."

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            name: list(map(list, value)) if name in ("loss", "accuracy", "overlap") else list(value)
            for name, value in vars(self).items()
        }

    def __str__(self) -> str:
        width = max(len(name) for name in ("circuit", "whole model", *self.circuits)) + 2
        rows = [("circuit", self.tasks), *zip(self.circuits, map(_numbers, self.loss), strict=True)]
        rows.append(("whole model", _numbers(self.full_loss)))
        return "\n".join(
            name.ljust(width) + "".join(cell.rjust(14) for cell in cells) for name, cells in rows
        )


@of_ours
def transplant(
    model: SparseTransformer,
    circuits: Mapping[str, Circuit],
    tasks: Mapping[str, Task],
    *,
    n_pairs: int = 128,
    seed: int = 0,
) -> TransplantTable:
    """Run each circuit on each task's test prompts: low loss off the diagonal means a shared mechanism.

    Raises ValueError when there is no circuit or task, or when one does not belong to the model.

    Examples:
        >>> found = circuits.load("mini-python")
        >>> named = {task: tasks.load_task(task) for task in found.circuits}
        >>> table = circuits.circuit.transplant(found.model, found.circuits, named, n_pairs=32)
        >>> table.loss[0][0] < table.loss[0][1]
        True
    """
    n_pairs, seed = checked("n_pairs", n_pairs, Count), checked("seed", seed, Seed)
    if not circuits or not tasks:
        raise ValueError(
            f"circuits, tasks: got {len(circuits)} and {len(tasks)}; expected at least one of each."
        )
    for circuit in circuits.values():
        check_belongs(model, circuit)
    for task in tasks.values():
        check_task(model, task)
    batches = [task.batch(n_pairs, split="test", seed=seed) for task in tasks.values()]
    scores = []
    for circuit in circuits.values():
        row = []
        for targets in (batch.tokens_and_targets() for batch in batches):
            with torch.no_grad():
                row.append(score_margins(margins(run_circuit(model, circuit, targets.tokens), targets)))
        scores.append(row)
    return TransplantTable(
        circuits=tuple(circuits),
        tasks=tuple(tasks),
        loss=tuple(tuple(score.loss for score in row) for row in scores),
        accuracy=tuple(tuple(score.accuracy for score in row) for row in scores),
        full_loss=tuple(task_score(model, batch).loss for batch in batches),
        overlap=overlap_matrix(list(circuits.values())),
    )


def overlap_matrix(circuits: Sequence[Circuit]) -> tuple[tuple[float, ...], ...]:
    """Overlap of nodes of each circuit with each; ones on the diagonal.

    Examples:
        >>> found = circuits.load("mini-python").circuits
        >>> matrix = circuits.circuit.overlap_matrix([found["quotes"], found["brackets"]])
        >>> matrix[0][0], matrix[0][1] == matrix[1][0] < 1
        (1.0, True)
    """
    return tuple(tuple(overlap(a, b)["nodes"] for b in circuits) for a in circuits)


def _combined(first: Circuit, second: Circuit, *, sign: str, **parts: Any) -> Circuit:
    _check_pair(first, second)
    facts = {node: fact for node, fact in first.facts.items() if node in set(parts["nodes"])}
    return replace(first, criterion=_joint(first, second, sign), facts=facts, metrics={}, **parts)


def _joint(first: Circuit, second: Circuit, sign: str) -> Criterion:
    """What both circuits were asked to do; where only the task differs, a task that is called after both.

    Prompts may be drawn by other seeds: the first's stay.
    """
    one, other = first.criterion, replace(second.criterion, seed=first.criterion.seed)
    if one == other:
        return one
    name = one.task if one.task == other.task else f"{one.task} {sign} {other.task}"
    both = [replace(criterion, task=name, task_options=None) for criterion in (one, other)]
    if both[0] != both[1]:
        raise ValueError(
            f"second: it is judged by {second.criterion}, the first by {first.criterion}; expected the same objective, "
            "targets and calibration. Give both one criterion: dataclasses.replace(circuit, criterion=...)."
        )
    return both[0]


def _check_pair(first: Circuit, second: Circuit) -> None:
    if first.model_hash != second.model_hash or first.ablation != second.ablation:
        raise ValueError(
            f"second: it belongs to model {second.model_hash} under {second.ablation} ablation, the first to "
            f"{first.model_hash} under {first.ablation}; expected the same. Prune both in one model, the same way."
        )


def _jaccard(a: set[Any], b: set[Any]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0


def _numbers(values: Sequence[float]) -> tuple[str, ...]:
    return tuple(f"{value:.3f}" for value in values)
