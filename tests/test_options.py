"""Every analysis on a model of every option: right, as the naive model of `naive_forward` is, or refused by name.

A row of `TABLE` is an analysis: a check of its results against an independent computation, and the options that it
refuses instead. Columns are the options of models, of circuits, and TransformerLens's models.
"""

import importlib
import inspect
import json
import math
import pkgutil
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from induction_model import bridge as lens_bridge
from naive_forward import Naive, Pass
from naive_program import answer_logits
from naive_turbo_forward import NaiveTurbo
from torch import Tensor
from torch.nn import functional as F

import circuits
from circuits import bridges, composition, decompile, heads, trust
from circuits.bridges import dilution, steering
from circuits.bridges.sides import still
from circuits.circuit import ablation, compare, masked, parts, routing, score
from circuits.circuit.circuit import Circuit
from circuits.circuit.criterion import Criterion
from circuits.circuit.nodes import Edge, Node
from circuits.composition import Reader, Writer
from circuits.explorer import circuit_view, explore, to_html
from circuits.explorer.program import circuit_program
from circuits.handmade import rankings
from circuits.model import checkpoint, compute
from circuits.model.config import ModelConfig
from circuits.model.mixers.turbo import TurboConfig, approximated
from circuits.model.options import SIZES, Says
from circuits.model.sites import ALL_WEIGHTS, Site
from circuits.model.transformer import SparseTransformer
from circuits.pruning.procedure import PruneConfig, prune
from circuits.ranking import RankConfig, rank
from circuits.trust import yardsticks
from tasks import Batch, Corpus
from tasks.base import Targets
from tasks.brackets import Brackets
from tasks.tokenizer import WordTokenizer

N_CTX, N_WORDS = 6, 11


class FirstWord:
    """Says again at the end what came first, `a` or `b`."""

    name, n_ctx = "first", N_CTX
    tokenizer = WordTokenizer(name="first", words=tuple("abcdefghijk"))

    def solve(self, text: str) -> str:
        return text[0]

    def batch(self, n: int, *, split: str, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(1000 * len(split) + seed)
        tokens = torch.randint(2, N_WORDS, (n, N_CTX), generator=generator)
        clean, corrupt = tokens.clone(), tokens.clone()
        clean[:, 0], corrupt[:, 0] = 0, 1
        ones = torch.ones(n, dtype=torch.int64)
        ends = torch.arange(n) % 2 + N_CTX - 2
        return Batch(clean=clean, corrupt=corrupt, answer=0 * ones, foil=ones, position=ends)


TASK = FirstWord()
TEXT = torch.randint(0, N_WORDS, (400,), generator=torch.Generator().manual_seed(9))
CORPUS = Corpus(name="noise", tokenizer=TASK.tokenizer, train=TEXT, val=TEXT[:200])
TOKENS = TEXT[: 7 * N_CTX].view(7, N_CTX)

MODEL_OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "dense": {"topk_fraction": None},
    "two sites": {"topk_sites": ("attn_in", "mlp_neuron")},
    "bare": {"sink": False, "bigram": False, "attention": "compose", "compose": "none"},
    "one layer": {"n_layers": 1},
    "static": {"attention": "compose", "compose": "static"},
    "full": {"attention": "compose", "compose": "full"},
    "compact": {},
    "sparse compute": {},
    "embedded": {"positions": "sinusoid_halves", "tied": True},
    "scaled": {"embed_scale": True},
    "layer": {"norm": "layer"},
    "post": {"norm_position": "post"},
    "experts": {"experts": 4, "experts_active": 2},
    "factors": {"factor_ratio": 2.0},
    "turbo": {},
}
"""Encoder-decoders have rows of two texts, and so a table of their own: test_encdec_options.py."""
if any(option.name == "act" for option in fields(ModelConfig)):
    MODEL_OPTIONS |= {"relu": {"act": "relu"}, "gelu_new": {"act": "gelu_new"}}
TURBO = TurboConfig(quant="int8+kv4", tile=4)
"""Two tiles in these prompts. With heads in 2 bits, which are chosen by the batch, each batch would be a case."""
CIRCUIT_OPTIONS = ("zero", "position", "resample", "some sites")
DYNAMIC = {"full": "compose='full'"}
COMPOSED = {"static": "compose='static'", **DYNAMIC}
SCALED = {"scaled": "embed_scale=True"}
NORMED = {"layer": "norm='layer'", "post": "norm_position='post'"}
EXPERTS = {"experts": "experts=4"}
FACTORS = {"factors": "factor_ratio=2.0"}
GELU_NEW = {"gelu_new": "act='gelu_new'"}
FEW_BITS = {"turbo": "few_bits=True"}
NO_GRADIENTS = {"turbo": "few_bits=True, inside approximated(), and rounding has no gradients"}
PLAIN = {name: "experts=0" for name in MODEL_OPTIONS if name not in EXPERTS}
THROUGH = NORMED | SCALED | FEW_BITS
"""What products of weights from embeddings to logits leave out."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model of one option, the same model naively, and a circuit of it."""

    option: str
    model: SparseTransformer
    naive: Naive
    circuit: Circuit
    other: SparseTransformer
    "A plain model of the same vocabulary, for the dense side of bridges."


@cache
def plain(n_words: int, n_ctx: int) -> SparseTransformer:
    config = ModelConfig(d_vocab=n_words, n_layers=1, d_model=6, n_heads=2, d_head=2, d_mlp=5, n_ctx=n_ctx)
    return noisy(SparseTransformer(replace(config, topk_fraction=None), tokenizer=None), seed=5)


