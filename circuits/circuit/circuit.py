"""A circuit: nodes and edges of one model, and what holds everything else in place.

It is a set of nodes and of edges between them, together with the values that everything outside it
is held at. It knows which model it was found in (`model_hash`) and which task it solves, so it can be saved,
sent to somebody else, and evaluated again to the same number.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from html import escape
from pathlib import Path
from typing import Any

import networkx as nx
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.circuit.criterion import Criterion
from circuits.circuit.nodes import (
    Ablation,
    Edge,
    Effect,
    IOEdge,
    Node,
    NodeFacts,
    check_effects,
    check_parts,
    edge_masks,
    io_end,
    kind_of,
    node_masks,
    residual_links,
)
from circuits.circuit.stored import circuit_fields, circuit_json, search_history
from circuits.files import json_text, read_json, write_json
from circuits.model.sites import WHOLE_HEADS, Site, WeightAt, prefix
from circuits.reading import reading, sealed, unsealed
from circuits.views import Decompiled, Explored, PlottedAsCircuit, html_table

TOKENS, MARGIN = "tokens", "margin"
"""What stands in a graph at the ends of effects that are no nodes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Circuit(PlottedAsCircuit, Decompiled, Explored):
    """Nodes, the edges between them, and what holds everything else in place.

    Two circuits are equal when all that they are is: parts, weights, values, facts, criterion and model. Metrics, which
    say how long the search took, do not count.
    """

    nodes: tuple[Node, ...]
    "Sorted."
    edges: tuple[Edge, ...]
    "Nonzero weights between nodes, and q-k pairs; sorted."
    io_edges: tuple[IOEdge, ...] = ()
    "Embedding and unembedding entries of the task's tokens, counted apart; those at other nodes are dropped."
    effects: tuple[Effect, ...] = ()
    "Measured effects of nodes on later ones, where no weights lead from one to the other; strongest first."
    widths: Mapping[Site, int]
    "Number of nodes of each site: of its coordinates, or of its heads."
    n_layers: int
    "Layers of the model."
    d_head: int | None = None
    "Channels of a head, so that q, k and v channels can be told apart by head; None: not known."
    criterion: Criterion
    "What it was asked to do, on which prompts, and what takes the place of everything outside it."
    model_hash: str
    "`SparseTransformer.fingerprint()` of the model it belongs to."
    values: Mapping[Site, Float[Tensor, "*where width"]] = field(repr=False)
    "What takes the place of every node: [width], [pos, width] or [text, pos, width] a site; of heads, all channels."
    facts: Mapping[Node, NodeFacts] = field(default_factory=dict, repr=False)
    "Mean and ablation effect of each node."
    metrics: Mapping[str, Any] = field(default_factory=dict)
    "Task loss (nats, two-way), accuracy and whatever else was measured: to look at, nothing is computed from it."

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(sorted(set(self.nodes))))
        object.__setattr__(self, "edges", tuple(sorted(set(self.edges))))
        kept = set(self.nodes)
        object.__setattr__(
            self, "io_edges", tuple(sorted(io for io in set(self.io_edges) if io.node in kept))
        )
        for node in self.nodes:
            _check_node(node, self.n_layers, self.widths)
        check_parts(self.nodes, self.edges, self.io_edges)
        object.__setattr__(self, "effects", tuple(sorted(set(self.effects), key=_strongest)))
        check_effects(self.effects, self.nodes)
        for site in self.sites:
            if site not in self.values or not _fits(self.values[site], site, self.widths[site]):
                raise ValueError(
                    f"values: none of width {self.widths[site]} for site {site}; expected one value for "
                    "every coordinate of every site. Take them from circuits.mean_values(model, ...)."
                )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Circuit):
            return NotImplemented
        compared = [f.name for f in fields(self) if f.name != "metrics"]
        return all(_alike(getattr(self, name), getattr(other, name)) for name in compared)

    def __hash__(self) -> int:
        return hash((self.nodes, self.edges, self.model_hash))

    @property
    def history(self) -> list[dict[str, Any]]:
        """How pruning went, an object a logged step: step, task_loss (of the objective), n_open; empty without.

        Raises ValueError where the metrics hold anything else under that name.
        """
        return search_history(self.metrics.get("history"))

    @property
    def task(self) -> str:
        """Name of the task that the circuit performs."""
        return self.criterion.task

    @property
    def ablation(self) -> Ablation:
        """What coordinates outside the circuit are replaced by."""
        return self.criterion.ablation

    @property
    def sites(self) -> list[Site]:
        """Every site that the circuit speaks of, in forward order: others are left as they are."""
        return list(self.widths)

    @property
    def n_nodes(self) -> int:
        """Number of kept coordinates over all eight sites of all layers."""
        return len(self.nodes)

    @property
    def n_edges(self) -> int:
        """Number of nonzero weights between kept nodes, plus q-k pairs."""
        return len(self.edges)

    @property
    def core(self) -> tuple[Node, ...]:
        """The nodes that the model itself cannot do without: ablating one alone breaks what the criterion asks.

        A circuit is *a* set of nodes that is enough. Of what is outside its core the model has more than one, or more
        than enough: `circuits.pruning.rivals` looks for another circuit there.
        """
        return tuple(
            n for n in self.nodes if n in self.facts and self.facts[n].model_loss > self.criterion.target
        )

    @property
    def loss(self) -> float:
        """Task loss in nats when only the circuit is kept (nan if it was not measured)."""
        loss = self.metrics.get("task_loss")
        return float("nan") if loss is None else float(loss)

    def to_mask(self) -> dict[Site, Bool[Tensor, " width"]]:
        """One mask a site: True = keep."""
        return node_masks(self.nodes, self.widths, torch.empty(0, dtype=torch.bool))

    def to_edge_mask(self) -> dict[WeightAt, Bool[Tensor, "d_in d_out"]]:
        """One mask for each weight matrix, by `WeightAt(layer, name)`: True = keep. Q-k pairs are not weights."""
        return edge_masks(self.edges, self.widths, torch.empty(0, dtype=torch.bool))

    def to_networkx(self) -> nx.DiGraph:
        """A directed graph of plain strings and numbers, which networkx can lay out and write to any file.

        Nodes are named as in a circuit file (`0.attn_in.3`) and carry layer, site, index and, where they were
        measured, mean and effect; those of an encoder also their stack. Tokens lie in layer -1 and logits in layer
        `n_layers`. `subset` is a node's place in the forward pass, by which `networkx.multipartite_layout` draws
        columns. Edges carry weight and kind.

        Kinds: `weight` (counted in `n_edges`), `score` (a q-k pair, counted too), `gate` (an expert and a neuron
        of it, counted too), `residual` (one residual channel written by one node and read by a later one; it carries
        no weight and is not counted), those of `io_edges` (from and to nodes that `io_end` names: `token:...`,
        `position:...`, `logit:...`), and `effect` (measured, no weight and not counted; `size` is in logits).
        """
        graph = nx.DiGraph(task=self.task, model_hash=self.model_hash)
        place = {site: i for i, site in enumerate(self.sites, start=1)}
        for node in self.nodes:
            facts = self.facts[node]._asdict() if node in self.facts else {}
            known = {name: value for name, value in facts.items() if math.isfinite(value)}
            at = {"layer": node.layer, "site": node.site, "index": node.index, "subset": place[node.at]}
            stack = {} if node.stack == "decoder" else {"stack": node.stack}
            graph.add_node(str(node), **at, **stack, **known)
        for edge in self.edges:
            graph.add_edge(str(edge.source), str(edge.target), weight=edge.weight, kind=kind_of(edge))
        for source, target in residual_links(self.nodes):
            graph.add_edge(str(source), str(target), weight=1.0, kind="residual")
        for io in self.io_edges:
            end = io_end(io)
            if io.kind == "unembed":
                graph.add_node(end, layer=self.n_layers, subset=len(place) + 1)
                graph.add_edge(str(io.node), end, weight=io.weight, kind=io.kind)
            else:
                graph.add_node(end, layer=-1, subset=0)
                graph.add_edge(end, str(io.node), weight=io.weight, kind=io.kind)
        for effect in self.effects:
            ends = (str(effect.source or TOKENS), str(effect.target or MARGIN))
            for end, layer, subset in ((TOKENS, -1, 0), (MARGIN, self.n_layers, len(place) + 1)):
                if end in ends:
                    graph.add_node(end, layer=layer, subset=subset)
            graph.add_edge(*ends, size=effect.size, kind="effect")
        return graph

    def summary(self) -> dict[str, Any]:
        """The counts and the plain numbers among the metrics, flat."""
        numbers = {k: v for k, v in self.metrics.items() if isinstance(v, bool | int | float | str)}
        counts = {"n_nodes": self.n_nodes, "n_edges": self.n_edges, "n_io_edges": len(self.io_edges)}
        counts |= {"n_effects": len(self.effects)} if self.effects else {}
        return {"task": self.task, **counts, **numbers}

    def with_metrics(self, **metrics: Any) -> "Circuit":
        """The same circuit with more entries in `metrics`."""
        return replace(self, metrics={**self.metrics, **metrics})

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON types. Values are base64 of little-endian float32: exact, and small."""
        return circuit_json(self)

    @classmethod
    def from_json(cls, data: Any) -> "Circuit":
        """The inverse of `to_json`. Raises ValueError when the schema is another or a key is missing."""
        return cls(**circuit_fields(data))

    def save(self, path: str | Path) -> Path:
        """Write JSON with its checksum, in one step (a reader never sees half a file); returns the path."""
        return write_json(path, sealed(json.loads(json_text(self.to_json()))))

    @classmethod
    def load(cls, path: str | Path) -> "Circuit":
        """Read a circuit that `save` wrote. Raises UnreadableError (a ValueError) on anything else."""
        expected = "a file that Circuit.save wrote"
        with reading(path, expected, kind=" as a circuit"):
            return cls.from_json(unsealed(read_json(path, name="path", expected=expected)))

    def __repr__(self) -> str:
        return (
            f"Circuit(task={self.task!r}, {self.n_nodes} nodes, {self.n_edges} edges, "
            f"{len(self.io_edges)} io edges, loss {self.loss:.3f} nats, {self.ablation} ablation)"
        )

    def _repr_html_(self) -> str:
        rows = [
            [
                f"{prefix(node.stack)}{node.layer}",
                node.site,
                str(node.index),
                f"{facts.mean:+.3f}",
                f"{facts.effect:+.3f}",
            ]
            for node in self.nodes
            for facts in [self.facts.get(node, NodeFacts(float("nan"), float("nan")))]
        ]
        return (
            f"<b>{escape(self.task)}</b>: {self.n_nodes} nodes, {self.n_edges} edges, "
            f"{self.criterion.task_loss_said} {self.loss:.3f} nats ({self.ablation} ablation)"
            + html_table(["layer", "site", "index", "mean", f"effect{self.criterion.unit}"], rows)
        )


def _strongest(effect: Effect) -> tuple[float, str]:
    return -abs(effect.size), str(effect)


def _fits(value: Tensor, site: Site, width: int) -> bool:
    """Whether there is a number for each coordinate of a site, or for each channel of each of its heads."""
    n = value.shape[-1] if value.ndim else 0
    return n == width or (site.name in WHOLE_HEADS and n > 0 and n % width == 0)


def _check_node(node: Node, n_layers: int, widths: Mapping[Site, int]) -> None:
    if not 0 <= node.index < widths.get(node.at, 0):
        raise ValueError(
            f"nodes: {node} lies outside the model; expected a layer below {n_layers} and an index below "
            f"{widths.get(node.at, 'the width of a site')}. Is the circuit from another model?"
        )


def _alike(a: Any, b: Any) -> bool:
    """Whether two fields hold the same, tensors entry by entry; what is not a number is like itself."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(torch.isclose(a, b.to(a), rtol=0, atol=0, equal_nan=True).all())
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    return a == b or (a != a and b != b)
