"""The parts of a circuit that follow from its nodes: the weights between them, and the tokens that they meet."""

from collections.abc import Sequence

from circuits.model import SparseTransformer
from circuits.nodes import WEIGHTS, Edge, IOEdge, Node, Site
from tasks import Batch, Tokenizer


def edges_between(model: SparseTransformer, nodes: Sequence[Node]) -> list[Edge]:
    """Every nonzero weight that runs between two of the nodes, and every q-k pair."""
    edges = []
    by_site: dict[Site, list[Node]] = {}
    for node in nodes:
        by_site.setdefault(node.at, []).append(node)
    for layer in range(model.config.n_layers):
        for name, (source, target) in WEIGHTS.items():
            rows, columns = by_site.get(Site(layer, source), []), by_site.get(Site(layer, target), [])
            weight = model.linear(layer, name).weight.detach()
            block = weight[[a.index for a in rows]][:, [b.index for b in columns]]
            edges += [Edge(rows[i], columns[j], float(block[i, j])) for i, j in block.nonzero().tolist()]
        keys = {node.index: node for node in by_site.get(Site(layer, "attn_k"), [])}
        for query in by_site.get(Site(layer, "attn_q"), []):
            if query.index in keys:
                edges.append(Edge(keys[query.index], query, model.config.d_head**-0.5))
    return edges


def io_edges(
    model: SparseTransformer, nodes: Sequence[Node], batch: Batch, tokenizer: Tokenizer
) -> list[IOEdge]:
    """Embedding and unembedding nonzeros that tie the task's tokens to nodes on the residual stream.

    The task's tokens: those in which clean and corrupted prompts differ (embedding), answers and foils
    (unembedding).
    """
    differ = batch.clean != batch.corrupt
    told_apart = set(batch.clean[differ].tolist()) | set(batch.corrupt[differ].tolist())
    answers = set(batch.answer.tolist()) | set(batch.foil.tolist())
    name = tokenizer.token
    found = []
    for node in nodes:
        if node.site in ("attn_in", "mlp_in"):
            column = model.W_E.detach()[:, node.index]
            found += [IOEdge("embed", name(t), node, float(column[t])) for t in told_apart if column[t] != 0]
        elif node.site in ("attn_out", "mlp_out"):
            row = model.W_U.detach()[node.index]
            found += [IOEdge("unembed", name(t), node, float(row[t])) for t in answers if row[t] != 0]
    return found


def is_pair(edge: Edge) -> bool:
    """Whether an edge is a q-k pair, which has no weight of its own."""
    return edge.source.site == "attn_k"


def among(edges: Sequence[Edge], nodes: Sequence[Node]) -> list[Edge]:
    """The edges that run between two of the nodes."""
    kept = set(nodes)
    return [edge for edge in edges if edge.source in kept and edge.target in kept]


def without(node: Node, nodes: Sequence[Node], edges: Sequence[Edge]) -> tuple[list[Node], list[Edge]]:
    """Nodes and edges that are left when one node goes."""
    rest = [n for n in nodes if n != node]
    return rest, among(edges, rest)
