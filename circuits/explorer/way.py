"""Size against loss: what was open while gates closed, and what is left when a circuit is closed further."""

from collections.abc import Sequence
from typing import Any

from circuits.circuit.circuit import Circuit
from circuits.circuit.nodes import Node, NodeFacts
from circuits.circuit.score import LOSS
from circuits.decompile.observe import Observed

MOST = 16
"""Sizes, each way, that a loss is told of."""


def closed_further(circuit: Circuit, seen: Observed) -> list[list[int | float]]:
    """[nodes kept, task loss in nats], from none to all: nodes close in the order of `by_need`, the least needed first.

    Losses are on the prompts of `seen`, with the circuit's own calibration.
    """
    ranked = by_need(circuit)
    return [[n, seen.loss(ranked[:n])] for n in spread(range(len(ranked) + 1))]


def by_need(circuit: Circuit) -> list[Node]:
    """The nodes of a circuit, the most needed first: by what ablating one alone does; unmeasured ones last."""
    nothing = NodeFacts(0.0, 0.0)

    def need(node: Node) -> float:
        effect = circuit.facts.get(node, nothing).effect
        return effect if effect == effect else 0.0

    return sorted(circuit.nodes, key=need, reverse=True)


def gates_closed(circuit: Circuit) -> dict[str, Any]:
    """The way that gates closed, as pruning wrote it down on its training prompts.

    `points` are [nodes open, loss] down to the circuit's number, sizes rising; `loss` says of which loss.
    """
    best: dict[int, float] = {}  # several starts come to the same number
    for row in circuit.history:
        n, loss = int(row["n_open"]), float(row["task_loss"])
        best[n] = min(loss, best.get(n, loss))
    sizes = spread(sorted(n for n in best if n > circuit.n_nodes))
    return {"loss": LOSS[circuit.criterion.objective], "points": [[n, best[n]] for n in sizes]}


def spread(sizes: Sequence[int]) -> list[int]:
    """At most `MOST` of some rising sizes, as evenly as they come, with first and last."""
    if len(sizes) <= MOST:
        return list(sizes)
    return [sizes[round(i * (len(sizes) - 1) / (MOST - 1))] for i in range(MOST)]