def noisy(model: SparseTransformer, seed: int) -> SparseTransformer:
    """Weights far from zero, a quarter of the entries of each affine map."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
        for _, linear in model.linears():
            linear.weight.mul_(2 * (torch.rand(linear.weight.shape, generator=generator) < 0.25))
    return model.eval().requires_grad_(False)


@pytest.fixture
def made() -> Iterator[Callable[..., Subject]]:
    with ExitStack() as stack:
        yield lambda option, **shape: subject(option, stack, **shape)


def subject(
    option: str, stack: ExitStack, *, n_words: int = N_WORDS, n_ctx: int = N_CTX, n_layers: int = 2
) -> Subject:
    model, naive, circuit = known(option, n_words, n_ctx, n_layers)
    if option == "compact":
        model = compute.compact(deepcopy(model))
        assert any(linear.is_compact for _, linear in model.linears())
    if option == "sparse compute":
        assert "cpu" in set(stack.enter_context(compute.sparse_compute(model)).values())
    if option == "turbo":
        stack.enter_context(approximated(model, TURBO))
    return Subject(option=option, model=model, naive=naive, circuit=circuit, other=plain(n_words, n_ctx))


@cache
def known(
    option: str, n_words: int, n_ctx: int, n_layers: int = 2
) -> tuple[SparseTransformer, Naive, Circuit]:
    """A model that stays as it is, what it is held against, and a circuit."""
    config = ModelConfig(
        d_vocab=n_words,
        n_layers=n_layers,
        d_model=8,
        n_heads=2,
        d_head=3,
        d_mlp=12,
        n_ctx=n_ctx,
        topk_fraction=0.5,
    )
    model = noisy(SparseTransformer(replace(config, **MODEL_OPTIONS.get(option, {}))), seed=1)
    naive = replace(Naive.of(model), turbo=NaiveTurbo(config=TURBO) if option == "turbo" else None)
    return model, naive, circuit_of(model, naive, option, n_words)


def circuit_of(model: SparseTransformer, naive: Naive, option: str, n_words: int) -> Circuit:
    """Half of the nodes and most of the edges between them, under the ablation that the option names."""
    generator = torch.Generator().manual_seed(3)
    n_ctx, kind = model.config.n_ctx, option if option in CIRCUIT_OPTIONS[:3] else "mean"
    seen = naive.run(torch.randint(0, n_words, (5, n_ctx), generator=generator)).sites
    values = {site: value.float() for site, value in seen.items()}
    if kind != "resample":
        over = (0,) if kind == "position" else (0, 1)
        values = {site: value.mean(over) * (kind != "zero") for site, value in values.items()}
    widths = model.config.widths
    if option == "some sites":
        widths = {
            site: width for site, width in widths.items() if site.name in ("attn_v", "attn_out", "mlp_out")
        }
    nodes = [
        Node(site.layer, site.name, i)
        for site, width in widths.items()
        for i in range(width)
        if torch.rand((), generator=generator) < 0.5
    ]
    return Circuit(
        nodes=tuple(nodes),
        edges=tuple(e for e in loop_edges(naive, nodes) if torch.rand((), generator=generator) < 0.8),
        widths=widths,
        n_layers=model.config.n_layers,
        d_head=model.config.d_head,
        criterion=Criterion(
            objective="task",
            task="first" if n_words == N_WORDS else "brackets",
            task_options=None if n_words == N_WORDS else {},
            target_loss=100.0,
            target_accuracy=0.0,
            calibrate=False,
            ablation=kind,  # type: ignore[arg-type]
            n_eval=2,
            n_test=6,
        ),
        model_hash=model.fingerprint(),
        values=values,
    )


def loop_edges(naive: Naive, nodes: list[Node]) -> list[Edge]:
    found = []
    for a, b in product(nodes, nodes):
        for row in layer_rows_of(naive):
            if a.layer == b.layer and (a.site, b.site) == (row.source, row.target):
                weight = float(naive.weights[f"blocks.{a.layer}.{row.path}.weight"][a.index, b.index])
                found += [Edge(a, b, weight)] if weight else []
        if a.layer == b.layer and (a.site, b.site) == ("attn_k", "attn_q") and a.index == b.index:
            found.append(Edge(a, b, naive.config.d_head**-0.5))
        if a.layer == b.layer and (a.site, b.site) == ("router", "mlp_neuron"):
            found += [Edge(a, b, 1.0)] if b.index in neurons_of(naive, a.index) else []
    return found


def layer_rows_of(naive: Naive) -> list[Any]:
    """The weight matrices of a layer."""
    names = {site.name for site in naive.config.widths}
    found = {name: row for name, row in ALL_WEIGHTS.items() if {row.source, row.target} <= names}
    return [row for name, row in found.items() if f"{name}_A" not in found]


def neurons_of(naive: Naive, expert: int) -> range:
    """Experts are as large as one another, side by side."""
    size = naive.config.d_mlp // naive.config.experts
    return range(expert * size, (expert + 1) * size)


def same(found: Any, expected: Any, atol: float = 2e-4) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found).detach().double(), torch.as_tensor(expected).double(), atol=atol, rtol=1e-3
    )


def margins_of(logits: Tensor, targets: Targets) -> Tensor:
    rows = range(len(logits))
    ends = [logits[i, targets.position[i]] for i in rows]
    return torch.stack([ends[i][targets.answer[i]] - ends[i][targets.foil[i]] for i in rows])


def loss_of(naive: Naive, targets: Targets, scale: float = 1.0) -> float:
    """Two-way loss in nats."""
    return float(torch.log1p((-scale * margins_of(naive.run(targets.tokens).logits, targets)).exp()).mean())


# Circuits and the model.


def check_mean_values(s: Subject) -> None:
    for site, value in ablation.mean_values(s.model, TOKENS, batch_size=3).items():
        same(value, s.naive.run(TOKENS).sites[site].mean((0, 1)))


def check_ablation_values(s: Subject) -> None:
    seen = s.naive.run(TOKENS).sites
    for kind, expected in (
        ("zero", {site: 0 * value[0, 0] for site, value in seen.items()}),
        ("position", {site: value.mean(0) for site, value in seen.items()}),
        ("resample", seen),
    ):
        for site, value in ablation.ablation_values(s.model, TOKENS, kind).items():  # type: ignore[arg-type]
            same(value, expected[site])


def check_run_circuit(s: Subject) -> None:
    same(masked.run_circuit(s.model, s.circuit, TOKENS), s.naive.of_circuit(s.circuit).run(TOKENS).logits)


def check_run_masked(s: Subject) -> None:
    masks = {site: 1 - mask.float() for site, mask in s.circuit.to_mask().items()}
    found = masked.run_masked(s.model, TOKENS, masks, s.circuit.values)
    same(found, s.naive.of_circuit(s.circuit, inverse=True).run(TOKENS).logits)


def check_edges_between(s: Subject) -> None:
    found = parts.edges_between(s.model, s.circuit.nodes)
    assert {(e.source, e.target): pytest.approx(e.weight) for e in found} == {
        (e.source, e.target): e.weight for e in loop_edges(s.naive, list(s.circuit.nodes))
    }


def check_task_score(s: Subject) -> None:
    batch = TASK.batch(8, split="test", seed=0)
    same(score.task_score(s.model, batch).loss, loss_of(s.naive, batch.tokens_and_targets()))


def check_transplant(s: Subject) -> None:
    table = compare.transplant(s.model, {"a": s.circuit}, {"t": TASK}, n_pairs=8)
    targets = TASK.batch(8, split="test", seed=0).tokens_and_targets()
    same(table.loss[0][0], loss_of(s.naive.of_circuit(s.circuit), targets))
    same(table.full_loss[0], loss_of(s.naive, targets))


def check_checkpoint(s: Subject, tmp_path: Path) -> None:
    path = checkpoint.save_checkpoint(tmp_path / "model.safetensors", s.model)
    for compact in (False, True):
        again = checkpoint.load_checkpoint(path, compact=compact).model
        assert again.fingerprint() == s.model.fingerprint() == s.circuit.model_hash
        same(again(TOKENS), exact(s.naive).run(TOKENS).logits)


def exact(naive: Naive) -> Naive:
    """What a file or a copy of a model computes, whatever the model is told for the moment."""
    return replace(naive, turbo=None)


def check_sparse_compute(s: Subject) -> None:
    with compute.sparse_compute(s.model):
        same(s.model(TOKENS), s.naive.run(TOKENS).logits)
    same(compute.compact(deepcopy(s.model))(TOKENS), exact(s.naive).run(TOKENS).logits)


def check_routing(s: Subject) -> None:
    found = routing.routing(s.model, TOKENS[1])
    for layer in range(s.naive.config.n_layers):
        same(found.share[layer], s.naive.run(TOKENS[1:2]).sites[Site(layer, "router")][0])


def check_choices(s: Subject) -> None:
    found, lengths = (
        routing.choices(s.model, TOKENS, lengths=torch.arange(7) % 6 + 1),
        torch.arange(7) % 6 + 1,
    )
    for layer in range(s.naive.config.n_layers):
        share = s.naive.run(TOKENS).sites[Site(layer, "router")]
        counts = sum((share[row, :n] > 0).sum(0).double() for row, n in enumerate(lengths))
        same(found[layer], counts / counts.sum())  # type: ignore[union-attr]


def check_neurons_by_expert(s: Subject) -> None:
    found = routing.neurons_by_expert(s.model, s.circuit)
    for layer, expert in product(range(s.naive.config.n_layers), range(s.naive.config.experts)):
        own = [Node(layer, "mlp_neuron", i) for i in neurons_of(s.naive, expert)]
        assert found[layer, expert] == len(set(own) & set(s.circuit.nodes))


# What is done with a circuit.


def check_to_python(s: Subject) -> None:
    space: dict[str, Any] = {}
    exec(decompile.to_python(s.model, s.circuit, TASK, n_pairs=8), space)
    expected = s.naive.of_circuit(s.circuit)
    for prompt in TOKENS:
        for n in (3, N_CTX):
            same(space["first"](prompt[:n].tolist()), expected.run(prompt[None, :n]).logits[0, -1, :2])


def check_view(s: Subject) -> None:
    """What the page is given to compute with, carried out; that the page does so, test_explorer.py shows."""
    view = circuit_view(s.model, s.circuit, TASK, n_prompts=2, n_pairs=8)
    program, expected = view["program"], s.naive.of_circuit(s.circuit)
    assert program == circuit_program(s.model, s.circuit, TASK)
    for prompt in TOKENS[:3]:
        for n in (3, N_CTX):
            logits = expected.run(prompt[None, :n]).logits[0, -1, program["answers"]]
            same(answer_logits(program, prompt[:n].tolist()), logits)


def check_page(s: Subject, tmp_path: Path) -> None:
    page = to_html(tmp_path / "page.html", s.model, s.circuit, TASK, n_prompts=2, n_pairs=8).read_text()
    held = re.search(r'<script type="application/json" id="view">(.*?)</script>', page, re.S)
    assert held is not None
    assert json.loads(held[1])["program"] == circuit_program(s.model, s.circuit, TASK)


def check_widget(s: Subject) -> None:
    shown = explore(s.model, s.circuit, TASK, n_prompts=2, n_pairs=8)
    assert shown.view["program"] == circuit_program(s.model, s.circuit, TASK)


def check_describe(s: Subject) -> None:
    few = replace(s.circuit, nodes=s.circuit.nodes[::25], edges=())
    text = decompile.describe(s.model, few, TASK, n_pairs=8)
    targets = TASK.batch(few.criterion.n_eval, split="val", seed=0).tokens_and_targets()
    said = re.findall(r"^(\S+)\n(?:  .*\n)*?  without it: loss (\S+) -> (\S+) nats", text, re.M)
    assert [name for name, _, _ in said] == [str(node) for node in few.nodes]
    for node, (_, whole, rest) in zip(few.nodes, said, strict=True):
        same(float(whole), loss_of(s.naive.of_circuit(few), targets), atol=1e-3)
        same(float(rest), loss_of(s.naive.of_circuit(few, gone=(node,)), targets), atol=1e-3)


def check_prune(s: Subject) -> None:
    few = dict(
        starts=1, steps=4, batch_size=4, n_mean=4, n_eval=2, n_test=8, target_loss=3.0, target_accuracy=0.01
    )
    kind = s.option if s.option in CIRCUIT_OPTIONS[:3] else "mean"
    found = prune(
        s.model,
        TASK,
        PruneConfig(objective="faithful", ablation=kind, prune_edges=False, **few),
        corpus=CORPUS,
        progress=False,  # type: ignore[arg-type]
    )
    targets = TASK.batch(8, split="test", seed=0).tokens_and_targets()
    assert found.ablation == kind
    there = {(edge.source, edge.target) for edge in loop_edges(s.naive, list(found.nodes))}
    assert {(edge.source, edge.target) for edge in found.edges} <= there
    p, q = (
        torch.sigmoid(margins_of(n.run(targets.tokens).logits, targets))
        for n in (s.naive, s.naive.of_circuit(found))
    )
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    same(found.metrics["kl_to_model"], kl.mean())


def check_trust_report(s: Subject) -> None:
    config = trust.TrustConfig(n_pairs=4, n_random=1, n_knockouts=1, n_greedy=0, control_steps=0)
    few = replace(s.circuit, nodes=s.circuit.nodes[::19], edges=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yardsticks, "SHARES", (0.1, 1.0))
        report = trust.trust_report(s.model, few, TASK, config)
    targets, asked = (
        TASK.batch(n, split="test", seed=0).tokens_and_targets() for n in (4, few.criterion.n_test)
    )
    same(report["sufficiency"].value, loss_of(s.naive.of_circuit(few), asked))
    full, without = loss_of(s.naive, targets), loss_of(s.naive.of_circuit(few, inverse=True), targets)
    same(report["necessity"].value, without - full)
    none = s.naive.of_circuit(replace(few, nodes=(), edges=()))
    there = margins_of(s.naive.run(targets.tokens).logits, targets).mean()
    recoverable = there - margins_of(none.run(targets.tokens).logits, targets).mean()
    assert math.isfinite(report["CPR"].value) == bool(recoverable > 1e-3)


def check_gate_floor(s: Subject) -> None:
    """Gates so slow that all stay open: the whole model's loss."""
    found = trust.gate_floor(
        s.model,
        TASK,
        dict(s.circuit.values),
        PruneConfig(objective="task", calibrate=False, steps=1, lr=1e-9),
    )
    same(found.loss, loss_of(s.naive, TASK.batch(64, split="test", seed=0).tokens_and_targets()))


