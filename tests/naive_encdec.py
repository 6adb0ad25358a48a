"""The encoder-decoder once more, from its definition, in float64: what analyses of it are held against.

It shares no code with `circuits.model`: it reads a configuration, and weights by name.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from naive_forward import gelu
from naive_turbo_forward import NaiveTurbo
from torch import Tensor

from circuits.circuit.circuit import Circuit
from circuits.model.config import ModelConfig
from circuits.model.sites import Site, WeightAt
from circuits.model.transformer import SparseTransformer

ENDS = {"Q": ("in", "q"), "K": ("in", "k"), "V": ("in", "v"), "O": ("v", "out")}
WEIGHTS = {
    **{f"W_{c}": (f"attn_{a}", f"attn_{b}", f"attn.{c.lower()}") for c, (a, b) in ENDS.items()},
    **{f"W_C{c}": (f"cross_{a}", f"cross_{b}", f"cross.{c.lower()}") for c, (a, b) in ENDS.items()},
    "W_CK": ("cross_memory", "cross_k", "cross.k"),
    "W_CV": ("cross_memory", "cross_v", "cross.v"),
    "W_in": ("mlp_in", "mlp_neuron", "mlp.up"),
    "W_out": ("mlp_neuron", "mlp_out", "mlp.down"),
}
"""By name: the site that a weight reads, the one that it writes, and where it is found in its layer."""


@dataclass(frozen=True, kw_only=True)
class NaiveEncDec:
    """A configuration, weights by name, and what is masked."""

    config: ModelConfig
    weights: Mapping[str, Tensor]
    masks: Mapping[Site, Tensor] = field(default_factory=dict)
    cut: Mapping[WeightAt, Tensor] = field(default_factory=dict)
    values: Mapping[Site, Tensor] = field(default_factory=dict)
    turbo: NaiveTurbo | None = None
    "Attention in few bits; None: as it is."

    @classmethod
    def of(cls, model: SparseTransformer) -> "NaiveEncDec":
        return cls(
            config=model.config, weights={k: v.double().clone() for k, v in model.state_dict().items()}
        )

    def of_circuit(self, circuit: Circuit, *, inverse: bool = False) -> "NaiveEncDec":
        """Only the circuit kept; inverse: everything but its nodes, and all weights."""
        masks = {
            site: torch.full((width,), float(inverse)).double() for site, width in circuit.widths.items()
        }
        for node in circuit.nodes:
            masks[Site(node.layer, node.site, node.stack)][node.index] = float(not inverse)
        cut = {} if inverse else {at: torch.zeros(self.matrix(at).shape).double() for at in self.places()}
        for edge in () if inverse else circuit.edges:
            for at in cut:
                source, target, _ = WEIGHTS[at.name]
                if (edge.source.at, edge.target.at) == (
                    Site(at.layer, source, at.stack),  # type: ignore[arg-type]
                    Site(at.layer, target, at.stack),  # type: ignore[arg-type]
                ):
                    cut[at][edge.source.index, edge.target.index] = 1
        values = {site: value.double() for site, value in circuit.values.items()}
        return replace(self, masks=masks, cut=cut, values=values)

    def places(self) -> list[WeightAt]:
        names = {"encoder": [n for n in WEIGHTS if n[2] != "C"], "decoder": list(WEIGHTS)}
        layers = range(self.config.n_layers)
        return [WeightAt(i, n, stack) for stack, own in names.items() for i in layers for n in own]  # type: ignore[arg-type]

    def matrix(self, at: WeightAt, kind: str = "weight") -> Tensor:
        return self.weights[f"{_prefix(at.stack)}blocks.{at.layer}.{WEIGHTS[at.name][2]}.{kind}"]

    def run(self, tokens: Tensor) -> tuple[Tensor, dict[Site, Tensor]]:
        """Logits [batch, pos, d_vocab], and every site's value before it was masked."""
        config, seen = self.config, {}
        source, target = tokens[:, : config.n_source], tokens[:, config.n_source :]
        real = (source != config.pad)[:, None, :].expand(-1, config.n_source, -1)
        y = self._stack("encoder", self._embedded(source, "encoder."), seen, real, None, real)
        y = self._norm(y, "encoder.ln_final") if config.norm_position == "pre" else y
        causal = torch.ones(target.shape[1], target.shape[1]).tril().bool().expand(len(tokens), -1, -1)
        across = real[:, :1].expand(-1, target.shape[1], -1)
        x = self._stack("decoder", self._embedded(target, ""), seen, causal, y, across)
        x = self._norm(x, "ln_final") if config.norm_position == "pre" else x
        W_U = self.weights["W_E"].T if config.tied else self.weights["unembed.W_U"]
        logits = x @ W_U + self.weights["unembed.b_U"]
        if config.bigram:
            logits = logits + self.weights["bigram"][target]
        return torch.cat([torch.zeros(*source.shape, logits.shape[-1]).double(), logits], 1), seen

    def _embedded(self, tokens: Tensor, prefix: str) -> Tensor:
        config, w = self.config, self.weights
        table = w["W_E"] if config.tied else w[f"{prefix}W_E"]
        scale = math.sqrt(config.d_model) if config.embed_scale else 1.0
        if config.positions == "learned":
            positions = w[f"{prefix}W_pos"][: tokens.shape[1]]
        else:
            p = torch.arange(tokens.shape[1]).double()[:, None]
            i = torch.arange(config.d_model)
            angle = p / 10_000 ** ((i - i % 2) / config.d_model)
            positions = torch.where(i % 2 == 0, angle.sin(), angle.cos())
        return scale * table[tokens] + positions

    def _stack(
        self, stack: str, x: Tensor, seen: Any, own: Tensor, memory: Tensor | None, across: Tensor
    ) -> Tensor:
        for layer in range(self.config.n_layers):
            parts = ["attn", *(["cross"] if memory is not None else []), "mlp"]
            for part in parts:
                name = f"{_prefix(stack)}blocks.{layer}.{dict(attn='ln1', cross='ln_cross', mlp='ln2')[part]}"
                read = x if self.config.norm_position == "post" else self._norm(x, name)
                at = (stack, layer, seen)
                if part == "mlp":
                    x = x + self._mlp(at, read)
                else:
                    x = x + self._attention(at, part, read, memory, own if part == "attn" else across)
                x = self._norm(x, name) if self.config.norm_position == "post" else x
        return x

    def _attention(self, at: Any, part: str, x: Tensor, memory: Tensor | None, open: Tensor) -> Tensor:
        d, letter = self.config.d_head, "" if part == "attn" else "C"
        x = self._site(at, f"{part}_in", x)
        y = x if part == "attn" else self._site(at, "cross_memory", memory)
        q, k, v = (
            self._site(at, f"{part}_{c.lower()}", self._linear(at, f"W_{letter}{c}", z))
            for c, z in (("Q", x), ("K", y), ("V", y))
        )
        sink = self.weights[f"{_prefix(at[0])}blocks.{at[1]}.{part}.sink"] if self.config.sink else None
        if self.turbo is not None:
            z = self._in_few_bits(q, k, v, sink, open)
            return self._site(at, f"{part}_out", self._linear(at, f"W_{letter}O", z))
        out = []
        for h in range(self.config.n_heads):
            own = slice(h * d, (h + 1) * d)
            weight = (q[..., own] @ k[..., own].mT / math.sqrt(d)).exp() * open
            total = weight.sum(-1, keepdim=True)
            if sink is not None:
                total = total + sink[h].exp()
            out.append(weight / total @ v[..., own])
        return self._site(at, f"{part}_out", self._linear(at, f"W_{letter}O", torch.cat(out, -1)))

    def _in_few_bits(self, q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, open: Tensor) -> Tensor:
        assert self.turbo is not None
        q, k, v = (x.unflatten(-1, (self.config.n_heads, -1)) for x in (q, k, v))
        q, k, v = self.turbo.query(q), self.turbo.stored(k), self.turbo.stored(v)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(self.config.d_head)
        pattern = self.turbo.pattern(scores.masked_fill(~open[:, None], -math.inf), sink, rounded=True)
        return torch.einsum("bhqk,bkhd->bqhd", pattern, v).flatten(2)

    def _mlp(self, at: Any, x: Tensor) -> Tensor:
        pre = self._linear(at, "W_in", self._site(at, "mlp_in", x))
        post = self._site(at, "mlp_neuron", pre.clamp_min(0) if self.config.act == "relu" else gelu(pre))
        return self._site(at, "mlp_out", self._linear(at, "W_out", post))

    def _site(self, at: Any, name: str, x: Any) -> Tensor:
        stack, layer, seen = at
        site = Site(layer, name, stack)  # type: ignore[arg-type]
        if self.config.topk_fraction is not None:
            k = max(1, int(self.config.topk_fraction * x.shape[-1]))
            order = x.abs().argsort(dim=-1, descending=True)
            x = x.masked_fill(order.argsort(dim=-1) >= k, 0)
        seen[site] = x
        if site not in self.masks:
            return x  # type: ignore[no-any-return]
        return x * self.masks[site] + self._value(site, x) * (1 - self.masks[site])  # type: ignore[no-any-return]

    def _value(self, site: Site, x: Tensor) -> Tensor:
        value = self.values[site]
        return value if value.ndim == 1 else value[: x.shape[1]]

    def _linear(self, at: Any, name: str, x: Tensor) -> Tensor:
        place = WeightAt(at[1], name, at[0])
        weight, bias = self.matrix(place), self.matrix(place, "bias")
        if place not in self.cut:
            return x @ weight + bias
        kept = weight * self.cut[place]
        source = Site(at[1], WEIGHTS[name][0], at[0])  # type: ignore[arg-type]
        return x @ kept + self._value(source, x) @ (weight - kept) + bias

    def _norm(self, x: Tensor, name: str) -> Tensor:
        if self.config.norm == "rms":
            return x / ((x**2).mean(-1, keepdim=True) + self.config.norm_eps).sqrt()
        x = x - x.mean(-1, keepdim=True)
        x = x / ((x**2).mean(-1, keepdim=True) + self.config.norm_eps).sqrt()
        return x * self.weights[f"{name}.w"] + self.weights[f"{name}.b"]


def _prefix(stack: str) -> str:
    return "" if stack == "decoder" else f"{stack}."
