"""The words of the circuit picture: short labels on it, full sentences under the pointer."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap

from circuits.circuit.circuit import Circuit
from circuits.circuit.nodes import Node
from circuits.model.sites import ROWS
from circuits.plots.picture.layout import Link
from circuits.plots.picture.ranks import Key, end_text, is_token
from circuits.plots.style import escaped, number
from tasks.tokenizer import printable

_DOES = {
    **{
        "attn_q": "seeks",
        "attn_k": "matches",
        "attn_v": "carries",
        "mlp_neuron": "fires",
        "router": "chooses",
    },
    **{"cross_q": "seeks", "cross_k": "matches", "cross_v": "carries"},
}
GLOSS: dict[str, str] = {
    "tokens": "in",
    **{row.name: row.stream or _DOES.get(row.name, "") for row in ROWS.values()},
    "logits": "out",
}
"""One word on what a site does: what it does to the residual stream, or else in its sublayer."""

_STACK = {"decoder": "", "encoder": "encoder, "}
"""What is said of the stack of a node."""

HOVER_WIDTH = 72
"""Characters of a line of a sentence under the pointer."""
MAX_LISTED = 8
"""Weights listed under the pointer for one node, each way."""


def short_label(key: Key) -> str:
    """`q 37`, `neuron 411`, `ch 17`; a token as printable characters. Escaped for plotly."""
    if isinstance(key, Node):
        row = ROWS[key.site]
        return f"{'ch' if row.stream else row.label} {key.index}"
    return escaped(printable(end_text(key)) if is_token(key) else end_text(key))


def long_label(key: Key) -> str:
    """A name that stands by itself: the node with its site, or what kind of token it is."""
    if isinstance(key, Node):
        return f"{short_label(key)} ({key.at})"
    return f"{key.partition(':')[0]} {short_label(key)}" if is_token(key) else short_label(key)


def key_hovers(
    circuit: Circuit,
    links: Sequence[Link],
    d_head: int,
    keys: Iterable[Key],
    words: Mapping[Node, str] | None = None,
) -> dict[Key, str]:
    """Hover text of these nodes, tokens and logits; words: a sentence of what each node does."""
    incoming: dict[Key, list[Link]] = defaultdict(list)
    outgoing: dict[Key, list[Link]] = defaultdict(list)
    for link in links:
        incoming[link.target].append(link)
        outgoing[link.source].append(link)
    said = {node: _wrapped(text) for node, text in (words or {}).items()}
    return {
        key: _hover(key, circuit, incoming, outgoing, d_head)
        + "".join(f"<br>{line}" for line in (said.get(key, []) if isinstance(key, Node) else []))
        for key in keys
    }


def _wrapped(text: str) -> list[str]:
    """Lines of a sentence, escaped for plotly."""
    return [f"<i>{escaped(line)}</i>" for line in wrap(text, HOVER_WIDTH)]


def _hover(
    key: Key,
    circuit: Circuit,
    incoming: Mapping[Key, list[Link]],
    outgoing: Mapping[Key, list[Link]],
    d_head: int,
) -> str:
    lines = [f"<b>{short_label(key)}</b>"]
    if isinstance(key, Node):
        lines += _node_lines(key, circuit, d_head)
    else:
        lines[0] = f"<b>{long_label(key)}</b>"
        lines += (
            [] if key in incoming or key in outgoing else ["no weight of the circuit leads here: a constant"]
        )
    lines += _listed("in", [(link.source, link) for link in incoming.get(key, ())])
    lines += _listed("out", [(link.target, link) for link in outgoing.get(key, ())])
    return "<br>".join(lines)


def _node_lines(node: Node, circuit: Circuit, d_head: int) -> list[str]:
    lines = [f"{_STACK[node.stack]}layer {node.layer}, site {node.site}, index {node.index}"]
    if ROWS[node.site].per_head:
        lines.append(f"head {node.index // d_head}, channel {node.index % d_head} of {d_head}")
    facts = circuit.facts.get(node)
    mean, effect = (facts.mean, facts.effect) if facts else (float("nan"), float("nan"))
    held = "mean" if circuit.ablation == "mean" else "ablated to zero; mean"
    return [*lines, f"{held} {number(mean)}", f"ablation effect {number(effect)}{circuit.criterion.unit}"]


def _listed(word: str, ends: Sequence[tuple[Key, Link]]) -> list[str]:
    """`in` or `out` and the weights that way, greatest first."""
    ranked = sorted(ends, key=lambda end: (end[1].kind == "residual", -abs(end[1].weight), str(end[0])))
    lines = [f"{word}: {_weight(link)} {long_label(other)}" for other, link in ranked[:MAX_LISTED]]
    if len(ranked) > MAX_LISTED:
        lines.append(f"{word}: and {len(ranked) - MAX_LISTED} more")
    return lines


def _weight(link: Link) -> str:
    if link.kind == "residual":
        return "same channel,"
    if link.kind == "gate":
        return "a product with"
    return f"q·k pair, factor {link.weight:.3g}," if link.kind == "score" else number(link.weight)


def link_hover(link: Link) -> str:
    """Hover text of a line."""
    arrow = "·" if link.kind in ("score", "gate") else "→"
    return f"{long_label(link.source)} {arrow} {long_label(link.target)}<br>{_LINK[link.kind]}" + (
        "" if link.kind in ("residual", "gate") else f" {number(link.weight)}"
    )


_LINK = {
    "weight": "weight",
    "score": "score pair: this key times this query, times",
    "gate": "this expert's share times this neuron (no weight)",
    "residual": "same residual channel, carried along (no weight, not counted)",
    "embed": "embedding weight",
    "shared": "embedding weight (a token of both prompts)",
    "position": "position weight",
    "several": "weights up to",
    "unembed": "unembedding weight",
}
