"""A circuit as source code: one short numpy function that computes the answer logits from tokens.

Everything outside the circuit is a constant, so most of the model folds away: a node is a line with the
weights of its edges and one number for all the rest. Two things look at whole vectors, and so need more than
the circuit: RMSNorm divides by the size of the whole residual stream, which holds the embedding of the token,
and AbsTopK keeps a node only if it is large enough among its neighbours. For the first the function carries
the embedding tables; for the second, the constants that the node competes with (`bars`).
"""

import base64
import math
import re
import zlib
from keyword import iskeyword
from typing import Any
from unicodedata import normalize

import numpy as np
import torch
from torch import Tensor

from circuits.circuit.circuit import Circuit
from circuits.circuit.nodes import Edge, Node
from circuits.decompile.folded import answers_of, check_folds, packable, rest_of
from circuits.decompile.observe import Observed
from circuits.decompile.text import HEAD, HELPERS, TAKEN, one_line
from circuits.model.config import Activation
from circuits.model.kinds import of_ours
from circuits.model.mlp import ACTIVATIONS
from circuits.model.sites import TABLE, Site, SiteName
from circuits.model.transformer import SparseTransformer
from tasks import Task

_SHORT: dict[SiteName, str] = {row.name: row.label.replace(" ", "_") for row in TABLE}
_AROUND: dict[Activation, str] = {"gelu": "gelu({})", "relu": "np.maximum({}, 0)"}
"""Activations as they are written."""


@of_ours
def to_python(model: SparseTransformer, circuit: Circuit, task: Task, *, n_pairs: int = 64) -> str:
    """Source of a module with one function, named after the task: token ids in, logits of the answers out.

    It needs numpy alone and agrees with `run_circuit` at the last token. `n_pairs` prompt pairs decide what
    each node is named after. Raises ValueError when the circuit is of another model, leaves a site alone or was found
    under an ablation of many values, when the task does not fit, and for a model with composed heads.

    Examples:
        >>> found = circuits.load("quotes-handmade")
        >>> source = circuits.decompile.to_python(found.model, found.circuit, found.task)
        >>> compile(source, "quotes.py", "exec") is not None
        True
    """
    instead = "Ask describe for words, or run the circuit itself with run_circuit."
    check_folds(model, circuit, task, "to_python", instead)
    return _Writer(model, circuit, task, n_pairs).source()


def function_name(circuit: Circuit) -> str:
    """What the function that `to_python` writes is called: the task, as a Python name that nothing else there has.

    Examples:
        >>> circuits.decompile.function_name(circuits.load("quotes-handmade").circuit)
        'quotes'
    """
    name = re.sub(r"\W", "_", normalize("NFKC", circuit.task)) or "circuit"
    if not f"_{name}".isidentifier():  # a letter to re, but not to Python
        name = re.sub(r"\W", "_", name, flags=re.ASCII)
    return name if name.isidentifier() and name not in TAKEN and not iskeyword(name) else f"task_{name}"


