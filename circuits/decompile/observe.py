"""What the nodes of a circuit do on the task's prompts: where they are high, and what they can be named after."""

import re
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.circuit.circuit import Circuit
from circuits.circuit.evaluator import Evaluator
from circuits.circuit.masked import run_masked
from circuits.circuit.nodes import Node, numbers_of
from circuits.circuit.score import margins, score_margins
from circuits.model.sites import Site
from circuits.model.subject import SparseSubject, Subject
from tasks import Task

_WORDS = {
    "'": "apostrophe",
    '"': "double_quote",
    "[": "open_bracket",
    "]": "close_bracket",
    "]]": "close_two",
    "(": "open_paren",
    ")": "close_paren",
    "=": "equals",
    "+": "plus",
    "-": "minus",
    "*": "star",
    ",": "comma",
    " ": "space",
    "·": "space",
    "⏎": "newline",
    "\n": "newline",
}


OFTEN = 16
"""Occurrences below which a token is no name for a node: the mean over a few says little."""


class Observed:
    """What the nodes of a circuit do on the task's prompts, while only the circuit is kept."""

    def __init__(self, model: Subject, circuit: Circuit, task: Task, n_pairs: int) -> None:
        self.model, self.circuit, self.task = model, circuit, task
        self.targets = task.batch(n_pairs, split="test", seed=0).tokens_and_targets()
        values = {site: circuit.values[site] for site in circuit.sites}
        self.judge = Evaluator(model, task, circuit.criterion, values)
        self.scale = self.judge.scale(circuit.nodes, circuit.edges)
        self.kept: dict[Site, Tensor] = {}
        self._real_values: dict[Site, np.ndarray] = {}
        self.loss(circuit.nodes, self.kept)
        n_pos = self.targets.tokens.shape[1]
        self.real = torch.arange(n_pos) <= self.targets.position[:, None]

    def loss(self, nodes: Sequence[Node], kept: dict[Site, Tensor] | None = None) -> float:
        """Task loss, calibrated as pruning did, with these nodes kept; fills `kept` with the values of their sites."""
        some = set(nodes)
        like = self.model.like
        masks = {s: m.to(like) for s, m in self.circuit.to_mask().items()}
        for node in self.circuit.nodes:
            masks[node.at][node.index] = float(node in some)
        cut, model = self.circuit.to_edge_mask(), self.model
        weights = model.weights_among(self.circuit.sites) if isinstance(model, SparseSubject) else ()
        edges = {at: cut[at].to(like) for at in weights}
        values = {site: value.to(like) for site, value in self.circuit.values.items()}
        into = {} if kept is None else kept
        hooks = [(self.model.hook_name(site), partial(keep, into, site)) for site in self.model.sites()]
        with torch.no_grad(), self.model.hooks(fwd_hooks=hooks):
            logits = run_masked(self.model, self.targets.tokens, masks, values, edges)
        return score_margins(self.scale * margins(logits, self.targets)).loss

    def column(self, node: Node) -> Float[Tensor, "rows pos"]:
        """A node's value at every token; of a whole head, the length of what it carries."""
        own = numbers_of(self.kept[node.at], node, self.circuit.widths[node.at])
        return one_number(own)

    def word(self, node: Node) -> str:
        """What the node departs most from its mean on, as part of a Python name: a token, or the answer to come."""
        values = self.column(node)
        real, tokens = values[self.real], self.targets.tokens[self.real]
        last = values[torch.arange(len(values)), self.targets.position]
        found = [
            (abs(float(real[tokens == t].mean() - real.mean())), int(t), "")
            for t, n in zip(*tokens.unique(return_counts=True), strict=True)
            if n >= OFTEN
        ]
        found += [
            (abs(float(last[self.targets.answer == t].mean() - last.mean())), int(t), "then_")
            for t in self.targets.answer.unique()
        ]
        _, token, prefix = max(found)
        text = self.task.tokenizer.token(token)
        plain = _WORDS.get(text, re.sub(r"\W", "", text, flags=re.ASCII)) or "token"
        return prefix + (f"digit_{plain}" if plain[0].isdigit() and not prefix else plain)

    def constant(self, node: Node) -> float | None:
        """The value that a node has at every real token, to a thousandth; None where it varies."""
        values = self._at_real(node)
        low, high = float(values.min()), float(values.max())
        return low if high - low < 1e-3 else None

    def contexts(self, node: Node, *, highest: bool, n: int = 3) -> list[str]:
        """The places where the node is highest or lowest: the text up to there, and the value."""
        return [f"{''.join(p.texts)} ({p.value:+.2f})" for p in self.places(node, highest=highest, n=n)]

    def places(self, node: Node, *, highest: bool, n: int = 3) -> list["Place"]:
        """Where the node is highest or lowest, no text twice; the last token of each is the one meant."""
        values = self._at_real(node)
        found: dict[tuple[str, ...], Place] = {}
        for place in _least(-values if highest else values, 50 * n):
            texts = self._texts[place]
            found.setdefault(texts, Place(texts, float(values[place])))
            if len(found) == n:
                break
        return list(found.values())

    def _at_real(self, node: Node) -> np.ndarray:
        """A node's values at real tokens, prompt after prompt: [tokens]; of a whole head, lengths."""
        site, width = node.at, self.circuit.widths[node.at]
        if site not in self._real_values:
            values = self.kept[site][self.real].float().unflatten(-1, (width, -1))
            values = values[..., 0] if values.shape[-1] == 1 else values.norm(dim=-1)
            self._real_values[site] = values.T.contiguous().cpu().numpy()
        return self._real_values[site][node.index]

    @cached_property
    def _texts(self) -> list[tuple[str, ...]]:
        """Up to six tokens that end at each real one, in the order of `_at_real`."""
        rows, real = self.targets.tokens.tolist(), self.real.tolist()
        said = {id: self.task.tokenizer.token(id) for id in {id for row in rows for id in row}}
        return [
            tuple(said[id] for id in row[max(0, at - 5) : at + 1])
            for row, here in zip(rows, real, strict=True)
            for at in range(len(row))
            if here[at]
        ]


def _least(values: np.ndarray, n: int) -> list[int]:
    """Where the n least values are, in rising order; among equal ones, the first come first."""
    n = min(n, len(values))
    few = np.flatnonzero(values <= np.partition(values, n - 1)[n - 1])
    return few[np.argsort(values[few], kind="stable")][:n].tolist()


def one_number(numbers: Float[Tensor, "row pos own"]) -> Float[Tensor, "row pos"]:
    """What a node is at every token: its number, or of a whole head the length of its numbers."""
    return numbers[..., 0] if numbers.shape[-1] == 1 else numbers.norm(dim=-1)


def keep(into: dict[Site, Tensor], site: Site, value: Tensor, hook: Any) -> None:
    """A hook that puts a site's values, [row, pos, number], into a dictionary."""
    into[site] = value.flatten(2)


class Place(NamedTuple):
    """A token of a prompt at which a node has a value."""

    texts: tuple[str, ...]
    """Up to six tokens, printable; the last is the one that the value stands at."""
    value: float
    """Of the node there."""
