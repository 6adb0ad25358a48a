"""Does pruning return just the circuit that was laid, is its situation named, and how well does a ranking find it?

Where two tasks share parts, both circuits are asked for, and what they have in common.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from circuits.circuit.circuit import Circuit
from circuits.circuit.compare import intersection
from circuits.circuit.nodes import Node
from circuits.handmade.catalogue import Handmade
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.pruning.redundancy import Situation, rivals


class Recovery(NamedTuple):
    """What pruning made of one model."""

    exact: bool
    """All true nodes and edges were found, nothing else, and the situation was named; where the model has parts more
    than once: nothing else, no node was called core that is not, and the situation was named."""
    missing: list[str]
    """True nodes and edges that were not found."""
    extra: list[str]
    """Nodes and edges that are no part of the truth."""
    seconds: float
    """Time that pruning took."""
    situation: Situation
    """What `circuits.pruning.rivals` calls how the model holds the task."""
    core_right: bool
    """The nodes that it calls core are those that the model cannot do without."""
    circuit: Circuit | None = None
    """What pruning returned."""
    shared: "Shared | None" = None
    """What it found for a second task that shares parts with the first; `exact` then asks for this too."""


class Shared(NamedTuple):
    """Two tasks of one model, and what their circuits have in common."""

    second: Recovery
    """What pruning made of the second task."""
    nodes: tuple[Node, ...]
    """Nodes that are in both circuits that were found."""
    true: tuple[Node, ...]
    """Nodes that are in both true circuits."""


def recover(made: Handmade, seed: int = 0, config: PruneConfig | None = None) -> Recovery:
    """Prune a hand-made model, at the default settings unless told, and hold the result against the truth.

    Examples:
        >>> quick = circuits.PruneConfig(starts=1, steps=60, n_eval=32, n_test=32)
        >>> circuits.handmade.recover(circuits.handmade.quotes(), config=quick).exact
        True
    """
    first = _recovered(made, seed, config)
    if made.other is None:
        return first
    second = _recovered(made.turned, seed, config)
    assert first.circuit is not None, "what was recovered holds the circuit that was found"
    assert second.circuit is not None, "what was recovered holds the circuit that was found"
    shared = Shared(
        second=second,
        nodes=intersection(first.circuit, second.circuit).nodes,
        true=intersection(made.circuit, made.other).nodes,
    )
    exact = first.exact and second.exact and shared.nodes == shared.true
    return first._replace(exact=exact, shared=shared)


def _recovered(made: Handmade, seed: int, config: PruneConfig | None) -> Recovery:
    """One task of a model pruned, and held against its true circuit."""
    started = time.perf_counter()
    found = prune(
        made.model, made.task, replace(config or PruneConfig(), seed=seed), corpus=made.corpus, progress=False
    )
    seconds = time.perf_counter() - started
    true_parts, found_parts = _parts(made.circuit), _parts(found)
    told = rivals(made.model, made.task, found, corpus=made.corpus, progress=False)
    enough = found_parts <= true_parts if made.loose else found_parts == true_parts
    return Recovery(
        exact=enough and set(found.core) <= set(made.core) and told.situation == made.situation,
        missing=sorted(true_parts - found_parts),
        extra=sorted(found_parts - true_parts),
        seconds=seconds,
        situation=told.situation,
        core_right=set(found.core) == set(made.core),
        circuit=found,
    )


def rank_metrics(ranking: Sequence[Node], circuit: Circuit) -> dict[str, float]:
    """How well a ranking finds the n nodes of a circuit.

    precision: share of true nodes among the first n; recall: share of the true nodes that are among the first
    2 n; auroc: chance that a true node ranks above another (0.5 = at random). Raises ValueError when the
    ranking does not hold all nodes of the circuit.

    Examples:
        >>> found = circuits.load("quotes-handmade")
        >>> ranking = circuits.ranking.rank(found.model, found.task, method="attribution patching")
        >>> sorted(circuits.handmade.rank_metrics(ranking.nodes(), found.circuit))
        ['auroc', 'precision', 'recall']
    """
    true, n = set(circuit.nodes), circuit.n_nodes
    hits = [node in true for node in ranking]
    if sum(hits) != n or n == 0 or n == len(hits):
        raise ValueError(
            f"ranking: holds {sum(hits)} of the circuit's {n} nodes among {len(hits)}; expected every node of "
            "the model once, and a circuit that is neither empty nor the whole model."
        )
    above, wins = 0, 0
    for hit in hits:
        above += hit
        wins += 0 if hit else above
    return {
        "precision": sum(hits[:n]) / n,
        "recall": sum(hits[: 2 * n]) / n,
        "auroc": wins / (n * (len(hits) - n)),
    }


def _parts(circuit: Circuit) -> set[str]:
    return {str(node) for node in circuit.nodes} | {f"{e.source} > {e.target}" for e in circuit.edges}
