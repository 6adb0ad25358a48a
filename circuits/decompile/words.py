"""A circuit in words: what turns each node on, what it reads and writes, what breaks without it."""

from collections.abc import Mapping, Sequence

from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import check_belongs
from circuits.circuit.nodes import Node, without
from circuits.circuit.score import check_task
from circuits.decompile.links import Ends, node_ends
from circuits.decompile.observe import Observed
from circuits.decompile.text import one_line
from circuits.model.kinds import of_ours
from circuits.model.options import ONE_STACK
from circuits.model.transformer import SparseTransformer
from tasks import Task


@of_ours
def describe(model: SparseTransformer, circuit: Circuit, task: Task, *, n_pairs: int = 64) -> str:
    """The circuit in words: for each node what turns it on, what it reads and writes, what breaks without it.

    Losses are those of pruning: on its validation prompts, each calibrated for itself where the criterion calibrates.
    Raises ValueError when the circuit is of another model, or the task does not fit.

    Examples:
        >>> found = circuits.load("quotes-handmade")
        >>> print(circuits.decompile.describe(found.model, found.circuit, found.task).splitlines()[0])
        quotes: 8 nodes, 5 edges, task loss 0.000 nats.
    """
    ONE_STACK.check(model, "describe", instead="Draw it: circuit.plot().")
    check_belongs(model, circuit)
    check_task(model, task)
    seen = Observed(model, circuit, task, n_pairs)
    whole = seen.judge.score(circuit.nodes, circuit.edges).loss
    word = "calibrated task loss" if circuit.criterion.calibrated else "task loss"
    counts = f"{circuit.n_nodes} nodes, {circuit.n_edges} edges"
    lines = [f"{one_line(circuit.task)}: {counts}, {word} {whole:.3f} nats.", ""]
    for node, ends in node_ends(model, circuit, task).items():
        lines += [f"{node}", *_where(seen, node), *_paths(ends)]
        rest = seen.judge.score(*without(node, circuit.nodes, circuit.edges)).loss
        lines.append(f"  without it: loss {whole:.3f} -> {rest:.3f} nats")
    return "\n".join(lines) + "\n"


@of_ours
def sentences(
    model: SparseTransformer, circuit: Circuit, task: Task, *, n_pairs: int = 64
) -> Mapping[Node, str]:
    """Each node in one sentence: where it is high and low, what it reads and writes. Errors as `describe`.

    Examples:
        >>> found = circuits.load("quotes-handmade")
        >>> words = circuits.decompile.sentences(found.model, found.circuit, found.task)
        >>> len(words) == found.circuit.n_nodes
        True
    """
    ONE_STACK.check(model, "sentences", instead="Draw it: circuit.plot().")
    check_belongs(model, circuit)
    check_task(model, task)
    seen = Observed(model, circuit, task, n_pairs)
    ends = node_ends(model, circuit, task)
    return {node: one_line(_sentence(seen, node, ends[node])) for node in circuit.nodes}


def _sentence(seen: Observed, node: Node, ends: Ends) -> str:
    constant = seen.constant(node)
    if constant is not None:
        where = f"Constant: {constant:+.2f} at every token of the prompts"
    else:
        high, low = (seen.contexts(node, highest=highest, n=1)[0] for highest in (True, False))
        where = f"Highest at {high}, lowest at {low}"
    return f"{where}; reads {_some(ends.reads)}; writes {_some(ends.writes)}."


def _some(words: Sequence[str], n: int = 4) -> str:
    """The first few of a list, and how many more there are."""
    more = [f"{len(words) - n} more"] if len(words) > n else []
    return ", ".join([*words[:n], *more])


def _where(seen: Observed, node: Node) -> list[str]:
    constant = seen.constant(node)
    if constant is not None:
        return [f"  constant: {constant:+.2f} at every token of these prompts"]
    highest, lowest = (seen.contexts(node, highest=highest) for highest in (True, False))
    return [f"  highest at: {'   '.join(highest)}", f"  lowest at:  {'   '.join(lowest)}"]


def _paths(ends: Ends) -> list[str]:
    return [f"  reads: {one_line(', '.join(ends.reads))}", f"  writes: {one_line(', '.join(ends.writes))}"]