# Rankings of nodes.


def check_rankings(s: Subject) -> None:
    """By finite differences: the derivative of the loss along the way to a node's corrupted value, on one prompt."""
    one = OnePair()
    batch = one.batch(64, split="train", seed=0)
    ranked = {
        name: rankings.METHODS[name](s.model, one)
        for name in ("attribution patching", "integrated gradients")
    }
    assert all(sorted(found) == sorted(ranked["attribution patching"]) for found in ranked.values())
    clean, corrupt = (s.naive.run(tokens).sites for tokens in (batch.clean[:1], batch.corrupt[:1]))
    targets = Targets(batch.clean[:1], batch.answer[:1], batch.foil[:1], batch.position[:1])
    effect = {}
    for site, value in clean.items():
        for i in range(0, value.shape[-1], 7):
            change = torch.zeros_like(value)
            change[..., i] = (corrupt[site] - value)[..., i]
            up, down = (loss_of(shifted(s.naive, site, value + e * change), targets) for e in (1e-5, -1e-5))
            effect[Node(site.layer, site.name, i)] = abs(up - down) / 2e-5
    order = [effect[node] for node in ranked["attribution patching"] if node in effect]
    assert all(later <= earlier + 1e-4 for earlier, later in pairwise(order))


def check_edge_rankings(s: Subject) -> None:
    """By the gradient to an edge's mask, under which a cut weight passes its source's corrupted value; all but W_O."""
    one = OnePair()
    batch = one.batch(1, split="train", seed=0)
    found = rank(s.model, one, method="EAP", config=RankConfig(n_pairs=2)).scores
    values = ablation.ablation_values(s.model, batch.corrupt, "resample")
    masks = {at: torch.ones(score.shape, requires_grad=True) for at, score in found.items()}
    logits = masked.run_masked(s.model, batch.clean, {}, values, masks)  # type: ignore[arg-type]
    targets = Targets(batch.clean, batch.answer, batch.foil, batch.position)
    torch.log1p((-margins_of(logits, targets)).exp()).sum().backward()
    for at, effect in found.items():
        if at.name not in (
            "W_O",
            "W_O_A",
        ):  # reads what heads carried to a place, for which no value of attn_v stands
            there = effect.isfinite()
            same(effect[there], masks[at].grad[there].abs(), atol=1e-4)  # type: ignore[index]


