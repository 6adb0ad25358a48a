"""Whether a circuit is the only one: what the model cannot do without, and whether another circuit avoids the rest."""

import math
from dataclasses import dataclass
from typing import Literal

from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import check_belongs
from circuits.circuit.nodes import Node
from circuits.model.kinds import of_ours
from circuits.model.transformer import SparseTransformer
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.pruning.search import NoCircuitError
from tasks import Corpus, Task

Situation = Literal["unique", "redundant", "distributed"]
"""How a model holds a task, as far as one circuit and one search for a rival can tell.

unique: the model cannot do without any node of the circuit, each alone, or those that it cannot do without are enough
by themselves. redundant: a rival meets the same criterion without any other node of the circuit, by nodes of its own,
so the model has that part more than once. distributed: neither; single nodes can go, but not all of them, as where a
value is spread over many."""


@dataclass(frozen=True, kw_only=True)
class Rivals:
    """A circuit, what of it the model cannot do without, and a circuit that avoids the rest, if one was found."""

    circuit: Circuit
    "The circuit that was asked about."
    core: tuple[Node, ...]
    "Its nodes that the model cannot do without, each alone."
    rival: Circuit | None
    "A circuit that meets the same criterion without any other node of it; None: there is none, or nothing to avoid."
    loss_without: float | None
    "Loss of everything but those other nodes together, where that is too great for any rival; else None."

    @property
    def idle(self) -> tuple[Node, ...]:
        """Nodes of the circuit that do nothing together, as two that cancel, though none of them can go alone: the rest
        is enough, and is the rival."""
        if self.rival is None or not set(self.rival.nodes) <= set(self.core):
            return ()
        return tuple(node for node in self.circuit.nodes if node not in self.rival.nodes)

    @property
    def situation(self) -> Situation:
        """How the model holds the task."""
        if len(self.core) == self.circuit.n_nodes or self.idle:
            return "unique"
        return "distributed" if self.rival is None else "redundant"

    @property
    def verdict(self) -> str:
        """In a sentence."""
        n, of = self.circuit.n_nodes, f"{len(self.core)} of {self.circuit.n_nodes} nodes are core"
        if self.idle:
            assert self.rival is not None, "what is enough without the idle nodes is the rival"
            return (
                f"Unique: the model needs each of {self.rival.n_nodes} nodes, and they are enough; the other "
                f"{len(self.idle)} do nothing together, so that the rival is the better circuit."
            )
        if self.situation == "unique":
            return f"Unique: the model needs each of the {n} nodes."
        if self.rival is not None:
            return (
                f"Redundant: {of}, and another circuit of {self.rival.n_nodes} nodes does the task without the other "
                f"{n - len(self.core)}."
            )
        return f"Distributed: {of}; of the other {n - len(self.core)} any single one can go, but not all of them."


@of_ours
def rivals(
    model: SparseTransformer,
    task: Task,
    circuit: Circuit,
    *,
    config: PruneConfig | None = None,
    corpus: Corpus | None = None,
    progress: bool = True,
) -> Rivals:
    """Look for a circuit that avoids all of this one but its core, under the same criterion.

    config: how to search (default: as the circuit says it was found). Raises ValueError for a circuit of another model
    or task, or one whose nodes were never measured in the model, as in files from before that was done.

    Examples:
        >>> found = circuits.load("quotes-handmade")
        >>> quick = circuits.PruneConfig(starts=1, steps=60, n_eval=32, n_test=32)
        >>> circuit = circuits.prune(found.model, found.task, quick, corpus=found.corpus, progress=False)
        >>> other = circuits.pruning.rivals(found.model, found.task, circuit, corpus=found.corpus, progress=False)
        >>> other.situation
        'unique'
    """
    check_belongs(model, circuit)
    circuit.criterion.check(task)
    if any(node not in circuit.facts or math.isnan(circuit.facts[node].model_loss) for node in circuit.nodes):
        raise ValueError(
            "circuit: the loss of the model without each of its nodes is not among its facts; expected those that "
            "pruning measures. Prune again."
        )
    core = circuit.core
    loose = [node for node in circuit.nodes if node not in core]
    if not loose:
        return Rivals(circuit=circuit, core=core, rival=None, loss_without=None)
    try:
        rival = prune(
            model, task, config or _found_by(circuit), corpus=corpus, without=loose, progress=progress
        )
    except NoCircuitError as error:
        return Rivals(circuit=circuit, core=core, rival=None, loss_without=error.score.loss)
    return Rivals(circuit=circuit, core=core, rival=rival, loss_without=None)


def _found_by(circuit: Circuit) -> PruneConfig:
    """The settings that found a circuit; those of its criterion where it does not say."""
    if "prune" in circuit.metrics:
        return PruneConfig.from_json(circuit.metrics["prune"])
    return PruneConfig.under(circuit.criterion)
