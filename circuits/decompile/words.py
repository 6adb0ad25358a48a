"""A circuit in words: what turns each node on, what it reads and writes, what breaks without it."""

from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import check_belongs
from circuits.circuit.score import check_task
from circuits.decompile.observe import Observed
from circuits.decompile.text import one_line
from circuits.model.options import ONE_STACK
from circuits.model.transformer import SparseTransformer
from tasks import Task


def describe(model: SparseTransformer, circuit: Circuit, task: Task, *, n_pairs: int = 64) -> str:
    """The circuit in words: for each node what turns it on, what it reads and writes, what breaks without it.

    Raises ValueError when the circuit is of another model, or the task does not fit.
    """
    ONE_STACK.check(model, "describe", instead="Draw it: circuit.plot().")
    check_belongs(model, circuit)
    check_task(model, task)
    seen = Observed(model, circuit, task, n_pairs)
    whole = seen.loss(circuit.nodes)
    lines = [
        f"{one_line(circuit.task)}: {circuit.n_nodes} nodes, {circuit.n_edges} edges, task loss {whole:.3f} nats.",
        "",
    ]
    for node in circuit.nodes:
        rest = seen.loss([other for other in circuit.nodes if other != node])
        reads = [str(e.source) for e in circuit.edges if e.target == node]
        writes = [str(e.target) for e in circuit.edges if e.source == node]
        reads += [f"token {io.token}" for io in circuit.io_edges if io.node == node and io.kind == "embed"]
        writes += [f"logit {io.token}" for io in circuit.io_edges if io.node == node and io.kind == "unembed"]
        lines += [
            f"{node}",
            f"  highest at: {'   '.join(seen.contexts(node, highest=True))}",
            f"  lowest at:  {'   '.join(seen.contexts(node, highest=False))}",
            f"  reads: {', '.join(reads) or 'the residual stream'}",
            f"  writes: {', '.join(writes) or 'the residual stream'}",
            f"  without it: loss {whole:.3f} -> {rest:.3f} nats",
        ]
    return "\n".join(lines) + "\n"