class OnePair(FirstWord):
    """A single pair, as often as asked for."""

    def batch(self, n: int, *, split: str, seed: int) -> Batch:
        whole = super().batch(1, split=split, seed=seed)
        return Batch(
            **{
                f.name: getattr(whole, f.name).repeat_interleave(n, 0)
                for f in fields(whole)
                if getattr(whole, f.name) is not None
            }
        )


def shifted(naive: Naive, site: Site, value: Tensor) -> Naive:
    """A site held at this value [1, pos, width]."""
    closed = torch.zeros(value.shape[-1]).double()
    return replace(naive, masks={site: closed}, values={site: value[0]})


def check_weight_magnitude(s: Subject) -> None:
    total = {
        Node(site.layer, site.name, i): 0.0 for site, w in s.naive.config.widths.items() for i in range(w)
    }
    for layer, row in product(range(s.naive.config.n_layers), layer_rows_of(s.naive)):
        for i, j in s.naive.weights[f"blocks.{layer}.{row.path}.weight"].nonzero().tolist():
            size = abs(float(s.naive.weights[f"blocks.{layer}.{row.path}.weight"][i, j]))
            total[Node(layer, row.source, i)] += size
            total[Node(layer, row.target, j)] += size
    order = [total[node] for node in rankings.weight_magnitude(s.model, TASK)]
    assert all(later <= earlier + 1e-5 for earlier, later in pairwise(order))


# Heads.


def check_qk_and_ov(s: Subject) -> None:
    QK, OV = heads.qk_circuit(s.model), heads.ov_circuit(s.model)
    for layer in range(s.naive.config.n_layers):
        W_Q, W_K, W_V, W_O = s.naive.heads(layer)
        for h in range(2):
            same(QK.AB[layer, h], W_Q[h] @ W_K[h].T)
            same(OV.AB[layer, h], W_V[h] @ W_O[h])


def check_full_qk(s: Subject) -> None:
    """In the first layer without positions and biases it is the score itself; AbsTopK is not in it."""
    found = heads.full_qk(s.model, torch.arange(N_WORDS), layer=0, head=1).AB
    pairs = list(product(range(4), range(4)))
    p = bare_model(s.naive).run(torch.tensor(pairs)).patterns[0][:, 1]
    for row, (a, b) in enumerate(pairs):
        # The two keys that the second position sees: the share of the pattern between them is their scores' difference.
        same((p[row, 1, 0] / p[row, 1, 1]).log(), found[b, a] - found[b, b])


def bare_model(naive: Naive) -> Naive:
    """Without AbsTopK, positions, and biases of queries and keys."""
    weights = dict(naive.weights)
    for name in weights:
        if name == "W_pos" or re.search(r"\.[qkvo](\.first|\.second)?\.bias$", name):
            weights[name] = torch.zeros_like(weights[name])
    return Naive(config=replace(naive.config, topk_fraction=None), weights=weights)


def check_full_ov(s: Subject) -> None:
    """What one head adds to the logits, its final norm undone, when it looks at one token alone."""
    bare = bare_model(s.naive)
    tokens, config = torch.arange(N_WORDS), s.naive.config
    found = heads.full_ov(s.model, tokens, layer=0, head=1).AB
    normed = bare.norm(bare.weights["W_E"])
    _, _, W_V, W_O = bare.heads(0)
    for a, b in product(range(N_WORDS), range(N_WORDS)):
        moved = sum(float((normed[a] @ W_V[1])[c]) * W_O[1, c] for c in range(config.d_head))
        same(found[a, b], moved @ bare.weights["unembed.W_U"][:, b])


def check_copying(s: Subject) -> None:
    bare = bare_model(s.naive)
    E = bare.norm(bare.weights["W_E"])
    for layer, h in product(range(s.naive.config.n_layers), range(2)):
        _, _, W_V, W_O = bare.heads(layer)
        values = torch.linalg.eigvals(E @ W_V[h] @ W_O[h] @ bare.weights["unembed.W_U"])
        same(heads.copying_scores(s.model)[layer, h], values.real.sum() / values.abs().sum(), atol=1e-3)


def check_previous(s: Subject) -> None:
    """The pattern of the first layer on a text of the mean token."""
    weights = dict(s.naive.weights)
    weights["W_E"] = weights["W_E"].mean(0).expand_as(weights["W_E"])
    dense = Naive(config=replace(s.naive.config, topk_fraction=None), weights=weights)
    pattern = dense.run(torch.zeros(1, N_CTX, dtype=torch.int64)).patterns[0][0]
    expected = [sum(float(pattern[h, i, i - 1]) for i in range(1, N_CTX)) / (N_CTX - 1) for h in range(2)]
    found = heads.previous_scores(s.model)
    assert found is not None
    same(found[0], torch.tensor(expected))


def token_scores(s: Subject, layer: int, h: int, keys: Tensor | None = None) -> Tensor:
    """Attention scores between normed embeddings (or what stands for the keys)."""
    E = s.naive.norm(s.naive.weights["W_E"])
    W_Q, W_K, _, _ = s.naive.heads(layer)
    return (E @ W_Q[h]) @ ((E if keys is None else keys) @ W_K[h]).T / math.sqrt(s.naive.config.d_head)


def check_duplicate(s: Subject) -> None:
    for layer, h in product(range(s.naive.config.n_layers), range(2)):
        scores = token_scores(s, layer, h)
        same(heads.duplicate_scores(s.model)[layer, h], scores.diagonal().mean() - scores.mean())


