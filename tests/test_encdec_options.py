"""Every analysis on an encoder-decoder, pre- and post-norm: right, as `naive_encdec` is, or refused by name.

The rows are those of the table in test_options.py, whose columns are the options of decoders.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import test_options as decoders
import torch
from naive_encdec import WEIGHTS, NaiveEncDec
from torch import Tensor
from torch.nn import functional as F

from circuits import bridges, composition, decompile, heads, trust
from circuits.bridges import dilution, steering
from circuits.circuit import ablation, compare, masked, parts, routing, score
from circuits.circuit.circuit import Circuit
from circuits.circuit.criterion import Criterion
from circuits.circuit.nodes import Edge, Node
from circuits.explorer import circuit_view, explore, to_html
from circuits.handmade import rankings
from circuits.model import checkpoint, compute
from circuits.model.config import ModelConfig
from circuits.model.sites import Site
from circuits.model.transformer import SparseTransformer
from circuits.plots import plot
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.ranking import RankConfig, rank
from circuits.ranking.gradients import embeddings
from circuits.trust import yardsticks
from tasks import Corpus, load_corpus, load_task
from tasks.base import Targets
from tasks.transduction import Transduction, rows

TASK = Transduction(name="copy")
SMALL: dict[str, Any] = dict(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=12)
CONFIGS = {
    "encdec": ModelConfig(arch="encdec", **TASK.shape(), topk_fraction=0.5, **SMALL),  # type: ignore[arg-type]
    "encdec, post-norm": ModelConfig.original(**TASK.shape(), **SMALL),
}
TOKENS = rows("copy", 9, split="test", seed=2)
same = decoders.same


@dataclass(frozen=True, kw_only=True)
class Subject:
    model: SparseTransformer
    naive: NaiveEncDec
    circuit: Circuit


@pytest.fixture(params=list(CONFIGS))
def s(request: pytest.FixtureRequest) -> Subject:
    return known(request.param)


@cache
def known(kind: str) -> Subject:
    model = decoders.noisy(SparseTransformer(CONFIGS[kind], tokenizer=TASK.tokenizer), seed=1)
    naive = NaiveEncDec.of(model)
    return Subject(model=model, naive=naive, circuit=circuit_of(model, naive))


def circuit_of(model: SparseTransformer, naive: NaiveEncDec) -> Circuit:
    """Half of the nodes, most of the edges between them."""
    generator = torch.Generator().manual_seed(3)
    seen = naive.run(TOKENS)[1]
    nodes = [
        Node.of(site, i)
        for site, width in model.widths.items()
        for i in range(width)
        if torch.rand((), generator=generator) < 0.5
    ]
    edges = [e for e in loop_edges(naive, nodes) if torch.rand((), generator=generator) < 0.8]
    return Circuit(
        nodes=tuple(nodes),
        edges=tuple(edges),
        widths=model.widths,
        n_layers=model.config.n_layers,
        d_head=model.config.d_head,
        criterion=Criterion(
            objective="task",
            task="copy",
            target_loss=100.0,
            target_accuracy=0.0,
            calibrate=False,
            n_eval=2,
            n_test=6,
        ),
        model_hash=model.fingerprint(),
        values={site: real_values(site, value).mean(0).float() for site, value in seen.items()},
    )


def real_values(site: Site, value: Tensor) -> Tensor:
    """[places, width], those of text alone."""
    n = 7
    source = site.stack == "encoder" or site.name in ("cross_memory", "cross_k", "cross_v")
    return value[(TOKENS[:, :n] if source else TOKENS[:, n:]) != 0]


def loop_edges(naive: NaiveEncDec, nodes: list[Node]) -> list[Edge]:
    found = []
    for a, b in product(nodes, nodes):
        if (a.layer, a.stack) != (b.layer, b.stack):
            continue
        for at in naive.places():
            if (at.layer, at.stack) == (a.layer, a.stack) and WEIGHTS[at.name][:2] == (a.site, b.site):
                weight = float(naive.matrix(at)[a.index, b.index])
                found += [Edge(a, b, weight)] if weight else []
        if (a.site, b.site) in (("attn_k", "attn_q"), ("cross_k", "cross_q")) and a.index == b.index:
            found.append(Edge(a, b, naive.config.d_head**-0.5))
    return found


def loss_of(naive: NaiveEncDec, targets: Targets) -> float:
    return float(F.softplus(-decoders.margins_of(naive.run(targets.tokens)[0], targets)).mean())


def targets_of(n: int, split: Any = "test") -> Targets:
    return TASK.batch(n, split=split, seed=0).tokens_and_targets()


# What works.


def check_means(s: Subject) -> None:
    for site, value in ablation.mean_values(s.model, TOKENS, batch_size=4).items():
        same(value, real_values(site, s.naive.run(TOKENS)[1][site]).mean(0))


def check_ablation(s: Subject) -> None:
    check_means(s)
    assert not any(v.any() for v in ablation.ablation_values(s.model, TOKENS, "zero").values())
    for kind in ("position", "resample"):
        with pytest.raises(ValueError, match=f"got '{kind}' for a model with arch='encdec'"):
            ablation.ablation_values(s.model, TOKENS, kind)  # type: ignore[arg-type]


def check_run_masked(s: Subject) -> None:
    masks = {site: 1 - mask.float() for site, mask in s.circuit.to_mask().items()}
    found = masked.run_masked(s.model, TOKENS, masks, s.circuit.values)
    same(found, s.naive.of_circuit(s.circuit, inverse=True).run(TOKENS)[0])


def check_run_circuit(s: Subject) -> None:
    same(s.model(TOKENS), s.naive.run(TOKENS)[0])
    same(masked.run_circuit(s.model, s.circuit, TOKENS), s.naive.of_circuit(s.circuit).run(TOKENS)[0])


def check_edges(s: Subject) -> None:
    found = parts.edges_between(s.model, s.circuit.nodes)
    assert {(e.source, e.target): pytest.approx(e.weight) for e in found} == {
        (e.source, e.target): e.weight for e in loop_edges(s.naive, list(s.circuit.nodes))
    }


def check_task_score(s: Subject) -> None:
    same(score.task_score(s.model, TASK.batch(8, split="test", seed=0)).loss, loss_of(s.naive, targets_of(8)))


def check_transplant(s: Subject) -> None:
    table = compare.transplant(s.model, {"a": s.circuit}, {"t": TASK}, n_pairs=8)
    same(table.loss[0][0], loss_of(s.naive.of_circuit(s.circuit), targets_of(8)))


def check_checkpoint(s: Subject, tmp_path: Path) -> None:
    path = checkpoint.save_checkpoint(tmp_path / "m.safetensors", s.model)
    for compact in (False, True):
        again = checkpoint.load_checkpoint(path, compact=compact).model
        assert again.fingerprint() == s.circuit.model_hash
        same(again(TOKENS), s.naive.run(TOKENS)[0])
    assert Circuit.load(s.circuit.save(tmp_path / "c.json")) == s.circuit


def check_sparse_compute(s: Subject) -> None:
    with compute.sparse_compute(s.model) as chosen:
        assert "cpu" in chosen.values()
        same(s.model(TOKENS), s.naive.run(TOKENS)[0])
        same(masked.run_circuit(s.model, s.circuit, TOKENS), s.naive.of_circuit(s.circuit).run(TOKENS)[0])


def check_prune(s: Subject) -> None:
    few = dict(
        starts=1, steps=4, batch_size=4, n_mean=4, n_eval=2, n_test=8, target_loss=3.0, target_accuracy=0.01
    )
    config = PruneConfig(objective="faithful", prune_edges=False, **few)  # type: ignore[arg-type]
    found = prune(s.model, TASK, config, corpus=corpus(), progress=False)
    there = {(edge.source, edge.target) for edge in loop_edges(s.naive, list(found.nodes))}
    assert {(edge.source, edge.target) for edge in found.edges} <= there
    p, q = (
        torch.sigmoid(decoders.margins_of(n.run(targets_of(8).tokens)[0], targets_of(8)))
        for n in (s.naive, s.naive.of_circuit(found))
    )
    same(found.metrics["kl_to_model"], (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean())


@cache
def corpus() -> Corpus:
    return load_corpus("copy")


def check_trust(s: Subject) -> None:
    config = trust.TrustConfig(n_pairs=4, n_random=1, n_knockouts=1, n_greedy=0, control_steps=0)
    few = replace(s.circuit, nodes=s.circuit.nodes[::15], edges=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yardsticks, "SHARES", (0.1, 1.0))
        report = trust.trust_report(s.model, few, TASK, config)
    same(report["sufficiency"].value, loss_of(s.naive.of_circuit(few), targets_of(6)))
    full, without = (
        loss_of(s.naive, targets_of(4)),
        loss_of(s.naive.of_circuit(few, inverse=True), targets_of(4)),
    )
    same(report["necessity"].value, without - full)


def check_gate_floor(s: Subject) -> None:
    config = PruneConfig(objective="task", calibrate=False, steps=1, lr=1e-9)
    found = trust.gate_floor(s.model, TASK, dict(s.circuit.values), config)
    same(found.loss, loss_of(s.naive, targets_of(64)))


def check_rankings(s: Subject) -> None:
    """First-order effects of embeddings alone: the node order starts from every site of both stacks."""
    for name in ("attribution patching", "integrated gradients"):
        ranked = rankings.METHODS[name](s.model, TASK)
        assert {node.stack for node in ranked} == {"encoder", "decoder"}
        assert len(ranked) == sum(s.model.widths.values())
    task, blends = TASK, embeddings(s.model, TASK.batch(3, split="train", seed=0).corrupt)
    tokens = task.batch(3, split="train", seed=0).corrupt
    table = s.model.embedding("encoder") * (s.model.config.d_model**0.5 if s.model.config.embed_scale else 1)
    same(blends["encoder.embedding.hook_embed"], table[tokens[:, :7]])


def check_edge_rankings(s: Subject) -> None:
    """By finite differences: an edge's mask a little lower and higher, at its source's corrupted value."""
    batch = TASK.batch(1, split="train", seed=0)
    found = rank(s.model, TASK, method="EAP", config=RankConfig(n_pairs=1)).scores
    corrupt = {site: value[0] for site, value in s.naive.run(batch.corrupt)[1].items()}
    targets = Targets(batch.clean, batch.answer, batch.foil, batch.position)
    assert set(found) == set(s.naive.places())
    for at, effect in found.items():
        if at.name in ("W_O", "W_CO"):  # read what heads carried to a place, for which no value of v stands
            continue
        for i, j in effect.isfinite().nonzero().tolist()[::4]:
            loss = []
            for change in (1e-5, -1e-5):
                mask = torch.ones(effect.shape).double()
                mask[i, j] += change
                loss.append(loss_of(replace(s.naive, cut={at: mask}, values=corrupt), targets))
            same(effect[i, j], abs(loss[0] - loss[1]) / 2e-5)


def check_weight_magnitude(s: Subject) -> None:
    ranked = rankings.weight_magnitude(s.model, TASK)
    total = {node: 0.0 for node in ranked}
    for at in s.naive.places():
        source, target, _ = WEIGHTS[at.name]
        matrix = s.naive.matrix(at).abs()
        for i, j in product(*map(range, matrix.shape)):
            value = float(matrix[i, j])
            total[Node(at.layer, source, i, at.stack)] += value  # type: ignore[arg-type]
            total[Node(at.layer, target, j, at.stack)] += value  # type: ignore[arg-type]
    order = [total[node] for node in ranked]
    assert all(b <= a + 1e-4 for a, b in pairwise(order))


def check_run_composed(s: Subject) -> None:
    same(composition.run_composed(s.model, TOKENS, {}), s.naive.run(TOKENS)[0])


def check_scores(s: Subject) -> None:
    """Every pair, from the weights of its own two sublayers; only K and V of cross-attention cross the seam."""
    found, scores = composition.composition_scores(s.model)
    w, d = s.naive.weights, s.model.config.d_head
    names = {("encoder", "head"): "encoder.blocks.0.attn", ("decoder", "head"): "blocks.0.attn"}
    names["decoder", "cross"] = "blocks.0.cross"
    compared = set()
    for i, writer in enumerate(found.writers):
        for j, reader in enumerate(found.readers):
            if not bool(found.later[i, j]):
                assert scores[i, j] == 0
                continue
            compared.add((writer.stack, writer.kind, reader.kind, reader.port))
            own, other = (slice(p.number * d, (p.number + 1) * d) for p in (writer, reader))
            a, b = names[writer.stack, writer.kind], names[reader.stack, reader.kind]
            left = w[f"{a}.v.weight"][:, own] @ w[f"{a}.o.weight"][own]
            q, k, v = (w[f"{b}.{c}.weight"][:, other] for c in "qkv")
            right = {"Q": q @ k.T, "K": k @ q.T, "V": v @ w[f"{b}.o.weight"][other]}[reader.port]
            same(scores[i, j], (left @ right).norm() / (left.norm() * right.norm()).clamp_min(1e-30))
    assert compared == {
        ("encoder", "head", "cross", "K"),
        ("encoder", "head", "cross", "V"),
        ("decoder", "head", "cross", "Q"),
    }


def check_composition(s: Subject) -> None:
    found = composition.composition(s.model, n_null=40, max_null=40)
    assert found.edge("encoder.L0H1", "L0X0.K").p > 0
    for figure in (plot(found), found.plot_graph(rate=1.0)):
        assert any("L0X0" in str(trace) for trace in figure.data)
    texts = [a.text for a in found.plot_graph(rate=1.0).layout.annotations]
    assert texts[:3] == ["encoder 0", "decoder 0", "decoder 0, to encoder"]


# What is refused: a call, and the option by which it is refused when norms come first, and when they come last.

Call = Callable[[Subject], Any]
WORKS: dict[str, Callable[..., None]] = {
    "mean_values": check_means,
    "ablation_values": check_ablation,
    "run_masked": check_run_masked,
    "run_circuit": check_run_circuit,
    "edges_between": check_edges,
    "task_score": check_task_score,
    "transplant": check_transplant,
    "save_checkpoint": check_checkpoint,
    "sparse_compute": check_sparse_compute,
    "prune": check_prune,
    "trust_report": check_trust,
    "gate_floor": check_gate_floor,
    "rank": check_rankings,
    "rank, edges": check_edge_rankings,
    "rank, magnitude": check_weight_magnitude,
    "run_composed": check_run_composed,
}
WORKS_BEFORE: dict[str, Callable[..., None]] = {
    "composition_scores": check_scores,
    "composition": check_composition,
}
"""Products of weights: with norms before each sublayer; with norms after it they are refused."""
EVEN: dict[str, Call] = {
    "to_python": lambda s: decompile.to_python(s.model, s.circuit, TASK, n_pairs=8),
    "circuit_view": lambda s: circuit_view(s.model, s.circuit, TASK, n_pairs=8),
    "to_html": lambda s: to_html("never-written.html", s.model, s.circuit, TASK, n_pairs=8),
    "explore": lambda s: explore(s.model, s.circuit, TASK, n_pairs=8),
    "describe": lambda s: decompile.describe(s.model, s.circuit, TASK, n_pairs=8),
    "qk_circuit": lambda s: heads.qk_circuit(s.model),
    "full_qk": lambda s: heads.full_qk(s.model, TOKENS[0], layer=0, head=0),
    "full_ov": lambda s: heads.full_ov(s.model, TOKENS[0], layer=0, head=0),
    "copying_scores": lambda s: heads.copying_scores(s.model),
    "previous_scores": lambda s: heads.previous_scores(s.model),
    "duplicate_scores": lambda s: heads.duplicate_scores(s.model),
    "induction_scores": lambda s: heads.induction_scores(s.model),
    "pattern_scores": lambda s: heads.pattern_scores(s.model, TOKENS),
    "head_report": lambda s: heads.head_report(s.model, TOKENS),
    "virtual_head": lambda s: composition.virtual_head(s.model, [(0, 0)]),
    "head_paths": lambda s: composition.head_paths(s.model),
    "weight_paths": lambda s: composition.weight_paths(s.model),
    "composition_on_data": lambda s: composition.composition_on_data(s.model, TOKENS),
    "composition_maps": lambda s: composition.composition_maps(s.model, TOKENS),
    "head_mixing": lambda s: composition.head_mixing(s.model, TOKENS),
    "folded_circuits": lambda s: composition.folded_circuits(s.model, layer=0),
    "fit_bridges": lambda s: bridges.fit_bridges(s.model, s.model, corpus()),
    "identity_bridges": lambda s: bridges.identity_bridges(s.model),
    "steer": lambda s: steering.steer(bridges.identity_bridges(s.model), None, "embed", [0]),  # type: ignore[arg-type]
    "channel_effects": lambda s: steering.channel_effects(
        s.model, TASK.batch(2, split="test", seed=0), "0.mlp"
    ),
    "dilution_sweep": lambda s: dilution.dilution_sweep(s.model, s.model, on_brackets(s.circuit)),
    "attack": lambda s: dilution.attack(s.model, s.model, on_brackets(s.circuit)),
}
"""Refused because the model has two stacks."""
ROUTED: dict[str, Call] = {
    "routing": lambda s: routing.routing(s.model, TOKENS[0]),
    "choices": lambda s: routing.choices(s.model, TOKENS),
    "neurons_by_expert": lambda s: routing.neurons_by_expert(s.model, s.circuit),
}
"""Refused because an encoder-decoder has no experts."""
CELLS = {
    **dict.fromkeys(WORKS, "works"),
    **dict.fromkeys(WORKS_BEFORE, "norms first"),
    **dict.fromkeys(EVEN, "two stacks"),
    **dict.fromkeys(ROUTED, "routed"),
    "prune_compositions": "composed",
}
"""Every analysis, and what becomes of it: what the table of docs/explanation/variants.md is made from."""


def on_brackets(circuit: Circuit) -> Circuit:
    return replace(circuit, criterion=Criterion(task="brackets"))


def test_every_row_has_a_cell() -> None:
    names = {name.split(",")[0] for name in decoders.TABLE}
    assert names == {name.split(",")[0] for name in CELLS}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n in ("prune", "trust_report", "gate_floor") else ())
        for n in WORKS
    ],
)
def test_works(name: str, s: Subject, tmp_path: Path) -> None:
    check: Any = WORKS[name]
    check(s, tmp_path) if name == "save_checkpoint" else check(s)


@pytest.mark.parametrize("name", WORKS_BEFORE)
def test_products_of_weights(name: str, s: Subject) -> None:
    if s.model.config.norm_position == "pre":
        WORKS_BEFORE[name](s)
        return
    with pytest.raises(ValueError, match="norm='layer'.*LayerNorm subtracts a mean"):
        WORKS_BEFORE[name](s)


def test_post_norm_is_refused_with_the_reason() -> None:
    config = replace(CONFIGS["encdec"], norm_position="post")
    model = decoders.noisy(SparseTransformer(config), seed=1)
    with pytest.raises(ValueError, match="norm_position='post'.*the residual stream is normed anew"):
        composition.composition(model)
    _, cache = model.run_with_cache(TOKENS)
    assert cache["blocks.0.cross.hook_pattern"].shape == (9, 2, 9, 7)
    for name in ("decompose_resid", "stack_head_results", "accumulated_resid", "logit_attrs"):
        with pytest.raises(ValueError, match=rf"arch='encdec'; cache.{name} expected"):
            getattr(cache, name)()
    post = SparseTransformer(ModelConfig(d_vocab=11, n_ctx=6, norm_position="post"))
    with pytest.raises(ValueError, match="norm_position='post'; cache.decompose_resid expected"):
        post.run_with_cache(TOKENS[:, :5])[1].decompose_resid()
    with pytest.raises(ValueError, match="norm_position='post'; accumulated_bias"):
        post.accumulated_bias(1)


@pytest.mark.parametrize("name", EVEN)
def test_refuses(name: str, s: Subject) -> None:
    with pytest.raises(ValueError, match="arch='encdec'|norm='layer'"):
        EVEN[name](s)


@pytest.mark.parametrize("name", ROUTED)
def test_there_is_no_routing(name: str, s: Subject) -> None:
    with pytest.raises(ValueError, match="experts=0"):
        ROUTED[name](s)


def test_compositions_of_heads_are_refused(s: Subject) -> None:
    with pytest.raises(ValueError, match="compose='none'"):
        composition.prune_compositions(s.model, TASK)
    for switch in (s.model.set_use_split_qkv_input, s.model.set_use_attn_result):
        with pytest.raises(ValueError, match="arch='encdec'"):
            switch(True)


def test_head_report_of_two_stacks(s: Subject) -> None:
    report = heads.stack_head_report(s.model, TOKENS)
    assert [row.label for row in report.rows] == [
        *("encoder.L0H0", "encoder.L0H1", "L0H0", "L0H1", "L0X0", "L0X1")
    ]
    _, kept = s.model.run_with_cache(TOKENS, return_cache_object=False)
    pattern = kept["blocks.0.cross.hook_pattern"][:, 1]
    equal, mirror, sink = [], [], []
    for row, looked in zip(TOKENS.tolist(), pattern.tolist(), strict=True):
        source, target = [t for t in row[:7] if t], row[7:]
        for place, said in enumerate(target[1:]):
            if said == 0:
                break
            there = [looked[place][k] for k, token in enumerate(source) if token == said]
            equal += [sum(there)] if there else []
            if len(source) - 1 - place >= 0:
                mirror.append(looked[place][len(source) - 1 - place])
            sink.append(1 - sum(looked[place]))
    found = report["L0X1"].looks
    assert found.equal == pytest.approx(sum(equal) / len(equal), abs=1e-5)
    assert found.mirror == pytest.approx(sum(mirror) / len(mirror), abs=1e-5)
    assert found.sink == pytest.approx(sum(sink) / len(sink), abs=1e-5)
    copying = report["L0X1"].copying
    if s.model.config.norm_position == "post":
        assert copying is None
    else:
        w = s.naive.weights
        E = w["encoder.W_E"] / ((w["encoder.W_E"] ** 2).mean(-1, keepdim=True) + 1e-5).sqrt()
        V, out = w["blocks.0.cross.v.weight"][:, 4:], w["blocks.0.cross.o.weight"][4:]
        values = torch.linalg.eigvals(E @ V @ out @ w["unembed.W_U"])
        assert copying == pytest.approx(float(values.real.sum() / values.abs().sum()), abs=1e-3)
    assert report["L0H0"].looks.after is None
    figure = plot(report)
    assert [trace.z[0][0] for trace in figure.data][2] == pytest.approx(report["L0X0"].looks.same)
    with pytest.raises(ValueError, match="without an encoder"):
        heads.stack_head_report(decoders.plain(11, 6), TOKENS)


def test_io_edges_are_of_the_text_that_a_node_reads(s: Subject) -> None:
    """Sources differ, targets do not: nodes of the encoder's stream alone meet tokens that tell prompts apart."""
    batch = TASK.batch(16, split="test", seed=0)
    assert not bool((batch.clean != batch.corrupt)[:, 7:].any())
    nodes = [Node.of(site, i) for site, width in s.model.widths.items() for i in range(width)]
    found = parts.io_edges(s.model, nodes, batch, TASK.tokenizer)
    read = [e for e in found if e.kind == "embed"]
    assert {e.node.site for e in read} == {"attn_in", "mlp_in", "cross_memory"}
    assert all(e.node.stack == "encoder" or e.node.site == "cross_memory" for e in read)
    table = s.model.embedding("encoder")
    assert all(e.weight == float(table[TASK.tokenizer.id(e.token), e.node.index]) for e in read)
    written = [e for e in found if e.kind == "unembed"]
    assert {e.node.site for e in written} == {"attn_out", "cross_out", "mlp_out"}
    assert {e.node.stack for e in written} == {"decoder"}


