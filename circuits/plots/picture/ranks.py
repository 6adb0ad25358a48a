"""In which order a picture shows things: stacks, layers and sites, and which nodes stand together in a head."""

from typing import TypeGuard

from circuits.circuit.nodes import Node
from circuits.model.sites import ORDER, ROWS, Stack

Key = Node | str
"""A node, or what `io_end` names: tokens and positions going in, `logit:...` coming out; or one of these two."""
PROMPT, MARGIN = "prompt:prompt", "margin:answer over foil"
"""Ends of measured effects: all tokens at once, and the margin."""


def is_input(end: str) -> bool:
    """Whether what is no node goes in."""
    return not end.startswith(("logit:", "margin:"))


def is_token(end: str) -> bool:
    """Whether it is one token, and no position or group."""
    return end.startswith(("token:", "logit:"))


def end_text(end: str) -> str:
    """The words for a token, a position or a logit."""
    text = end.partition(":")[2]
    return text.partition(":")[2] if end.startswith("several:") else text


def family(site: str) -> str:
    """`attn`, `cross` or `mlp`."""
    return site.split("_")[0]


HEAD_SITES = [row.name for row in ROWS.values() if row.per_head]
"""Sites whose nodes are drawn in the box of their head."""
RANKS = {
    name: ORDER.index(next(site for site in HEAD_SITES if family(site) == family(name)))
    if name in HEAD_SITES
    else i
    for i, name in enumerate(ORDER)
}
"""Sites of one layer in the order of their ranks; those of a head share one."""
STACK_RANKS: dict[Stack, int] = {"encoder": 0, "decoder": 1}
"""Stacks stand side by side, in forward order."""

LAST = 1_000_000
"""In place of a layer for the logits, which come after all."""


def rank_of(key: Key) -> tuple[int, int, int]:
    """Stack, layer and rank within the layer, by which things are set in forward order."""
    if isinstance(key, Node):
        return STACK_RANKS[key.stack], key.layer, RANKS[key.site]
    return (-1, 0, 0) if is_input(key) else (LAST, 0, 0)


def first_order(key: Key) -> tuple[int, int, int, int, str]:
    """Forward; inside a head first q, then k, then v, and so their boxes read alike."""
    if isinstance(key, Node):
        return *rank_of(key), ORDER.index(key.site), f"{key.index:09d}"
    return *rank_of(key), 0, key


def head_of(node: Node, d_head: int) -> tuple[str, int, str, int]:
    """Stack, layer, kind of attention and number of the head that a q, k or v channel is of."""
    return node.stack, node.layer, family(node.site), node.index // d_head


def in_head(item: object) -> TypeGuard[Node]:
    """Whether something is a q, k or v channel, which stands in the box of its head."""
    return isinstance(item, Node) and ROWS[item.site].per_head


def site_of(key: Key) -> tuple[Stack, int | None, str]:
    """Stack, layer and name of the column that a node, a token or a logit stands in."""
    if isinstance(key, Node):
        return key.stack, key.layer, key.site
    return "decoder", None, "tokens" if is_input(key) else "logits"
