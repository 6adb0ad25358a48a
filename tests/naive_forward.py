"""The model once more, from its definition alone, in float64 and with loops: what analyses are held against.

It shares no code with `circuits.model`, reads nothing but a configuration and weights by name, and knows every option.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from naive_turbo_forward import NaiveTurbo
from torch import Tensor

from circuits.circuit.circuit import Circuit
from circuits.model.config import ModelConfig
from circuits.model.sites import ALL_WEIGHTS, Site, WeightAt
from circuits.model.transformer import SparseTransformer

FACTORS = {
    "W_Q": "factor_q",
    "W_K": "factor_k",
    "W_V": "factor_v",
    "W_O": "factor_o",
    "W_in": "factor_in",
    "W_out": "factor_out",
}
"""The site between the two factors of each weight that may be a product."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One forward pass and everything that was seen on the way."""

    logits: Tensor
    sites: Mapping[Site, Tensor]
    "[batch, pos, width], before anything was masked."
    patterns: Mapping[int, Tensor]
    "By layer, after the softmax and before heads are composed [batch, head, query, key]."
    carried: Mapping[int, Tensor]
    "By layer, what the values are moved by: after heads were composed."
    maps: Mapping[tuple[int, str], Tensor]
    "By layer and stage, pre or post [batch, query, key, from head, to head]."
    stream: Mapping[str, Tensor]
    "The residual stream at `embed`, `0.attn`, `0.mlp`, ..."