def test_picture_stands_two_stacks_side_by_side(s: Subject) -> None:
    few = replace(s.circuit, nodes=s.circuit.nodes[::3], edges=())
    stacks = {name: data.get("stack", "decoder") for name, data in few.to_networkx().nodes.items()}
    assert stacks == {str(node): node.stack for node in few.nodes}
    assert few._repr_html_().count("<td>encoder.0</td>") == sum(n.stack == "encoder" for n in few.nodes)
    figure = few.plot()
    texts = [a.text for a in figure.layout.annotations]
    assert "<b>encoder 0</b>" in texts
    assert "<b>decoder 0</b>" in texts
    marks = next(trace for trace in figure.data if trace.mode == "markers" and len(trace.x) == few.n_nodes)
    hover = [str(text) for text in (marks.hovertext if marks.hovertext is not None else marks.text)]
    side = {
        stack: [
            x
            for x, text in zip(marks.x, hover, strict=True)
            if ("encoder, layer" in text) == (stack == "encoder")
        ]
        for stack in ("encoder", "decoder")
    }
    assert max(side["encoder"]) < min(side["decoder"])
    assert math.isfinite(max(side["decoder"]))
    assert plot(s.model, title="weights").data


def test_gender_is_a_task_of_its_own() -> None:
    task = load_task("gender")
    batch = task.batch(64, split="test", seed=0)
    differ = (batch.clean != batch.corrupt).sum(1)
    assert bool((differ == 1).all())
    assert bool((batch.position == 7).all())
