"""What the page computes with: a circuit's weights and constants as JSON, for `static/forward.js`."""

import base64
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from circuits.circuit.circuit import Circuit
from circuits.circuit.nodes import Edge, is_pair
from circuits.decompile.folded import INTO, answers_of, check_folds, packable, rest_of
from circuits.model.sites import WEIGHTS, Site
from circuits.model.transformer import SparseTransformer
from tasks import Task


def circuit_program(model: SparseTransformer, circuit: Circuit, task: Task) -> dict[str, Any]:
    """A circuit's forward pass as plain JSON: sizes, tables (base64 of little-endian float32) and one entry a site.

    Logits are those of the task's answers. Raises ValueError for what `to_python` refuses too.
    """
    instead = "Draw it with circuit.plot(), or run the circuit itself with run_circuit."
    check_folds(model, circuit, task, "the explorer", instead)
    config, answers = model.config, answers_of(task)
    sizes = ("n_layers", "n_heads", "d_head", "d_model", "n_ctx", "norm_eps", "act")
    attention: list[Any] = [block.attn for block in model.blocks]
    return {
        **{name: getattr(config, name) for name in sizes},
        "answers": answers,
        "embed": packed(model.W_E),
        "place": packed(model.W_pos),
        "unembed": packed(model.W_U[:, answers]),
        "offset": packed(model.b_U[answers]),
        "bigram": None if model.bigram is None else packed(model.bigram[:, answers]),
        "sink": [attn.sink.tolist() for attn in attention] if config.sink else None,
        "sites": _sites(model, circuit),
    }


def packed(table: Tensor) -> str:
    """A table as base64 of little-endian float32, row after row."""
    return base64.b64encode(packable(table).numpy().astype("<f4").tobytes()).decode()


def _sites(model: SparseTransformer, circuit: Circuit) -> dict[str, Any]:
    nodes: dict[Site, list[int]] = defaultdict(list)
    edges: dict[Site, list[Edge]] = defaultdict(list)
    for node in circuit.nodes:
        nodes[node.at].append(node.index)
    for edge in circuit.edges:
        if not is_pair(edge):
            edges[edge.target.at].append(edge)
    return {
        str(site): _site(model, circuit, site) | {"nodes": nodes[site], "edges": _plain(edges[site])}
        for site in circuit.sites
    }


def _site(model: SparseTransformer, circuit: Circuit, site: Site) -> dict[str, Any]:
    weight = INTO.get(site.name)
    return {
        "width": circuit.widths[site],
        "k": model.config.topk(site),
        "values": packed(circuit.values[site]),
        "source": None if weight is None else str(site._replace(name=WEIGHTS[weight].source)),
        "rest": None if weight is None else packed(rest_of(model, circuit, site)),
    }


def _plain(edges: Sequence[Edge]) -> list[list[int | float]]:
    """Indices of both ends and the weight."""
    return [[edge.source.index, edge.target.index, edge.weight] for edge in edges]
