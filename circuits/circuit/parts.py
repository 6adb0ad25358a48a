"""The parts of a circuit that follow from its nodes: the weights between them, and the tokens that they meet."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from circuits.circuit.nodes import Edge, IOEdge, Node
from circuits.model.kinds import of_ours
from circuits.model.sites import GATED, ROWS, SCORES, Site, Stack, read_stack
from circuits.model.transformer import SparseTransformer
from tasks import Batch, Tokenizer

FEW = 2
"""Tokens that prompts share, or positions, that are named one by one at a node."""

NEGLIGIBLE = 0.01
"""Share of a table's greatest entry up to which an entry is left out: pictures would fill with noise."""


@of_ours
def edges_between(model: SparseTransformer, nodes: Sequence[Node]) -> list[Edge]:
    """Every nonzero weight that runs between two of the nodes, every q-k pair, every expert with its neurons.

    Examples:
        >>> found = circuits.load("quotes-128")
        >>> edges = circuits.circuit.edges_between(found.model, found.circuit.nodes)
        >>> set(found.circuit.edges) <= set(edges)
        True
    """
    edges = []
    by_site: dict[Site, list[Node]] = {}
    for node in nodes:
        by_site.setdefault(node.at, []).append(node)
    for at in model.weights_among(by_site):
        rows, columns = by_site[at.source], by_site[at.target]
        weight = model.linear(*at).weight.detach()
        block = weight[[a.index for a in rows]][:, [b.index for b in columns]]
        edges += [Edge(rows[i], columns[j], float(block[i, j])) for i, j in block.nonzero().tolist()]
    for site, queries in by_site.items():
        for source in [source for source, target in SCORES if target == site.name]:
            keys = {node.index: node for node in by_site.get(site._replace(name=source), [])}
            pairs = [(keys[query.index], query) for query in queries if query.index in keys]
            edges += [Edge(*pair, model.config.d_head**-0.5) for pair in pairs]
    return edges + _gated(model, by_site)


def _gated(model: SparseTransformer, by_site: Mapping[Site, list[Node]]) -> list[Edge]:
    """Each kept neuron and its kept expert, by whose share it is multiplied as it is: times 1."""
    source, target = GATED
    edges = []
    for site, neurons in by_site.items():
        if site.name == target and (experts := by_site.get(site._replace(name=source))):
            size = model.config.expert_size
            own = {expert.index: expert for expert in experts}
            edges += [Edge(own[n.index // size], n, 1.0) for n in neurons if n.index // size in own]
    return edges


def io_edges(
    model: SparseTransformer, nodes: Sequence[Node], batch: Batch, tokenizer: Tokenizer
) -> list[IOEdge]:
    """Nonzeros of embedding, position table and unembedding that tie text to nodes on the residual stream.

    One for each token in which clean and corrupted prompts differ (in the text that the node's stack reads), and for
    each answer and foil; other tokens, and positions, one by one where a node has few of them, else all in one.

    Examples:
        >>> found = circuits.load("quotes-128")
        >>> prompts = found.task.batch(64, split="test", seed=0)
        >>> edges = circuits.circuit.io_edges(found.model, found.circuit.nodes, prompts, found.task.tokenizer)
        >>> sorted({edge.kind for edge in edges})
        ['embed', 'position', 'several', 'shared', 'unembed']
    """
    told_apart = {stack: _told_apart(model, batch, stack) for stack in model.stacks}
    tables = {stack: _Tables(model, stack) for stack in model.stacks}
    answers = set(batch.answer.tolist()) | set(batch.foil.tolist())
    name = tokenizer.token
    found = []
    for node in nodes:
        if ROWS[node.site].stream == "reads":
            stack = read_stack(node.at)
            column = tables[stack].tokens.weights[:, node.index]
            tokens = [t for t in told_apart[stack] if column[t] != 0]
            found += [IOEdge("embed", name(t), node, float(column[t])) for t in tokens]
            large = tables[stack].tokens.large(node)
            others = [(name(t), weight) for t, weight in large if t not in told_apart[stack]]
            found += _few("shared", node, others, "other tokens")
            places = [(f"position {t}", weight) for t, weight in tables[stack].positions.large(node)]
            found += _few("position", node, places, "positions")
        elif ROWS[node.site].stream == "writes" and node.stack == "decoder":
            row = model.W_U.detach()[node.index]
            found += [IOEdge("unembed", name(t), node, float(row[t])) for t in answers if row[t] != 0]
    return found


class _Table:
    """An embedding or position table, and how large its entries must be to be no noise."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights.detach()
        self.floor = NEGLIGIBLE * float(self.weights.abs().max())

    def large(self, node: Node) -> list[tuple[int, float]]:
        """Rows, and their entries on a node's channel, without what is negligible."""
        column = self.weights[:, node.index]
        return [(int(row), float(column[row])) for row in (column.abs() > self.floor).nonzero()[:, 0]]


class _Tables:
    """The two tables of a stack."""

    def __init__(self, model: SparseTransformer, stack: Stack) -> None:
        self.tokens, self.positions = _Table(model.embedding(stack)), _Table(model.position_table(stack))


def _few(
    kind: Literal["shared", "position"], node: Node, weights: Sequence[tuple[str, float]], plural: str
) -> list[IOEdge]:
    """An edge for each of a few; one for all of many."""
    if len(weights) > FEW:
        greatest = max((weight for _, weight in weights), key=abs)
        return [IOEdge("several", f"{len(weights)} {plural}", node, greatest)]
    return [IOEdge(kind, text, node, weight) for text, weight in weights]


def _told_apart(model: SparseTransformer, batch: Batch, stack: Stack) -> set[int]:
    """Tokens in which clean and corrupted prompts differ, in the text that a stack reads."""
    n = model.config.n_source
    part = slice(0, n) if stack == "encoder" else slice(n, None)
    clean, corrupt = batch.clean[:, part], batch.corrupt[:, part]
    differ = clean != corrupt
    return set(clean[differ].tolist()) | set(corrupt[differ].tolist())
