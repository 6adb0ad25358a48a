"""What a node of a circuit reads and what it writes, in words that are true of its site."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from circuits.circuit.circuit import Circuit
from circuits.circuit.nodes import Edge, IOEdge, Node, is_pair, residual_links
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
    around = _Around(circuit)
    return {
        node: Ends(reads=tuple(_reads(model, around, node)), writes=tuple(_writes(around, node)))
        for node in circuit.nodes
    }


class _Around:
    """The edges, score pairs, tokens and shared channels at each node, gathered in one pass."""

    def __init__(self, circuit: Circuit) -> None:
        self.into: dict[Node, list[Edge]] = defaultdict(list)
        self.out: dict[Node, list[Edge]] = defaultdict(list)
        self.scores: dict[Node, list[Node]] = defaultdict(list)
        self.tokens: dict[tuple[str, Node], list[IOEdge]] = defaultdict(list)
        self.before: dict[Node, list[Node]] = defaultdict(list)
        self.after: dict[Node, list[Node]] = defaultdict(list)
        for edge in circuit.edges:
            self._add(edge)
        for io in circuit.io_edges:
            self.tokens[io.kind, io.node].append(io)
        for writer, reader in residual_links(circuit.nodes):
            self.before[reader].append(writer)
            self.after[writer].append(reader)

    def _add(self, edge: Edge) -> None:
        if is_pair(edge):
            self.scores[edge.source].append(edge.target)
            self.scores[edge.target].append(edge.source)
        else:
            self.into[edge.target].append(edge)
            self.out[edge.source].append(edge)


def _reads(model: SparseTransformer, around: _Around, node: Node) -> list[str]:
    found = [f"{e.source} ({e.weight:+.2f})" for e in around.into[node]]
    if ROWS[node.site].stream == "reads":
        found += _inputs(model, around, node)
    return found or ["nothing in the circuit: only constants (biases and ablation values) reach it"]


def _inputs(model: SparseTransformer, around: _Around, node: Node) -> list[str]:
    """What stands on a residual channel before a reader: tokens, positions, and nodes that wrote to it earlier."""
    named = around.tokens["embed", node]
    found = [f"token {io.token} ({io.weight:+.2f})" for io in named]
    others = int(model.W_E[:, node.index].count_nonzero()) - len(named)
    found += [f"embeddings of {others} other tokens"] if others > 0 else []
    places = positions(model, node)
    listed = ", ".join(f"{at} ({weight:+.2f})" for at, weight in places[:4])
    more = f" and {len(places) - 4} more" if len(places) > 4 else ""
    found += [f"position {listed}{more}"] if places else []
    return found + [f"{writer} (same channel)" for writer in around.before[node]]


def positions(model: SparseTransformer, node: Node) -> list[tuple[int, float]]:
    """Position embeddings on a reader's channel, (position from 0, weight), the largest first."""
    column = model.W_pos[:, node.index].detach()
    found = [(int(at), float(column[at])) for at in column.nonzero()[:, 0]]
    return sorted(found, key=lambda place: (-abs(place[1]), place[0]))


def _writes(around: _Around, node: Node) -> list[str]:
    found = [f"{e.target} ({e.weight:+.2f})" for e in around.out[node]]
    found += [f"the attention score, times {other}" for other in around.scores[node]]
    found += [f"logit {io.token} ({io.weight:+.2f})" for io in around.tokens["unembed", node]]
    found += [f"{reader} (same channel)" for reader in around.after[node]]
    return found or [_UNREAD.get(node.site, "nothing that the circuit reads")]


_UNREAD = {
    "attn_q": "the attention score, times a constant key",
    "attn_k": "the attention score, times a constant query",
    "attn_out": "its residual channel, which counts in the size that norms divide by",
    "mlp_out": "its residual channel, which counts in the size that norms divide by",
}