def check_induction(s: Subject) -> None:
    previous = torch.rand(s.naive.config.n_layers, 2)
    found = heads.induction_scores(s.model, previous)
    if s.naive.config.n_layers == 1:
        assert not found.any()
        return
    _, _, W_V, W_O = s.naive.heads(0)
    moved = s.naive.norm(s.naive.weights["W_E"]) @ W_V[1] @ W_O[1]
    scores = token_scores(s, 1, 0, moved)
    same(found[0, 1, 1, 0], previous[0, 1] * (scores.diagonal().mean() - scores.mean()))


def check_patterns(s: Subject) -> None:
    found = heads.pattern_scores(s.model, TOKENS, batch_size=3)
    for layer, pattern in s.naive.run(TOKENS).patterns.items():
        for h in range(2):
            previous = [pattern[b, h, i, i - 1] for b in range(len(TOKENS)) for i in range(1, N_CTX)]
            same(found.previous[layer, h], sum(previous) / len(previous))
            equal = [
                [pattern[b, h, i, j] for j in range(i) if TOKENS[b, i] == TOKENS[b, j]]
                for b in range(len(TOKENS))
                for i in range(N_CTX)
            ]
            some = [sum(shares) for shares in equal if shares]
            same(found.duplicate[layer, h], sum(some) / len(some))
            same(found.sink[layer, h], (1 - pattern[:, h].sum(-1)).mean())


def check_head_report(s: Subject) -> None:
    report = heads.head_report(s.model, TOKENS)
    patterns = s.naive.run(TOKENS).patterns
    for row in report.rows:
        same(row.sink, (1 - patterns[row.layer][:, row.head].sum(-1)).mean())
        scores = token_scores(s, row.layer, row.head)
        same(row.duplicate_nats, scores.diagonal().mean() - scores.mean())


# Composition.


def folded(naive: Naive, layer: int, h: int, which: str) -> Tensor:
    """The QK or OV circuit of a head, static maps multiplied in head by head."""
    W_Q, W_K, W_V, W_O = naive.heads(layer)
    eye = torch.eye(2).double()
    pre, post = (
        eye + naive.weights.get(f"blocks.{layer}.attn.compose_{stage}.static", 0 * eye)
        for stage in ("pre", "post")
    )
    if which == "QK":
        return sum(pre[n, h] * W_Q[n] @ W_K[n].T for n in range(2))
    return sum(post[h, m] * W_V[m] @ W_O[m] for m in range(2))


def score_between(naive: Naive, port: str) -> Tensor:
    """Of head 1 of the first layer with head 0 of the second."""
    OV, QK = folded(naive, 0, 1, "OV"), folded(naive, 1, 0, "QK")
    reader = {"Q": QK, "K": QK.T, "V": folded(naive, 1, 0, "OV")}[port]
    return (OV @ reader).norm() / (OV.norm() * reader.norm())


def check_composition_scores(s: Subject) -> None:
    parts_found, scores = composition.composition_scores(s.model)
    names = [str(writer) for writer in parts_found.writers], [str(reader) for reader in parts_found.readers]
    if s.naive.config.n_layers == 1:
        assert not scores.any()
        return
    for port in "QKV":
        same(scores[names[0].index("L0H1"), names[1].index(f"L1H0.{port}")], score_between(s.naive, port))


def check_composition(s: Subject) -> None:
    if s.naive.config.n_layers == 1:
        return
    found = composition.composition(s.model, n_null=20, max_null=20)
    for port in "QKV":
        same(found.edge("L0H1", f"L1H0.{port}").score, score_between(s.naive, port))


def check_virtual_head(s: Subject) -> None:
    order = [(layer, 1) for layer in range(s.naive.config.n_layers)]
    expected = torch.eye(8).double()
    for layer, h in order:
        expected = expected @ folded(s.naive, layer, h, "OV")
    same(composition.virtual_head(s.model, order).AB, expected, atol=1e-3)


def check_head_paths(s: Subject) -> None:
    deep = s if s.naive.config.n_layers == 1 or s.naive.turbo else three_layers(s)
    found = {str(path): path for path in composition.head_paths(deep.model, top=1000)}
    if s.naive.config.n_layers == 1:
        assert not found
        return
    same(found["L0H1 -> L1H0.K"].strength, score_between(deep.naive, "K"))
    first, second, last = (
        folded(deep.naive, 0, 1, "OV"),
        folded(deep.naive, 1, 0, "OV"),
        folded(deep.naive, 2, 1, "QK").T,
    )
    expected = (first @ second @ last).norm() / (first.norm() * second.norm() * last.norm())
    same(found["L0H1 -> L1H0 -> L2H1.K"].strength, expected)


def three_layers(s: Subject) -> Subject:
    model = noisy(SparseTransformer(replace(s.naive.config, n_layers=3)), seed=2)
    naive = Naive.of(model)
    return replace(s, model=compute.compact(model) if s.option == "compact" else model, naive=naive)


def check_weight_paths(s: Subject) -> None:
    """The paths from a value channel to a key channel add up to the entry of W_O W_K."""
    if s.naive.config.n_layers == 1:
        assert all(path.nodes[1].site == "attn_out" for path in composition.weight_paths(s.model))
        return
    found = composition.weight_paths(s.model, source=Writer(0, "head", 1), target=Reader(1, "head", 0, "K"))
    total = torch.zeros(3, 3).double()
    for path in found:
        total[path.nodes[0].index - 3, path.nodes[-1].index] += path.weight
    same(total, s.naive.heads(0)[3][1] @ s.naive.heads(1)[1][0])


def check_on_data(s: Subject) -> None:
    """Composing by hand: the head's mean in place of its output, in one reader's values alone."""
    if s.naive.config.n_layers == 1:
        with pytest.raises(ValueError, match="pairs: got none"):
            composition.composition_on_data(s.model, TOKENS)
        return
    pair = (Writer(0, "head", 1), Reader(1, "head", 0, "V"))
    found = composition.composition_on_data(s.model, TOKENS, pairs=[pair])
    same(found.effect[0], effect_on_values(s.naive))


def effect_on_values(naive: Naive) -> Tensor:
    plain_run, d = naive.run(TOKENS), naive.config.d_head
    v = plain_run.sites[Site(0, "attn_v")][..., d : 2 * d]
    z = plain_run.carried[0][:, 1] @ v
    delta = (z.mean((0, 1)) - z) @ naive.heads(0)[3][1]
    if naive.config.topk(Site(0, "attn_out")) is not None:
        delta = delta * (plain_run.sites[Site(0, "attn_out")] != 0)
    changed = naive.run(TOKENS, put={"0.mlp": plain_run.stream["0.mlp"] + delta})
    pair = (plain_run, v_only(naive, plain_run, changed))
    before, after = (plain_run.carried[1][:, 0] @ run.sites[Site(1, "attn_v")][..., :d] for run in pair)
    return (after - before).norm() / before.norm()


