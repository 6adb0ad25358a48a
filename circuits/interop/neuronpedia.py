"""Attribution graphs: the JSON that circuit-tracer writes and Neuronpedia shows, in both directions.

A graph is of one prompt: a node is a part at a token, a link what one adds to another there. A circuit is of a task.
So ours is written as it runs on one prompt, and what that format has no word for stays out: constants, score pairs as
such (a link from key to query carries their product), and everything that the page computes.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import run_masked
from circuits.circuit.nodes import Edge, Node, is_pair, residual_links
from circuits.decompile.folded import answers_of, check_folds
from circuits.interop.neuronpedia_page import graph_to_html, graph_view
from circuits.model.sites import ORDER, Site
from circuits.model.transformer import SparseTransformer
from tasks import Task

__all__ = ["attribution_graph", "graph_to_html", "graph_view"]

N_PROMPTS = 50
"""Test pairs of a task from which a prompt is chosen: those of the explorer."""
Place = tuple[Node | str, int]
"""A node, or `embed`, or a logit's token id as text, and the position that it stands at."""


class Link(NamedTuple):
    """What one thing adds to another."""

    source: Place
    target: Place
    weight: float


def attribution_graph(
    model: SparseTransformer,
    circuit: Circuit,
    task: Task,
    *,
    pair: int = 0,
    view: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A circuit on the clean prompt of one test pair (0 to 49), as plain JSON in the schema of attribution graphs.

    A link is what its source adds to its target, before AbsTopK and activation; nodes that reach no answer are left
    out. view: what the explorer saved (its JSON, or `widget.state`); its pins, groups and names go along, a pinned node
    as all its places in the graph. Raises ValueError as `to_python` does, for another pair, and for a view of another
    circuit.
    """
    check_folds(model, circuit, task, "attribution_graph", "Draw it with circuit.plot().")
    if not 0 <= pair < N_PROMPTS:
        raise ValueError(f"pair: got {pair}; expected 0 to {N_PROMPTS - 1}, a test pair of the task.")
    batch = task.batch(N_PROMPTS, split="test", seed=0)
    tokens = batch.clean[pair, : int(batch.lengths[pair])]
    run = _Run(model, circuit, tokens, answers_of(task))
    links = list(run.links())
    reached = _reaching(links, run)
    texts = [task.tokenizer.token(token) for token in tokens.tolist()]
    placed = sorted(reached, key=run.order)
    asked = _Asked(view or {}, circuit, [(place[0], run.id(place)) for place in placed])
    return {
        "metadata": {
            "slug": f"{circuit.task}-{pair}",
            "scan": circuit.model_hash,
            "prompt": task.tokenizer.decode(tokens.tolist()),
            "prompt_tokens": texts,
            "schema_version": 1,
            "info": {"source": "sparse-circuits", "ablation": circuit.ablation},
        },
        "qParams": {
            "linkType": "both",
            "clickedId": "",
            "pinnedIds": asked.pins,
            "supernodes": asked.groups,
            "sg_pos": "",
        },
        "nodes": [run.node(place, task) | asked.name(place[0]) for place in placed],
        "links": [
            {"source": run.id(a), "target": run.id(b), "weight": weight}
            for a, b, weight in links
            if b in reached
        ],
    }


class _Asked:
    """Pins, groups and names of a view of the explorer, as the format has them."""

    def __init__(
        self, view: Mapping[str, Any], circuit: Circuit, placed: list[tuple[Node | str, str]]
    ) -> None:
        """placed: each part that the graph has, with the id of its place."""
        self.names = view.get("names", {})
        groups = view.get("groups", [])
        known = {str(node) for node in circuit.nodes}
        named = [*view.get("pins", []), *self.names, *(id for group in groups for id in group["ids"])]
        for id in named:
            if id not in known:
                raise ValueError(
                    f"view: it names {id!r}, which is no node of the circuit; expected a view of this circuit. "
                    "Save it from the page of circuit.to_html(path, model, task)."
                )
        places: dict[str, list[str]] = defaultdict(list)
        for part, id in placed:
            places[str(part)].append(id)
        self.pins = [id for node in view.get("pins", []) for id in places[node]]
        self.groups = [
            [group["name"], *(id for node in group["ids"] for id in places[node])] for group in groups
        ]

    def name(self, part: Node | str) -> dict[str, str]:
        """What a node was renamed to; nothing of others."""
        given = self.names.get(str(part)) if isinstance(part, Node) else None
        return {"clerp": given} if given else {}


class _Run:
    """One pass of a circuit over a prompt, and what each part adds to the next in it."""

    def __init__(
        self, model: SparseTransformer, circuit: Circuit, tokens: Tensor, answers: list[int]
    ) -> None:
        self.model, self.circuit, self.tokens, self.answers = model, circuit, tokens, answers
        self.n = len(tokens)
        self.seen: dict[str, Tensor] = {}
        layers = range(model.config.n_layers)
        names = [model.hook_name(site) for site in circuit.sites] + ["ln_final.hook_scale"]
        names += [f"blocks.{i}.{name}.hook_scale" for i in layers for name in ("ln1", "ln2")]
        names += [f"blocks.{i}.attn.hook_pattern" for i in layers]
        masks = {site: mask.to(model.W_E) for site, mask in circuit.to_mask().items()}
        edges = {key: mask.to(model.W_E) for key, mask in circuit.to_edge_mask().items()}
        keep = partial(_keep, self.seen)
        with torch.no_grad(), model.hooks(fwd_hooks=[(name, keep) for name in names]):
            logits = run_masked(model, tokens[None].to(model.W_E.device), masks, circuit.values, edges)
        self.logits = logits[0, -1].cpu()
        self.embedded = (model.W_E[tokens] + model.W_pos[: self.n]).detach()
        self.acts = {
            site: self.seen[model.hook_name(site)].reshape(self.n, -1).tolist() for site in circuit.sites
        }

    def links(self) -> Iterator[Link]:
        """All of them, in no particular order."""
        for edge in self.circuit.edges:
            yield from self._scores(edge) if is_pair(edge) else self._weighted(edge)
        for writer, reader in residual_links(self.circuit.nodes):
            for at in self._open(reader):
                yield Link((writer, at), (reader, at), self.act(writer, at) / self._scale(reader, at))
        for node in self.circuit.nodes:
            if node.site in ("attn_in", "mlp_in"):
                yield from self._embeddings(node)
        yield from self._answers()

    def act(self, node: Node, at: int) -> float:
        """Value of a node at a position."""
        return float(self.acts[node.at][at][node.index])

    def _weighted(self, edge: Edge) -> Iterator[Link]:
        source, target, weight = edge
        for at in range(self.n):
            if target.site != "attn_out":
                yield Link((source, at), (target, at), weight * self.act(source, at))
                continue
            row = self.pattern(source)[at]
            for j in range(at + 1):
                yield Link((source, j), (target, at), weight * float(row[j]) * self.act(source, j))

    def pattern(self, node: Node) -> Tensor:
        """Where the head of a q, k or v node looks: [query, key]."""
        head = node.index // self.model.config.d_head
        return self.seen[f"blocks.{node.layer}.attn.hook_pattern"][0, head]

    def _scores(self, edge: Edge) -> Iterator[Link]:
        key, query, scale = edge
        for at in range(self.n):
            for j in range(at + 1):
                product = scale * self.act(query, at) * self.act(key, j)
                if product:
                    yield Link((key, j), (query, at), product)

    def _open(self, reader: Node) -> list[int]:
        """Positions at which AbsTopK lets a reader through."""
        return [at for at in range(self.n) if self.act(reader, at)]

    def _scale(self, reader: Node, at: int) -> float:
        norm = "ln1" if reader.site == "attn_in" else "ln2"
        return float(self.seen[f"blocks.{reader.layer}.{norm}.hook_scale"][0, at, 0])

    def _embeddings(self, reader: Node) -> Iterator[Link]:
        for at in self._open(reader):
            entry = float(self.embedded[at, reader.index])
            if entry:
                yield Link(("embed", at), (reader, at), entry / self._scale(reader, at))

    def _answers(self) -> Iterator[Link]:
        last, token = self.n - 1, int(self.tokens[-1])
        scale = float(self.seen["ln_final.hook_scale"][0, -1, 0])
        W_U, bigram = self.model.W_U.detach(), self.model.bigram
        for answer in self.answers:
            for node in self.circuit.nodes:
                weight = float(W_U[node.index, answer]) if node.site in ("attn_out", "mlp_out") else 0.0
                if weight:
                    yield Link((node, last), (str(answer), last), weight * self.act(node, last) / scale)
            direct = float(self.embedded[-1] @ W_U[:, answer]) / scale
            direct += 0.0 if bigram is None else float(bigram[token, answer])
            yield Link(("embed", last), (str(answer), last), direct)

    def order(self, place: Place) -> tuple[int, int, int, int]:
        """Embeddings, then layer by layer, then answers; left to right within each."""
        what, at = place
        if isinstance(what, Node):
            return what.layer, ORDER.index(what.site), what.index, at
        return (-1, 0, 0, at) if what == "embed" else (self.model.config.n_layers, 0, int(what), at)

    def _layer_and_feature(self, place: Place) -> tuple[str, int]:
        """How the format numbers a part: its layer, and a number that is its own there."""
        what, at = place
        if what == "embed":
            return "E", int(self.tokens[at])
        if isinstance(what, str):
            return str(self.model.config.n_layers), int(what)
        before = ORDER[: ORDER.index(what.site)]
        widths = [self.circuit.widths.get(Site(what.layer, name), 0) for name in before]
        return str(what.layer), sum(widths) + what.index

    def id(self, place: Place) -> str:
        """`layer_feature_position`."""
        layer, feature = self._layer_and_feature(place)
        return f"{layer}_{feature}_{place[1]}"

    def node(self, place: Place, task: Task) -> dict[str, Any]:
        """A node as the format has it."""
        what, at = place
        layer, feature = self._layer_and_feature(place)
        text = None if isinstance(what, Node) else task.tokenizer.token(feature)
        is_logit = isinstance(what, str) and what != "embed"
        share = float(self.logits.softmax(-1)[feature]) if is_logit else 0.0
        kind = "sparse transformer node" if isinstance(what, Node) else "logit" if is_logit else "embedding"
        facts = self.circuit.facts.get(what) if isinstance(what, Node) else None
        return {
            "node_id": self.id(place),
            "jsNodeId": f"{layer}_{feature}-{at}",
            "feature": feature,
            "layer": layer,
            "ctx_idx": at,
            "reverse_ctx_idx": self.n - 1 - at,
            "run_idx": 0,
            "feature_type": kind,
            "token_prob": share,
            "is_target_logit": is_logit and feature == max(self.answers, key=lambda a: float(self.logits[a])),
            "clerp": str(what) if text is None else f"Output {text} (p={share:.3f})" if is_logit else text,
            "influence": None if facts is None or facts.effect != facts.effect else facts.effect,
            "activation": self.act(what, at) if isinstance(what, Node) else None,
        }


def _keep(seen: dict[str, Tensor], value: Tensor, hook: Any) -> None:
    seen[hook.name] = value.detach().cpu()


def _reaching(links: Iterable[Link], run: _Run) -> set[Place]:
    """What has a way to an answer; a query counts where what its head carries does."""
    into: dict[Place, list[Place]] = defaultdict(list)
    for source, target, _ in links:
        into[target].append(source)
    for edge in run.circuit.edges:
        if edge.target.site == "attn_out":
            for query in _queries(run, edge.source):
                for at in range(run.n):
                    into[edge.target, at].append((query, at))
    last: list[Place] = [(str(answer), run.n - 1) for answer in run.answers]
    reached = set(last)
    while last:
        new = {source for target in last for source in into[target]} - reached
        reached |= new
        last = list(new)
    return reached


def _queries(run: _Run, value: Node) -> list[Node]:
    d_head = run.model.config.d_head
    same = (value.layer, value.index // d_head)
    return [
        n
        for n in run.circuit.nodes
        if n.site in ("attn_q", "attn_k") and (n.layer, n.index // d_head) == same
    ]