class _Writer:
    """Writes the lines, sublayer by sublayer, and remembers the constants that are still to be added."""

    def __init__(self, model: SparseTransformer, circuit: Circuit, task: Task, n_pairs: int) -> None:
        self.model, self.circuit, self.task = model, circuit, task
        seen = Observed(model, circuit, task, n_pairs)
        self.names = {n: f"{seen.word(n)}_{_SHORT[n.site]}{n.layer}_{n.index}" for n in circuit.nodes}
        self.by_site: dict[Site, list[Node]] = {}
        for node in circuit.nodes:
            self.by_site.setdefault(node.at, []).append(node)
        self.into: dict[Node, list[Edge]] = {node: [] for node in circuit.nodes}
        for edge in circuit.edges:
            if edge.source.site != "attn_k":
                self.into[edge.target].append(edge)
        self.pending = torch.zeros(model.config.d_model)
        self.constants: list[Tensor] = []
        self.body: list[str] = []
        self.answers = answers_of(task)

    def source(self) -> str:
        """The whole module."""
        for layer in range(self.model.config.n_layers):
            self._attention(layer)
            self._mlp(layer)
        self._flush()
        logits = "x[-1] / size(x[-1]) @ UNEMBED + OFFSET" + (
            " + BIGRAM[tokens[-1]]" if self.model.bigram is not None else ""
        )
        head = HEAD.format(
            task=one_line(self.circuit.task),
            n_nodes=self.circuit.n_nodes,
            n_edges=self.circuit.n_edges,
            model=self.circuit.model_hash,
            eps=self.model.config.norm_eps,
        )
        texts = [one_line(self.task.tokenizer.token(token)) for token in self.answers]
        body = [
            f"def {function_name(self.circuit)}(tokens):",
            f"    # Logits of the tokens {' '.join(texts)} after the prompt `tokens`, a list of ids.",
            "    x = EMBED[tokens] + PLACE[: len(tokens)]",
            *(f"    {line}" for line in self.body),
            f"    return {logits}",
        ]
        called = {helper for helper in HELPERS if any(f"{helper}(" in line for line in body)}
        if "compete" in called:
            called.add("keep")
        used = [text for helper, text in HELPERS.items() if helper in called]
        parts = [head.strip(), *used, "\n".join(self._tables()), "\n".join(body)]
        return "\n".join(parts) + "\n"

    def _tables(self) -> list[str]:
        model = self.model
        tables = {
            "EMBED": model.W_E,
            "PLACE": model.W_pos,
            "REST": torch.stack(self.constants) if self.constants else torch.zeros(0, model.config.d_model),
            "UNEMBED": model.W_U[:, self.answers],
            "OFFSET": model.b_U[self.answers],
        }
        if model.bigram is not None:
            tables["BIGRAM"] = model.bigram[:, self.answers]
        return [f"{name} = {_packed(table.detach())}" for name, table in tables.items()]

    def _attention(self, layer: int) -> None:
        site = Site(layer, "attn_in")
        if any(Site(layer, name) in self.by_site for name in ("attn_in", "attn_q", "attn_k", "attn_v")):
            self._read(site, f"layer {layer}, attention")
            for name in ("attn_q", "attn_k", "attn_v"):
                self._computed(Site(layer, name), {})
            self._patterns(layer)
        mixed = {
            node: f"look{layer}_{node.index // self.model.config.d_head} @ {self.names[node]}"
            for node in self.by_site.get(Site(layer, "attn_v"), [])
        }
        self._write(Site(layer, "attn_out"), mixed)

    def _mlp(self, layer: int) -> None:
        if any(Site(layer, name) in self.by_site for name in ("mlp_in", "mlp_neuron")):
            self._read(Site(layer, "mlp_in"), f"layer {layer}, MLP")
            self._computed(Site(layer, "mlp_neuron"), {}, around=_AROUND[self.model.config.act])
        self._write(Site(layer, "mlp_out"), {})

    def _read(self, site: Site, title: str) -> None:
        """Nodes that read the residual stream."""
        self._flush()
        self.body.append(f"# {title}")
        nodes = self.by_site.get(site, [])
        k = self.model.config.topk(site)
        if nodes:
            self.body.append("h = x / size(x)" if k is None else f"h = largest(x / size(x), {k})")
        self.body += [f"{self.names[node]} = h[:, {node.index}]" for node in nodes]

    def _computed(self, site: Site, mixed: dict[Node, str], around: str = "{}", onto: str = "") -> None:
        """Nodes that are a weighted sum of other nodes and a constant; `onto`: added to it straight away."""
        nodes, rest = self.by_site.get(site, []), rest_of(self.model, self.circuit, site)
        bars = self._bars(site, nodes, rest, activated=around != "{}")
        for node in nodes:
            terms = [f"{_number(e.weight)} * {self._term(e.source, mixed)}" for e in self.into[node]]
            terms.append(_number(float(rest[node.index])))
            line = around.format(" + ".join(terms).replace("+ -", "- "))
            if not self.into[node]:
                line = f"np.full(len(tokens), {line})"
            if len(bars) == 1:
                line = f"keep({line}, {bars[0]})"
            if onto and len(bars) < 2:
                self.body.append(f"{onto}[:, {node.index}] += {line}  # {self.names[node]}")
            else:
                self.body.append(f"{self.names[node]} = {line}")
        if len(bars) > 1:
            names = ", ".join(self.names[node] for node in nodes)
            places = ", ".join(str(node.index) for node in nodes)
            values = f"compete([{names}], bars=[{', '.join(bars)}])"
            self.body.append(f"{onto}[:, [{places}]] += {values}.T" if onto else f"{names} = {values}")

    def _term(self, node: Node, mixed: dict[Node, str]) -> str:
        return f"({mixed[node]})" if node in mixed else self.names[node]

    def _bars(self, site: Site, nodes: list[Node], rest: Tensor, *, activated: bool) -> list[str]:
        """AbsTopK: what a node has to exceed, by its rank among the circuit's nodes; none if it always does.

        Where r nodes of the circuit are larger, k - r - 1 of the constant neighbours may be larger too.
        """
        k = self.model.config.topk(site)
        if not nodes or k is None or k >= len(rest):
            return []
        rest = ACTIVATIONS[self.model.config.act](rest) if activated else rest
        own = {node.index for node in nodes}
        others = sorted((abs(float(c)) for i, c in enumerate(rest) if i not in own), reverse=True)
        bars = [self._bar(others, k - rank - 1) for rank in range(len(nodes))]
        return [_number(bar) if bar < math.inf else "np.inf" for bar in bars] if max(bars) > 0 else []

    @staticmethod
    def _bar(others: list[float], allowed: int) -> float:
        if allowed < 0:
            return math.inf
        return others[allowed] if allowed < len(others) else 0.0

    def _patterns(self, layer: int) -> None:
        """Where each head looks that moves a node of the circuit."""
        config = self.model.config
        attn: Any = self.model.blocks[layer].attn
        for head in sorted({n.index // config.d_head for n in self.by_site.get(Site(layer, "attn_v"), [])}):
            terms, rest = [], 0.0
            for c in range(head * config.d_head, (head + 1) * config.d_head):
                q, k = (Node(layer, name, c) for name in ("attn_q", "attn_k"))
                q_rest, k_rest = (float(self.circuit.values[node.at][c]) for node in (q, k))
                if q in self.names and k in self.names:
                    terms.append(f"np.outer({self.names[q]}, {self.names[k]})")
                elif q in self.names and k_rest:
                    terms.append(f"{_number(k_rest)} * {self.names[q]}[:, None]")
                elif k in self.names and q_rest:
                    terms.append(f"{_number(q_rest)} * {self.names[k]}")
                elif q not in self.names and k not in self.names:
                    rest += q_rest * k_rest
            scores = " + ".join([*terms, _number(rest)]).replace("+ -", "- ")
            sink = _number(float(attn.sink.detach()[head])) if attn.sink is not None else "-np.inf"
            scale = _number(config.d_head**-0.5)
            self.body.append(f"look{layer}_{head} = attend({scale} * ({scores}), {sink}, len(tokens))")

    def _write(self, site: Site, mixed: dict[Node, str]) -> None:
        """Nodes that are added to the residual stream; the other coordinates add a constant."""
        nodes = self.by_site.get(site, [])
        rest = self.circuit.values[site].clone()
        if nodes:
            self._computed(site, mixed, onto="x")
            rest[[node.index for node in nodes]] = 0
        self.pending = self.pending + rest

    def _flush(self) -> None:
        if bool(self.pending.any()):
            self.body.append(f"x = x + REST[{len(self.constants)}]")
            self.constants.append(self.pending)
            self.pending = torch.zeros_like(self.pending)


def _number(value: float) -> str:
    """Short, and exact in float32."""
    return str(np.float32(value))


def _packed(table: Tensor) -> str:
    data = packable(table).numpy().astype("<f4")
    text = base64.b85encode(zlib.compress(data.tobytes(), 9)).decode()
    return f'table({data.shape}, "{text}")'