def v_only(naive: Naive, plain_run: Pass, changed: Pass) -> Pass:
    """Head 0's values worked out from the changed stream; AbsTopK on them acts with the other head's as they were."""
    d, config = naive.config.d_head, naive.config
    own, other = raw_values(naive, changed), raw_values(naive, plain_run)
    mixed = torch.cat([own[..., :d], other[..., d:]], -1)
    k = config.topk(Site(1, "attn_v"))
    if k is not None:
        mixed = mixed.masked_fill(mixed.abs().argsort(-1, descending=True).argsort(-1) >= k, 0)
    return Pass(**{**vars(plain_run), "sites": {Site(1, "attn_v"): mixed}})


def raw_values(naive: Naive, run: Pass) -> Tensor:
    linear = "blocks.1.attn.v."
    return run.sites[Site(1, "attn_in")] @ naive.weights[linear + "weight"] + naive.weights[linear + "bias"]


def check_maps(s: Subject) -> None:
    last = s.naive.config.n_layers - 1
    found, expected = composition.composition_maps(s.model, TOKENS, layer=last), s.naive.run(TOKENS).maps
    same(found.pre, expected[last, "pre"])
    same(found.post, expected[last, "post"])


def check_head_mixing(s: Subject) -> None:
    run = s.naive.run(TOKENS)
    _, _, W_V, W_O = s.naive.heads(0)
    for n, m in product(range(2), range(2)):
        moved = (run.patterns[0][:, n] * run.maps[0, "post"][..., n, m]).abs().sum(-1).mean()
        same(composition.head_mixing(s.model, TOKENS)[n, m], moved * (W_V[m] @ W_O[m]).norm())


def check_folded(s: Subject) -> None:
    QK, OV = composition.folded_circuits(s.model, layer=0)
    for h in range(2):
        same(QK.AB[h], folded(s.naive, 0, h, "QK"))
        same(OV.AB[h], folded(s.naive, 0, h, "OV"))


def check_run_composed(s: Subject) -> None:
    """Closed, all compositions leave plain attention."""
    masks = {name: torch.zeros(shape) for name, shape in composition.compose_gates(s.model).items()}
    plain_naive = replace(
        s.naive,
        config=replace(s.naive.config, attention="softmax", compose="none"),
        weights={name: value for name, value in s.naive.weights.items() if "compose" not in name},
    )
    same(composition.run_composed(s.model, TOKENS, masks), plain_naive.run(TOKENS).logits)


def check_prune_compositions(s: Subject) -> None:
    config = composition.ComposePruneConfig(steps=2, batch_size=4, n_eval=4, tolerance=0.01)
    found = composition.prune_compositions(s.model, TASK, config)
    same(found.full.loss, loss_of(s.naive, TASK.batch(4, split="test", seed=0).tokens_and_targets()))
    assert found.n_gates == len(composition.compose_gates(s.model, "branch")) > 0


# Bridges.


def next_token_loss(logits: Tensor) -> float:
    return float(F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()))


def check_bridges(s: Subject, tmp_path: Path) -> None:
    """Hybrids of a fit, crossed by hand with the maps that it gave; saved and read again; the sparse side alone."""
    pairs = (bridges.Pair("0.attn", "0.mlp"),)
    config = bridges.BridgeConfig(pairs=pairs, steps=2, batch_size=3, n_val=4)
    found = bridges.fit_bridges(s.other, s.model, CORPUS, config, progress=False)
    again = bridges.load_bridges(found.save(tmp_path / "b.safetensors"), dense=s.other, sparse=s.model)
    dense, maps = Naive.of(s.other), found.maps[0]
    h = dense.run(TOKENS).stream["0.attn"].float()
    for each in (found, again):
        same(
            each.hybrid(TOKENS, "0.attn"),
            s.naive.run(TOKENS, put={"0.mlp": maps.encode(h)}).logits,
            atol=1e-3,
        )
    back = maps.decode(s.naive.run(TOKENS).stream["0.mlp"].float())
    same(found.hybrid(TOKENS, "0.attn", start="sparse"), dense.run(TOKENS, put={"0.attn": back}).logits)
    row = bridges.bridge_metrics(found, TOKENS)
    same(row["loss_sparse"], next_token_loss(s.naive.run(TOKENS).logits))
    same(
        row["locations"][0]["loss_sparse_to_dense"],
        next_token_loss(dense.run(TOKENS, put={"0.attn": back}).logits),
    )
    assert math.isfinite(float(bridges.chain_losses(found, TOKENS)[0, 0]))


def check_dense_side(s: Subject) -> None:
    """The model of the option as the dense one."""
    pairs = (bridges.Pair("0.attn", "0.mlp"),)
    config = bridges.BridgeConfig(pairs=pairs, steps=2, batch_size=3, n_val=4)
    found = bridges.fit_bridges(s.model, s.other, CORPUS, config, progress=False)
    back = found.maps[0].decode(Naive.of(s.other).run(TOKENS).stream["0.mlp"].float())
    same(
        found.hybrid(TOKENS, "0.attn", start="sparse"),
        s.naive.run(TOKENS, put={"0.attn": back}).logits,
        atol=1e-3,
    )


