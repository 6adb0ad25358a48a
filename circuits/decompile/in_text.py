"""Where nodes are high in running text, rather than on a task's prompts."""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from circuits.circuit.nodes import Node, numbers_of
from circuits.decompile.observe import keep, one_number
from circuits.model.compute import resting
from circuits.model.sites import Site
from circuits.model.subject import Subject
from circuits.model.text import check_corpus
from tasks import Corpus
from tasks.base import Split

AT_ONCE = 16
"""Windows of text that go through the model together."""
SHOWN = 12
"""Tokens of text that a context ends with."""


def contexts(
    model: Subject,
    nodes: Sequence[Node],
    corpus: Corpus,
    *,
    n: int = 5,
    n_windows: int = 128,
    split: Split = "val",
    seed: int = 0,
) -> dict[Node, list[str]]:
    """Of each node, the stretches of text at whose last token it is farthest from 0, and its value there.

    Windows of the model's whole context are drawn from a split of the corpus; the model runs as it is, nothing is held
    at its mean. Each text once, farthest first. Of a whole head the length of what it carries. Raises ValueError for
    counts below 1, and a corpus of other tokens.

    Examples:
        >>> found = circuits.load("quotes-128")
        >>> node = next(node for node in found.circuit.nodes if node.site == "attn_v")
        >>> seen = circuits.decompile.contexts(found.model, [node], found.corpus, n=2, n_windows=8)
        >>> len(seen[node])
        2
    """
    for name, count in (("n", n), ("n_windows", n_windows)):
        if count < 1:
            raise ValueError(f"{name}: got {count}; expected at least 1.")
    check_corpus(model, corpus)
    generator = torch.Generator().manual_seed(seed)
    windows = corpus.windows(n_windows, model.n_ctx, split=split, generator=generator)
    chunks = [_values(model, nodes, rows) for rows in windows.split(AT_ONCE)]
    return {
        node: _farthest(torch.cat([chunk[i] for chunk in chunks]), windows, corpus, n)
        for i, node in enumerate(nodes)
    }


def _values(
    model: Subject, nodes: Sequence[Node], rows: Int64[Tensor, "row pos"]
) -> list[Float[Tensor, "row pos"]]:
    """Each node's value at every token."""
    kept: dict[Site, Tensor] = {}
    hooks = [(model.hook_name(site), partial(keep, kept, site)) for site in {node.at for node in nodes}]
    with torch.no_grad(), resting(model), model.hooks(fwd_hooks=hooks):
        model(rows.to(model.like.device))
    return [one_number(numbers_of(kept[node.at], node, model.widths[node.at])).cpu() for node in nodes]


def _farthest(
    values: Float[Tensor, "row pos"], windows: Int64[Tensor, "row pos"], corpus: Corpus, n: int
) -> list[str]:
    order = values.abs().flatten().argsort(descending=True, stable=True)
    found: dict[str, float] = {}
    for place in order[: 50 * n].tolist():
        row, at = divmod(place, windows.shape[1])
        text = corpus.tokenizer.decode(windows[row, max(0, at + 1 - SHOWN) : at + 1].tolist())
        found.setdefault(text, float(values[row, at]))
        if len(found) == n:
            break
    return [f"{text} ({value:+.2f})" for text, value in found.items()]
