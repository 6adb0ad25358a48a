"""Other ways to find a circuit, behind one signature: `(model, task) -> nodes, most important first`."""

from collections.abc import Callable
from functools import partial

import torch

from circuits.circuit.nodes import Node
from circuits.model.sites import WeightAt
from circuits.model.transformer import SparseTransformer
from circuits.ranking import Ranking, rank
from tasks import Task

NodeRanking = Callable[[SparseTransformer, Task], list[Node]]
NAMES = (
    *("single ablation", "attribution patching", "integrated gradients", "EAP-IG", "weight magnitude"),
    "random",
)
"""The methods of `circuits.ranking` that proofs on known circuits compare pruning with."""


def nodes_by(method: str, model: SparseTransformer, task: Task) -> list[Node]:
    """Every node of a model, best first, by a method of `circuits.ranking.METHODS`.

    A node of a ranking of edges has the sum over the edges that it reads and writes.
    """
    ranking = rank(model, task, method=method)
    return (ranking if ranking.kind == "nodes" else _of_ends(model, ranking)).nodes()


def _of_ends(model: SparseTransformer, ranking: Ranking) -> Ranking:
    """A ranking of edges as one of nodes: both ends of an edge get its score."""
    scores = {site: torch.zeros(width) for site, width in model.widths.items()}
    for at, matrix in ranking.scores.items():
        assert isinstance(at, WeightAt)
        found = matrix.clamp(min=0)  # minus infinity where there is no edge
        scores[at.source] += found.sum(1)
        scores[at.target] += found.sum(0)
    return Ranking(method=ranking.method, kind="nodes", scores=scores)


weight_magnitude: NodeRanking = partial(nodes_by, "weight magnitude")
"""By the sum of |weight| over everything that the node reads and writes."""
METHODS: dict[str, NodeRanking] = {name: partial(nodes_by, name) for name in NAMES}
"""Every ranking by its name."""
