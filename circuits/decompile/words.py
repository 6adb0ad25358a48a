"""A circuit in words: what turns each node on, what it reads and writes, what breaks without it."""

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


def _where(seen: Observed, node: Node) -> list[str]:
    constant = seen.constant(node)
    if constant is not None:
        return [f"  constant: {constant:+.2f} at every token of these prompts"]
    highest, lowest = (seen.contexts(node, highest=highest) for highest in (True, False))
    return [f"  highest at: {'   '.join(highest)}", f"  lowest at:  {'   '.join(lowest)}"]


def _paths(ends: Ends) -> list[str]:
    return [f"  reads: {one_line(', '.join(ends.reads))}", f"  writes: {one_line(', '.join(ends.writes))}"]
