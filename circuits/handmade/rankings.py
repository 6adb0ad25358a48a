"""Other ways to find a circuit, behind one signature: `(model, task) -> nodes, most important first`."""

from collections.abc import Callable
from functools import partial

from circuits.circuit.nodes import Node
from circuits.model.transformer import SparseTransformer
from circuits.ranking import rank
from tasks import Task

NodeRanking = Callable[[SparseTransformer, Task], list[Node]]
NAMES = ("single ablation", "attribution patching", "integrated gradients", "weight magnitude", "random")
"""The methods of `circuits.ranking` that proofs on known circuits compare pruning with."""


def nodes_by(method: str, model: SparseTransformer, task: Task) -> list[Node]:
    """Every node of a model, best first, by a method of `circuits.ranking.METHODS` that ranks nodes."""
    return rank(model, task, method=method).nodes()


weight_magnitude: NodeRanking = partial(nodes_by, "weight magnitude")
"""By the sum of |weight| over everything that the node reads and writes."""
METHODS: dict[str, NodeRanking] = {name: partial(nodes_by, name) for name in NAMES}
"""Every ranking by its name."""
