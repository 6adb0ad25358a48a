"""One page about one extracted circuit."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from circuits.circuit.circuit import Circuit
from circuits.circuit.nodes import Node, kind_of
from circuits.model.sites import ROWS
from circuits.model.subject import Subject
from circuits.plots.page import Block, Html, heading, headline, table, write_page
from circuits.plots.picture.circuit import circuit_figure, node_words
from circuits.plots.picture.labels import long_label, short_label
from circuits.reading import is_number
from tasks import Task

__all__ = ["demo_page"]

HEADLINES: Mapping[str, tuple[str, str]] = {
    "n_nodes": ("nodes", "{:,}"),
    "n_edges": ("edges", "{:,}"),
    "task_loss": ("task loss (nats)", "{:.3f}"),
    "task_accuracy": ("task accuracy", "{:.1%}"),
    "margin_ratio": ("margin over the model's", "{:.0%}"),
    "margin_correlation": ("correlation within an answer", "{:.2f}"),
    "val_loss": ("validation loss", "{:.3f}"),
    "density": ("density, embeddings included", "{:.2%}"),
    "n_nonzero": ("nonzero weights", "{:,}"),
    "seconds_train": ("seconds of training", "{:.0f}"),
    "seconds_prune": ("seconds of pruning", "{:.0f}"),
}
"""Keys of a demo report that are set large: what each is called, and its format."""


def demo_page(
    path: str | Path,
    circuit: Circuit,
    report: Mapping[str, Any],
    figures: Iterable[go.Figure] = (),
    *,
    title: str | None = None,
    d_head: int | None = None,
    model: Subject | None = None,
    task: Task | None = None,
) -> Path:
    """One page for one circuit: headline numbers, picture, nodes, edges, then `figures` (its histories).

    `model` and `task` as for `circuit_figure`: with both, each node is told in a sentence.
    Keys of `report` in `HEADLINES` are set large; the other scalars follow at the end. Returns the path.

    Examples:
        >>> circuit = circuits.load("quotes-128").circuit
        >>> circuits.plots.demo_page("circuit.html", circuit, circuit.summary()).name
        'circuit.html'
    """
    large = [key for key in HEADLINES if is_number(report.get(key))]
    numbers = {HEADLINES[key][0]: HEADLINES[key][1].format(report[key]) for key in large}
    rest = [
        {"": key, "value": value}
        for key, value in report.items()
        if key not in large and isinstance(value, bool | int | float | str)
    ]
    blocks: list[Block] = [
        headline(numbers),
        reading_guide(circuit),
        circuit_figure(circuit, title="", d_head=d_head, model=model, task=task),
    ]
    rows = node_rows(circuit, node_words(circuit, model, task))
    nodes = heading("Nodes") + table(rows, {"mean": "+.3f", "effect": "+.3f"})
    edges = heading("Edges") + table(edge_rows(circuit), {"weight": "+.3f"}) if circuit.edges else ""
    if circuit.effects:
        edges += heading("Effects, in logits (measured: no weights)")
        edges += table(effect_rows(circuit), {"effect": "+.3f"})
    blocks += [Html(f'<div class="pair"><section>{nodes}</section><section>{edges}</section></div>')]
    figures = list(figures)
    blocks += [heading("How it was found"), *figures] if figures else []
    blocks += [heading("Also measured"), table(rest)] if rest else []
    return write_page(path, title=title or f"The circuit for {circuit.task}", blocks=blocks)


_MEASURED = (
    "Read it from left to right. The model is dense, so that no single weight leads from one node to another: a broken "
    "line is the measured effect of one direct path, by how many logits the answer's lead falls when that path alone "
    "carries what the corrupted prompt says (blue: it speaks for the answer, orange: against it)."
)


_WEIGHED = (
    "Read it from left to right. Tokens and positions write to residual channels; what reads a channel and writes "
    "to others stands between, and the last ones move the logits. A blue weight passes a value on, an orange one "
    "turns its sign."
)


def reading_guide(circuit: Circuit) -> str:
    """How to read the picture, for somebody who has not seen one: no word on what this circuit lacks."""
    sites = {node.site for node in circuit.nodes}
    does = [_MEASURED if circuit.effects else _WEIGHED]
    if any(kind_of(edge) == "score" for edge in circuit.edges):
        does.append("In a head, a query and a key (dotted) choose positions by their product.")
    elif any(ROWS[site].per_head and site.endswith(("_q", "_k")) for site in sites):
        does.append("In a head, a query or a key chooses positions against a constant.")
    if any(site.endswith("_v") for site in sites):
        does.append("A head's values are carried over from the positions that it chooses.")
    return " ".join([*does, "Everything that is not drawn is held at a constant."])


def node_rows(circuit: Circuit, words: Mapping[Node, str] | None = None) -> list[dict[str, Any]]:
    """Rows for `table`: every node with its site, mean and ablation effect (of the loss), in forward order.

    words: a sentence about each, as `circuits.decompile.sentences` has them.
    """
    order = {site: i for i, site in enumerate(circuit.sites)}
    rows = []
    for node in sorted(circuit.nodes, key=lambda node: (order[node.at], node.index)):
        facts = circuit.facts.get(node)
        mean, effect = (facts.mean, facts.effect) if facts else (float("nan"), float("nan"))
        rows.append({"node": short_label(node), "layer": node.layer, "site": node.site, "index": node.index})
        rows[-1] |= {"mean": mean, "effect": effect}
        rows[-1] |= {"what it does": words[node]} if words else {}
    return rows


def effect_rows(circuit: Circuit) -> list[dict[str, Any]]:
    """Rows for `table`: every measured effect with its ends, strongest first."""
    return [
        {
            "from": "prompt" if source is None else long_label(source),
            "to": "answer over foil" if target is None else long_label(target),
            "effect": size,
        }
        for source, target, size in circuit.effects
    ]


def edge_rows(circuit: Circuit) -> list[dict[str, Any]]:
    """Rows for `table`: every edge with its ends and weight, greatest first."""
    return [
        {
            "from": long_label(edge.source),
            "to": long_label(edge.target),
            "weight": edge.weight,
            "kind": kind_of(edge),
        }
        for edge in sorted(circuit.edges, key=lambda edge: -abs(edge.weight))
    ]