@dataclass(frozen=True, kw_only=True)
class Naive:
    """A configuration and weights by name; `run` is the forward pass."""

    config: ModelConfig
    weights: Mapping[str, Tensor]
    masks: Mapping[Site, Tensor] = field(default_factory=dict)
    cut: Mapping[WeightAt, Tensor] = field(default_factory=dict)
    values: Mapping[Site, Tensor] = field(default_factory=dict)
    turbo: NaiveTurbo | None = None
    "Attention in few bits; None: as it is."

    @classmethod
    def of(cls, model: SparseTransformer) -> "Naive":
        """The weights of a model as they are now."""
        weights = {k: v.double().clone() for k, v in model.state_dict().items()}
        if model.config.tied:
            weights["unembed.W_U"] = weights["W_E"].T
        if model.config.positions != "learned":
            weights["W_pos"] = waves(model.config)
        return cls(config=model.config, weights=weights)

    def of_circuit(self, circuit: Circuit, *, gone: tuple = (), inverse: bool = False) -> "Naive":
        """Only the circuit kept, less some nodes; inverse: everything but the circuit, no weight cut."""
        masks = {site: torch.full((width,), float(inverse)) for site, width in circuit.widths.items()}
        for node in circuit.nodes:
            if node not in gone:
                masks[Site(node.layer, node.site)][node.index] = float(not inverse)
        there = {
            WeightAt(layer, name): row
            for layer in range(self.config.n_layers)
            for name, row in ALL_WEIGHTS.items()
            if Site(layer, row.source) in circuit.widths and Site(layer, row.target) in circuit.widths
            if not (self.config.factor_ratio and name in FACTORS)
        }
        cut = {at: torch.zeros(self.weight(at).shape) for at in there}
        for edge in circuit.edges:
            for at, row in there.items():
                if (edge.source.site, edge.target.site, edge.source.layer) == (
                    row.source,
                    row.target,
                    at.layer,
                ):
                    cut[at][edge.source.index, edge.target.index] = 1
        values = {site: value.double() for site, value in circuit.values.items()}
        return replace(
            self,
            masks={site: mask.double() for site, mask in masks.items()},
            cut={} if inverse else {at: mask.double() for at, mask in cut.items()},
            values=values,
        )

    def weight(self, at: WeightAt) -> Tensor:
        if self.config.factor_ratio and at.name in FACTORS:
            return self.weight(at._replace(name=f"{at.name}_A")) @ self.weight(
                at._replace(name=f"{at.name}_B")
            )
        return self.weights[f"blocks.{at.layer}.{ALL_WEIGHTS[at.name].path}.weight"]

    def heads(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """W_Q, W_K, W_V [head, d_model, d_head] and W_O [head, d_head, d_model] of a layer."""
        d = self.config.d_head
        columns, rows = [], []
        for name in ("W_Q", "W_K", "W_V"):
            whole = self.weight(WeightAt(layer, name))
            columns.append(torch.stack([whole[:, h * d : (h + 1) * d] for h in range(self.config.n_heads)]))
        whole = self.weight(WeightAt(layer, "W_O"))
        rows = torch.stack([whole[h * d : (h + 1) * d] for h in range(self.config.n_heads)])
        return (*columns, rows)

    def run(self, tokens: Tensor, *, put: Mapping[str, Tensor] | None = None) -> Pass:
        """put: values that take the place of the residual stream at points of it."""
        w, put = self.weights, put or {}
        found = Pass(logits=torch.empty(0), sites={}, patterns={}, carried={}, maps={}, stream={})
        scale = math.sqrt(self.config.d_model) if self.config.embed_scale else 1.0
        x = scale * w["W_E"][tokens] + w["W_pos"][: tokens.shape[1]]
        x = self._at("embed", x, put, found)
        post = self.config.norm_position == "post"
        for layer in range(self.config.n_layers):
            for part, act, name in (("attn", self._attention, "ln1"), ("mlp", self._mlp, "ln2")):
                name = f"blocks.{layer}.{name}"
                x = x + act(layer, x if post else self.norm(x, name), found)
                x = self._at(f"{layer}.{part}", self.norm(x, name) if post else x, put, found)
        logits = (x if post else self.norm(x, "ln_final")) @ w["unembed.W_U"] + w["unembed.b_U"]
        if self.config.bigram:
            logits = logits + w["bigram"][tokens]
        return Pass(**{**vars(found), "logits": logits})

    def norm(self, x: Tensor, name: str = "") -> Tensor:
        """name: of the norm, whose gain and bias a LayerNorm has."""
        if self.config.norm == "layer":
            x = x - x.mean(-1, keepdim=True)
            x = x / ((x**2).mean(-1, keepdim=True) + self.config.norm_eps).sqrt()
            return x * self.weights[f"{name}.w"] + self.weights[f"{name}.b"] if name else x
        return x / ((x**2).mean(-1, keepdim=True) + self.config.norm_eps).sqrt()

    def _at(self, place: str, x: Tensor, put: Mapping[str, Tensor], found: Any) -> Tensor:
        found.stream[place] = x
        return put.get(place, x).double()

    def _site(self, layer: int, name: str, x: Tensor, found: Any) -> Tensor:
        site, config = Site(layer, name), self.config  # type: ignore[arg-type]
        if config.topk_fraction is not None and name in config.topk_sites:
            k = max(1, int(config.topk_fraction * x.shape[-1]))
            order = x.abs().argsort(dim=-1, descending=True)
            x = x.masked_fill(order.argsort(dim=-1) >= k, 0)
        found.sites[site] = x
        if site not in self.masks:
            return x
        mask = self.masks[site]
        return x * mask + self._value(site, x) * (1 - mask)

    def _value(self, site: Site, x: Tensor) -> Tensor:
        value = self.values[site].double()
        if value.ndim == 3:
            value = torch.stack([value[row % len(value)] for row in range(len(x))])
        return value if value.ndim == 1 else value[..., : x.shape[1], :]

    def _linear(self, layer: int, name: str, x: Tensor, found: Any) -> Tensor:
        if self.config.factor_ratio and name in FACTORS:
            inner = self._one_linear(layer, f"{name}_A", x)
            return self._one_linear(layer, f"{name}_B", self._site(layer, FACTORS[name], inner, found))
        return self._one_linear(layer, name, x)

    def _one_linear(self, layer: int, name: str, x: Tensor) -> Tensor:
        at = WeightAt(layer, name)
        weight, bias = self.weight(at), self.weights[f"blocks.{layer}.{ALL_WEIGHTS[name].path}.bias"]
        if at not in self.cut:
            return x @ weight + bias
        kept = weight * self.cut[at]
        return x @ kept + self._value(at.source, x) @ (weight - kept) + bias

    def _attention(self, layer: int, normed: Tensor, found: Any) -> Tensor:
        config, pos = self.config, normed.shape[1]
        x = self._site(layer, "attn_in", normed, found)
        q, k, v = (
            self._site(layer, f"attn_{name.lower()}", self._linear(layer, f"W_{name}", x, found), found)
            for name in "QKV"
        )
        d, later = config.d_head, torch.ones(pos, pos).triu(1).bool()
        if self.turbo is not None:
            q, k, v = self._in_few_bits(q, k, v)
        scores = torch.stack(
            [q[..., h * d : (h + 1) * d] @ k[..., h * d : (h + 1) * d].mT for h in self._heads], 1
        )
        scores = self._composed(layer, "pre", scores / math.sqrt(d), x, found).masked_fill(later, -math.inf)
        found.patterns[layer] = self._weighed(layer, scores)
        pattern = self._composed(layer, "post", found.patterns[layer], x, found)
        if self.turbo is not None and config.compose != "none":
            pattern = self.turbo.composed(pattern)
        found.carried[layer] = pattern
        z = torch.cat([pattern[:, h] @ v[..., h * d : (h + 1) * d] for h in self._heads], dim=-1)
        # What a cut weight passes is its source's value, not what attention makes of it.
        return self._site(layer, "attn_out", self._linear(layer, "W_O", z, found), found)

    def _in_few_bits(self, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        assert self.turbo is not None
        q, k, v = (x.unflatten(-1, (self.config.n_heads, -1)) for x in (q, k, v))
        return [x.flatten(2) for x in (self.turbo.query(q), self.turbo.stored(k), self.turbo.stored(v))]

    def _weighed(self, layer: int, scores: Tensor) -> Tensor:
        sink = self.weights[f"blocks.{layer}.attn.sink"] if self.config.sink else None
        if self.turbo is not None:
            return self.turbo.pattern(scores, sink, rounded=self.config.compose == "none")
        weights = scores.exp()
        total = weights.sum(-1, keepdim=True)
        return weights / (total if sink is None else total + sink.exp()[:, None, None])

    @property
    def _heads(self) -> range:
        return range(self.config.n_heads)

    def _composed(self, layer: int, stage: str, a: Tensor, x: Tensor, found: Any) -> Tensor:
        """`a_m = sum_n a_n C[n, m]` at every pair of positions, C made entry by entry."""
        n, prefix = self.config.n_heads, f"blocks.{layer}.attn.compose_{stage}."
        batch, pos = x.shape[:2]
        C = torch.eye(n).double().expand(batch, pos, pos, n, n).clone()
        if prefix + "static" in self.weights:
            C += self.weights[prefix + "static"]
        for side in ("query", "key"):
            if f"{prefix}{side}.dd" in self.weights:
                part = self._dynamic(f"{prefix}{side}.", x)
                C += part[:, :, None] if side == "query" else part[:, None]
        found.maps[layer, stage] = C
        return torch.stack([sum(a[:, i] * C[..., i, m] for i in range(n)) for m in range(n)], 1)

    def _dynamic(self, prefix: str, x: Tensor) -> Tensor:
        w, n, rank = self.weights, self.config.n_heads, self.config.compose_rank
        total = torch.diag_embed(torch.tanh(x @ w[prefix + "dd"]))
        if prefix + "dw1" in w:
            both = (gelu(x @ w[prefix + "dw1"]) @ w[prefix + "qkw"]).reshape(*x.shape[:2], 2 * rank, n)
            w1, w2 = both[..., :rank, :], both[..., rank:, :]
            w1 = w1 / ((w1**2).mean(-1, keepdim=True) + 1e-6).sqrt()
            total = total + sum(w1[..., r, :, None] * w2[..., r, None, :] for r in range(rank))
        return total

    def _mlp(self, layer: int, normed: Tensor, found: Any) -> Tensor:
        x = self._site(layer, "mlp_in", normed, found)
        pre = self._linear(layer, "W_in", x, found)
        post = ACTS[self.config.act](pre)
        if self.config.experts:
            post = self._routed(layer, x, post, found)
        return self._site(
            layer,
            "mlp_out",
            self._linear(layer, "W_out", self._site(layer, "mlp_neuron", post, found), found),
            found,
        )

    def _routed(self, layer: int, x: Tensor, neurons: Tensor, found: Any) -> Tensor:
        """Token by token: the likeliest experts, and each neuron times the share of its own."""
        n = self.config.experts
        logits = self._linear(layer, "W_R", x, found)
        share = torch.zeros_like(logits)
        for row in range(x.shape[0]):
            for at in range(x.shape[1]):
                weights = [math.exp(float(logit)) for logit in logits[row, at]]
                chosen = sorted(range(n), key=lambda e: -weights[e])[: self.config.experts_active]
                for e in chosen:
                    share[row, at, e] = n * weights[e] / sum(weights)
        share = self._site(layer, "router", share, found)
        size = self.config.d_mlp // n
        return torch.stack([neurons[..., j] * share[..., j // size] for j in range(neurons.shape[-1])], -1)


def gelu(x: Tensor) -> Tensor:
    """x times the share of a normal distribution below it."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def gelu_new(x: Tensor) -> Tensor:
    """x times nearly that share, by a tanh."""
    return x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTS = {"gelu": gelu, "gelu_new": gelu_new, "relu": lambda x: x.clamp_min(0)}


def waves(config: ModelConfig) -> Tensor:
    """Sines and cosines of each position, in turn or in halves."""
    n, table = config.d_model // 2, torch.zeros(config.n_ctx, config.d_model).double()
    for p in range(config.n_ctx):
        for i in range(n):
            if config.positions == "sinusoid":
                table[p, 2 * i] = math.sin(p / 10_000 ** (2 * i / config.d_model))
                table[p, 2 * i + 1] = math.cos(p / 10_000 ** (2 * i / config.d_model))
            else:
                table[p, i] = math.sin(p / 10_000 ** (i / (n - 1)))
                table[p, n + i] = math.cos(p / 10_000 ** (i / (n - 1)))
    return table
