"""What a node of a circuit reads and what it writes, in words that are true of its site."""

from collections.abc import Mapping
from dataclasses import dataclass

from circuits.circuit.circuit import Circuit
from circuits.circuit.nodes import Node, is_pair, residual_links
from circuits.model.sites import ROWS
from circuits.model.transformer import SparseTransformer
from tasks import Task


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Where a node gets its value from and where it goes, each a list of words; never empty."""

    reads: tuple[str, ...]
    "Nodes, tokens and positions; or that nothing but constants reaches it."
    writes: tuple[str, ...]
    "Nodes, scores and logits; or that nothing in the circuit reads it."


def node_ends(model: SparseTransformer, circuit: Circuit, task: Task) -> Mapping[Node, Ends]:
    """What each node reads and writes, in forward order: weights first, then tokens, positions and shared channels."""
    return {
        node: Ends(reads=tuple(_reads(model, circuit, node, task)), writes=tuple(_writes(circuit, node)))
        for node in circuit.nodes
    }


def _reads(model: SparseTransformer, circuit: Circuit, node: Node, task: Task) -> list[str]:
    found = [f"{e.source} ({e.weight:+.2f})" for e in circuit.edges if e.target == node and not is_pair(e)]
    if ROWS[node.site].stream == "reads":
        found += _inputs(model, circuit, node, task)
    return found or ["nothing in the circuit: only constants (biases and ablation values) reach it"]


def _inputs(model: SparseTransformer, circuit: Circuit, node: Node, task: Task) -> list[str]:
    """What stands on a residual channel before a reader: tokens, positions, and nodes that wrote to it earlier."""
    named = [io for io in circuit.io_edges if io.node == node and io.kind == "embed"]
    found = [f"token {io.token} ({io.weight:+.2f})" for io in named]
    others = int(model.W_E[:, node.index].count_nonzero()) - len(named)
    found += [f"embeddings of {others} other tokens"] if others > 0 else []
    places = positions(model, node)
    listed = ", ".join(f"{at} ({weight:+.2f})" for at, weight in places[:4])
    more = f" and {len(places) - 4} more" if len(places) > 4 else ""
    found += [f"position {listed}{more}"] if places else []
    return found + [f"{a} (same channel)" for a, b in residual_links(circuit.nodes) if b == node]


def positions(model: SparseTransformer, node: Node) -> list[tuple[int, float]]:
    """Position embeddings on a reader's channel, (position from 0, weight), the largest first."""
    column = model.W_pos[:, node.index].detach()
    found = [(int(at), float(column[at])) for at in column.nonzero()[:, 0]]
    return sorted(found, key=lambda place: (-abs(place[1]), place[0]))


def _writes(circuit: Circuit, node: Node) -> list[str]:
    pairs = [e for e in circuit.edges if is_pair(e) and node in (e.source, e.target)]
    found = [f"{e.target} ({e.weight:+.2f})" for e in circuit.edges if e.source == node and not is_pair(e)]
    found += [f"the attention score, times {e.target if node == e.source else e.source}" for e in pairs]
    ends = [io for io in circuit.io_edges if io.node == node and io.kind == "unembed"]
    found += [f"logit {io.token} ({io.weight:+.2f})" for io in ends]
    found += [f"{b} (same channel)" for a, b in residual_links(circuit.nodes) if a == node]
    return found or [_UNREAD.get(node.site, "nothing that the circuit reads")]


_UNREAD = {
    "attn_q": "the attention score, times a constant key",
    "attn_k": "the attention score, times a constant query",
    "attn_out": "its residual channel, which counts in the size that norms divide by",
    "mlp_out": "its residual channel, which counts in the size that norms divide by",
}
