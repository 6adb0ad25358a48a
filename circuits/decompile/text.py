"""The fixed parts of decompiled source: its head, and the helpers that a function may call."""

import builtins

HEAD = """
# The circuit for {task}: {n_nodes} nodes, {n_edges} edges, of model {model}. Needs numpy alone.
import base64, math, zlib
import numpy as np

def table(shape, text):  # what is in a table belongs to the whole model, not to the circuit
    return np.frombuffer(zlib.decompress(base64.b85decode(text)), "<f4").reshape(shape)

def size(x):  # root mean square of each row
    return np.sqrt((x**2).mean(-1, keepdims=True) + {eps!r})
"""

HELPERS = {
    "largest": """def largest(x, k):  # the k entries of largest magnitude in each row, the rest zero
    rank = np.argsort(np.argsort(-abs(x), axis=-1, kind="stable"), axis=-1)
    return np.where(rank < k, x, 0)""",
    "keep": """def keep(node, bar):  # zero where the node is no larger than the neighbours it competes with
    return np.where(abs(node) > bar, node, 0)""",
    "compete": """def compete(nodes, bars):  # the same for several nodes; the bar depends on a node's rank among them
    rank = np.argsort(np.argsort(-abs(np.array(nodes)), axis=0, kind="stable"), axis=0)
    return keep(np.array(nodes), np.array(bars)[rank])""",
    "attend": """def attend(scores, sink, n):  # causal softmax, a share of which goes to the sink
    scores = np.where(np.tri(n), scores, -np.inf)
    parts = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), sink))
    return parts / (parts.sum(-1, keepdims=True) + np.exp(sink - np.maximum(scores.max(-1, keepdims=True), sink)))""",
    "gelu": """def gelu(x):  # x times the share of a normal distribution that lies below it
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))""",
    "relu": """def relu(x):  # x where it is positive, else zero
    return np.maximum(x, 0)""",
}

TAKEN = {
    *("base64", "math", "zlib", "np", "table", "size", *HELPERS),
    *("EMBED", "PLACE", "REST", "UNEMBED", "OFFSET", "BIGRAM", "tokens", "x", "h"),
    *dir(builtins),
}
"""Names that mean something else in the source; no function may be called so."""


def one_line(text: str) -> str:
    """A text as it stands in a comment: what does not print, such as the end of a line, is written as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