def test_an_interrupted_fit_beside_a_compact_model_goes_on(
    made: Callable[..., Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bits that it would have reached."""
    s = made("compact")
    config = bridges.BridgeConfig(pairs=(bridges.Pair("embed", "embed"),), steps=3, batch_size=2, n_val=2)
    whole = bridges.fit_bridges(s.other, s.model, CORPUS, config, progress=False)
    fit, left = importlib.import_module("circuits.bridges.fit"), tmp_path / "left.safetensors"
    stopped = stop_in(fit._Fit.one_step, 1)
    with monkeypatch.context() as patch:
        patch.setattr(fit._Fit, "one_step", stopped)
        with pytest.raises(circuits.TrainingInterrupted):
            bridges.fit_bridges(s.other, s.model, CORPUS, config, checkpoint=left, progress=False)
    resumed = bridges.fit_bridges(s.other, s.model, CORPUS, config, resume=left, progress=False)
    for ours, theirs in zip(resumed.maps.parameters(), whole.maps.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def stop_in(one_step: Callable[[Any], None], n: int) -> Callable[[Any], None]:
    """Ctrl-C during one of the steps."""

    def step(fit: Any) -> None:
        if fit.step == n:
            signal.raise_signal(signal.SIGINT)
        one_step(fit)

    return step


def check_identity(s: Subject) -> None:
    found = bridges.identity_bridges(s.model)
    same(found.hybrid(TOKENS, "embed", "0.attn"), s.naive.run(TOKENS).logits)


def check_steer(s: Subject) -> None:
    found = bridges.identity_bridges(s.model)
    batch = TASK.batch(4, split="test", seed=0)
    done = steering.steer(found, batch, "0.mlp", [1, 4], strengths=(0.0, 0.5), n_controls=1)
    targets = batch.tokens_and_targets()
    rows = torch.arange(len(targets.tokens))
    stream = s.naive.run(targets.tokens).stream["0.mlp"]
    move = stream.roll(4, 0) - stream
    for row, end in enumerate(targets.position):
        move[row, end + 1 :] = 0
    for channel in range(8):
        move[..., channel] *= channel in (1, 4)
    for i, strength in enumerate((0.0, 0.5)):
        p = s.naive.run(targets.tokens, put={"0.mlp": stream + strength * move}).logits.softmax(-1)
        same(done.steered.p_foil[i], p[rows, targets.position, targets.foil])
        same(done.sparse.p_answer[i], p[rows, targets.position, targets.answer])


def check_channel_effects(s: Subject) -> None:
    batch = TASK.batch(4, split="test", seed=0)
    targets = batch.tokens_and_targets()
    found = steering.channel_effects(s.model, batch, "0.attn")
    stream = s.naive.run(targets.tokens).stream["0.attn"]
    move = stream.roll(4, 0) - stream
    for row, end in enumerate(targets.position):
        move[row, end + 1 :] = 0
    plain_margins = margins_of(s.naive.run(targets.tokens).logits, targets)
    for channel in range(8):
        put = stream.clone()
        put[..., channel] += move[..., channel]
        moved = margins_of(s.naive.run(targets.tokens, put={"0.attn": put}).logits, targets)
        same(found[channel], (plain_margins - moved).mean(), atol=1e-3)


def check_dilution(s: Subject) -> None:
    found = dilution.dilution_sweep(s.other, s.model, s.circuit, lengths=(2,), n=8).cells[0]
    targets = Brackets(length=2).batch(8, split="test", seed=0).tokens_and_targets()
    deep = targets.answer == Brackets().tokenizer.id("]]")
    by_circuit = margins_of(s.naive.of_circuit(s.circuit).run(targets.tokens).logits, targets)
    same(found.depth_margin, by_circuit[deep].mean())
    same(
        found.sparse_error,
        (margins_of(s.naive.run(targets.tokens).logits, targets)[deep] <= 0).double().mean(),
    )


def check_attack(s: Subject) -> None:
    """Of no rounds: the lowest margins among random prompts of one length."""
    found = dilution.attack(s.other, s.model, s.circuit, length=2, n=8, keep=3, rounds=0)
    targets = Brackets(length=2).batch(8, split="test", seed=0).tokens_and_targets()
    ends = targets.position.tolist()
    usual = targets.position == max(set(ends), key=ends.count)
    targets = Targets(*(part[usual] for part in targets))
    by_circuit = margins_of(s.naive.of_circuit(s.circuit).run(targets.tokens).logits, targets)
    same(found.found_margin, by_circuit.sort().values[:3].mean())


@dataclass(frozen=True, kw_only=True)
class Row:
    """An analysis: how it is checked, and the columns that it refuses, with what its message must hold."""

    check: Callable[..., None]
    refuses: dict[str, str]
    circuits: bool = False
    "Whether options of circuits are columns too."
    shape: dict[str, Any]
    "Size of the model, where the analysis asks for one."


def row(
    check: Callable[..., None],
    refuses: dict[str, str] | None = None,
    *,
    on_circuits: bool = False,
    **shape: Any,
) -> Row:
    return Row(check=check, refuses=refuses or {}, circuits=on_circuits, shape=shape)


WRITTEN_OUT = (
    COMPOSED
    | THROUGH
    | EXPERTS
    | FACTORS
    | GELU_NEW
    | {
        "position": "found under 'position' ablation",
        "resample": "found under 'resample' ablation",
        "some sites": "circuit: it says nothing of site",
    }
)
MINI = dict(n_words=Brackets().tokenizer.d_vocab, n_ctx=Brackets(length=2).n_ctx)
TABLE: dict[str, Row] = {
    "mean_values": row(check_mean_values),
    "ablation_values": row(check_ablation_values),
    "run_masked": row(check_run_masked, on_circuits=True),
    "run_circuit": row(check_run_circuit, on_circuits=True),
    "edges_between": row(check_edges_between),
    "task_score": row(check_task_score),
    "transplant": row(check_transplant, on_circuits=True),
    "routing": row(check_routing, PLAIN),
    "choices": row(check_choices, PLAIN),
    "neurons_by_expert": row(check_neurons_by_expert, PLAIN),
    "save_checkpoint": row(check_checkpoint),
    "sparse_compute": row(check_sparse_compute),
    "to_python": row(
        check_to_python,
        WRITTEN_OUT,
        on_circuits=True,
    ),
    "circuit_view": row(check_view, WRITTEN_OUT, on_circuits=True),
    "to_html": row(check_page, WRITTEN_OUT, on_circuits=True),
    "explore": row(check_widget, WRITTEN_OUT, on_circuits=True),
    "describe": row(check_describe, on_circuits=True),
    "prune": row(check_prune, NO_GRADIENTS, on_circuits=True, n_layers=1),
    "trust_report": row(check_trust_report, NO_GRADIENTS, on_circuits=True, n_layers=1),
    "gate_floor": row(check_gate_floor, NO_GRADIENTS, on_circuits=True),
    "rank": row(check_rankings, NO_GRADIENTS),
    "rank, edges": row(check_edge_rankings, NO_GRADIENTS),
    "rank, magnitude": row(check_weight_magnitude, COMPOSED | FEW_BITS),
    "qk_circuit": row(check_qk_and_ov),
    "full_qk": row(check_full_qk, COMPOSED | THROUGH),
    "full_ov": row(check_full_ov, THROUGH),
    "copying_scores": row(check_copying, THROUGH),
    "previous_scores": row(check_previous, COMPOSED | THROUGH),
    "duplicate_scores": row(check_duplicate, COMPOSED | THROUGH),
    "induction_scores": row(check_induction, COMPOSED | THROUGH),
    "pattern_scores": row(check_patterns),
    "head_report": row(check_head_report, COMPOSED | THROUGH),
    "composition_scores": row(check_composition_scores, DYNAMIC | NORMED | FEW_BITS),
    "composition": row(check_composition, DYNAMIC | NORMED | FEW_BITS),
    "virtual_head": row(check_virtual_head, DYNAMIC | NORMED | FEW_BITS),
    "head_paths": row(check_head_paths, DYNAMIC | NORMED | FEW_BITS),
    "weight_paths": row(check_weight_paths, NORMED | FACTORS | FEW_BITS),
    "composition_on_data": row(check_on_data, {"post": NORMED["post"]} | FACTORS | FEW_BITS),
    "composition_maps": row(check_maps),
    "head_mixing": row(check_head_mixing),
    "folded_circuits": row(check_folded, DYNAMIC),
    "run_composed": row(check_run_composed),
    "prune_compositions": row(
        check_prune_compositions,
        {name: "compose='none'" for name in MODEL_OPTIONS if name not in COMPOSED} | NO_GRADIENTS,
    ),
    "fit_bridges": row(check_bridges, NO_GRADIENTS),
    "fit_bridges, dense side": row(check_dense_side, NO_GRADIENTS),
    "identity_bridges": row(check_identity),
    "steer": row(check_steer),
    "channel_effects": row(check_channel_effects),
    "dilution_sweep": row(check_dilution, on_circuits=True, **MINI),
    "attack": row(check_attack, on_circuits=True, **MINI),
}
LONG = {"prune", "trust_report", "fit_bridges"}
"""Analyses that take seconds: with options other than none they are slow tests."""


def is_slow(name: str, option: str) -> tuple[pytest.MarkDecorator, ...]:
    is_long = name.partition(",")[0] in LONG and option != "default"
    return (pytest.mark.slow,) if is_long else ()


CELLS = [
    pytest.param(name, option, id=f"{name}-{option}", marks=is_slow(name, option))
    for name, analysis in TABLE.items()
    for option in (*MODEL_OPTIONS, *(CIRCUIT_OPTIONS if analysis.circuits else ()))
]


@pytest.mark.parametrize(("name", "option"), CELLS)
def test_says_or_refuses(
    name: str, option: str, made: Callable[..., Subject], request: pytest.FixtureRequest
) -> None:
    analysis = TABLE[name]
    given: dict[str, Any] = {"s": made(option, **analysis.shape)}
    if "tmp_path" in inspect.signature(analysis.check).parameters:
        given["tmp_path"] = request.getfixturevalue("tmp_path")
    if option in analysis.refuses:
        with pytest.raises(ValueError, match=re.escape(analysis.refuses[option])):
            analysis.check(**given)
    else:
        analysis.check(**given)


PARTS = {
    "check_belongs", "check_inputs", "check_task", "resolve_pairs",  # say whether things belong together
    "ov_circuit", "compact", "frozen", "repeated_tokens", "compose_gates",
    "bridge_metrics", "chain_losses", "load_bridges",  # checked in the row of another one
    "circuit_margins", "embedding_weights", "head_weights", "io_edges", "task_margins", "new_maps",
    "parts_of", "search", "with_static_maps",  # parts of analyses in the table
    "recover",  # pruning of hand-made models
    "check_folds", "rest_of", "positions", "node_ends",  # parts of a circuit written out, and in words
    "circuit_program",  # what the explorer's page computes with
    "rivals", "stability_card",  # pruning, more than once
    "effects_between",  # of wrapped models: what pruning measures between their nodes
    "sentences",  # circuit_view's and circuit_figure's words
    "contexts",  # a run as it is, and the text around its largest values: test_contexts.py
    "scope", "site_values",  # masked runs on other prompts, and what a run gives
    "node_scores", "edge_scores", "embeddings", "task_means", "curve", "curves", "nodes_by",  # of rankings
    "has_encoder", "group_weights", "stack_head_report",  # of encoder-decoders: test_encdec_options.py
}  # fmt: skip
"""Functions that take a model and have no row of their own."""
ROOMS = (
    "circuit",
    "pruning",
    "trust",
    "decompile",
    "handmade",
    "heads",
    "composition",
    "bridges",
    "ranking",
    "explorer",
)
TAKES = {"model", "dense", "sparse", "bridges", "made"}


def analyses() -> set[str]:
    """Public functions of the rooms that look at models, and what the package exports beside training and loading."""
    found = {"sparse_compute", "compact", "frozen", "save_checkpoint"}
    for room in ROOMS:
        path = importlib.import_module(f"circuits.{room}").__path__
        for each in pkgutil.walk_packages(path, f"circuits.{room}."):
            module = importlib.import_module(each.name)
            found |= {
                name
                for name, function in vars(module).items()
                if inspect.isfunction(function)
                and function.__module__ == each.name
                and not name.startswith("_")
                if TAKES & set(inspect.signature(function).parameters)
            }
    return found


def test_every_analysis_is_in_the_table() -> None:
    rows = {name.split(",")[0] for name in TABLE}
    assert analyses() - rows == PARTS
    assert rows <= analyses()


def test_every_option_of_a_model_is_stated() -> None:
    """A field added to ModelConfig is a size, or takes a field of `Says` and a column here."""
    stated = {option.name for option in fields(Says)}
    names = {option.name for option in fields(ModelConfig)}
    assert names - set(SIZES) <= stated
    assert set(SIZES) <= names
    changed = {name for options in MODEL_OPTIONS.values() for name in options}
    assert names - set(SIZES) <= changed | {"arch"}


def test_what_is_not_stated_is_refused() -> None:
    model = plain(N_WORDS, N_CTX)
    Says().check(model, "this", instead="Nothing.")
    message = re.escape(
        "model: it has sink=True; this expected sink=False, which is all that it can say. Do that."
    )
    with pytest.raises(ValueError, match=message):
        Says(sink=(False,)).check(model, "this", instead="Do that.")
    composed = SparseTransformer(replace(model.config, attention="compose", compose="qw"))
    with pytest.raises(ValueError, match="compose='qw'; that expected compose='none' or 'kw'"):
        Says(compose=("none", "kw")).check(composed, "that", instead="")
    Says(compose=None).check(composed, "that", instead="")


def test_values_of_too_few_positions_are_refused() -> None:
    model, naive, circuit = known("position", N_WORDS, N_CTX)
    short = replace(circuit, values={site: value[:4] for site, value in circuit.values.items()})
    same(masked.run_circuit(model, short, TOKENS[:, :4]), naive.of_circuit(circuit).run(TOKENS[:, :4]).logits)
    with pytest.raises(ValueError, match="values: got those of 4 positions for prompts of 6 tokens"):
        masked.run_circuit(model, short, TOKENS)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_heads_of_models_of_transformer_lens(kind: str) -> None:
    """Shares of patterns as the wrapped model's hooks give them; full circuits from its own weights."""
    model = lens_bridge(kind)
    tokens = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    patterns = [cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(2)]
    found = heads.head_report(model, tokens)
    for row in found.rows:
        before = patterns[row.layer][:, row.head].diagonal(-1, 1, 2).mean()
        same(row.previous, before)
        same(row.sink, 0.0)
    assert (found.rows[0].previous_from_weights is None) == (kind == "llama")
    W_V, W_O = (getattr(model.blocks[1].attn, name) for name in ("W_V", "W_O"))
    expected = model.W_E[tokens[0]] @ W_V[3 * len(W_V) // 4] @ W_O[3] @ model.W_U[:, tokens[0]]
    same(heads.full_ov(model, tokens[0], layer=1, head=3, normed=False).AB, expected)


def test_bridges_from_a_model_of_transformer_lens() -> None:
    """The dense side of a bridge: the stream of the wrapped model goes into ours."""
    model, words = lens_bridge("gpt2"), tuple(f"w{i}" for i in range(50))
    model.tokenizer = None
    ours = plain(50, N_CTX)
    text = replace(CORPUS, tokenizer=WordTokenizer(name="fifty", words=words))
    pairs = (bridges.Pair("0.mlp", "0.attn"),)
    found = bridges.fit_bridges(
        model, ours, text, bridges.BridgeConfig(pairs=pairs, steps=1, batch_size=2, n_val=2), progress=False
    )
    with torch.no_grad(), still(model):
        stream = model.original_model(TOKENS, output_hidden_states=True).hidden_states[1]
    carried = found.maps[0].encode(stream)
    same(found.hybrid(TOKENS, "0.mlp"), Naive.of(ours).run(TOKENS, put={"0.attn": carried}).logits, atol=1e-3)
