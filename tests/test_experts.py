"""Sparse experts: a plain MLP where all share equally, routed right, balanced, and part of circuits."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from naive_forward import Naive
from test_options import CORPUS, N_CTX, N_WORDS, TASK, TOKENS, FirstWord, known, noisy, same

from circuits.circuit import routing as routes
from circuits.circuit.ablation import mean_values
from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import run_circuit, run_masked
from circuits.circuit.nodes import Edge, Node, among, check_parts, kind_of
from circuits.circuit.parts import edges_between
from circuits.model.cache import SparseCache
from circuits.model.checkpoint import load_checkpoint, save_checkpoint
from circuits.model.config import ModelConfig
from circuits.model.experts import balance_loss, routed, router_logits
from circuits.model.generate import next_logits
from circuits.model.mixers.past import Past
from circuits.model.options import Says
from circuits.model.sites import Site, layer_rows
from circuits.model.transformer import SparseTransformer
from circuits.plots import circuit_figure, plot, routing_figure
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.training.config import TrainConfig
from circuits.training.loop import train
from circuits.training.losses import training_loss
from docs.experiments import experts as experiment
from tasks import Batch

SHAPE: dict[str, Any] = dict(
    d_vocab=N_WORDS, n_layers=2, d_model=8, n_heads=2, d_head=3, d_mlp=12, n_ctx=N_CTX
)
HERE = Site(0, "router")


def made(seed: int = 1, **changes: Any) -> SparseTransformer:
    return noisy(
        SparseTransformer(ModelConfig(**{**SHAPE, "experts": 4, "experts_active": 2, **changes})), seed
    )


def shares(model: SparseTransformer) -> torch.Tensor:
    return mean_values_of(model, HERE)


def mean_values_of(model: SparseTransformer, site: Site) -> torch.Tensor:
    """All values of a site, by run_with_cache."""
    return model.run_with_cache(TOKENS)[1][model.hook_name(site)]


@pytest.mark.parametrize("experts", [1, 2, 3, 4, 12])
def test_all_experts_at_equal_shares_are_the_plain_mlp(experts: int) -> None:
    plain = SparseTransformer(ModelConfig(**SHAPE), seed=7)
    model = SparseTransformer(ModelConfig(**SHAPE, experts=experts, experts_active=experts), seed=7)
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    for block in model.blocks:
        block.mlp.router.map.weight.data.zero_()
    torch.testing.assert_close(model(TOKENS), plain(TOKENS), atol=1e-6, rtol=1e-6)
    model.blocks[0].mlp.router.map.bias.data[0] += 1.0
    if experts > 1:
        assert not torch.allclose(model(TOKENS), plain(TOKENS), atol=1e-3)


@pytest.mark.parametrize("active", [1, 2, 3, 4])
def test_as_many_experts_as_asked_for_take_part_and_the_pass_is_that_of_loops(active: int) -> None:
    model = made(experts_active=active)
    found = shares(model)
    assert (found > 0).sum(-1).eq(active).all()
    assert bool((found.sum(-1) <= 4 + 1e-5).all())
    same(model(TOKENS), Naive.of(model).run(TOKENS).logits)


def test_neurons_of_experts_that_are_not_chosen_are_zero() -> None:
    model = made(topk_fraction=None)
    share, neurons = shares(model), mean_values_of(model, Site(0, "mlp_neuron")).unflatten(-1, (4, 3))
    assert not neurons[share == 0].any()
    assert neurons[share > 0].any()


def test_routed_by_hand() -> None:
    neurons, share = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), torch.tensor([[[0.0, 1.5]]])
    assert routed(neurons, share).tolist() == [[[0.0, 0.0, 4.5, 6.0]]]


def test_the_balance_loss_is_one_where_experts_are_equally_busy() -> None:
    even = torch.eye(4).repeat(3, 1) * 30
    torch.testing.assert_close(balance_loss(even, 1), torch.tensor(1.0))
    one = torch.tensor([[30.0, 0.0, 0.0, 0.0]]).repeat(5, 1)
    torch.testing.assert_close(balance_loss(one, 1), torch.tensor(4.0))
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    p = [math.exp(x) / (math.e**2 + math.e + 1) for x in range(3)]
    mean = [(p[0] + p[2]) / 2, p[1], (p[0] + p[2]) / 2]
    by_hand = 3 * (0.25 * mean[0] + 0.5 * mean[1] + 0.25 * mean[2])
    torch.testing.assert_close(balance_loss(logits, 2), torch.tensor(by_hand))


def test_gradients_of_the_router_are_those_of_finite_differences() -> None:
    model = made(topk_fraction=None).double()
    model.requires_grad_(True)
    for weight in (model.linear(0, "W_R").weight, model.linear(1, "W_R").bias):
        model.zero_grad()
        training_loss(model, TOKENS, 0.0, 0.3).backward()
        assert weight.grad is not None
        assert weight.grad.any()
        for place in ((0, 0), (3, 2), (7, 3)):
            at = place if weight.ndim == 2 else place[1:]
            gradient = float(weight.grad[at])
            ends = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    weight[at] += step
                    ends.append(float(training_loss(model, TOKENS, 0.0, 0.3)))
                    weight[at] -= step
            assert gradient == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-7)


def test_the_balance_of_the_loss_is_the_mean_over_layers() -> None:
    model = made()
    with router_logits(model) as logits:
        own = model(TOKENS, return_type="loss")
    assert sorted(logits) == [0, 1]
    uneven = sum(float(balance_loss(found, 2)) for found in logits.values()) / 2
    assert float(training_loss(model, TOKENS, 0.0, 0.5)) == pytest.approx(float(own) + 0.5 * uneven, rel=1e-5)
    plain = noisy(SparseTransformer(ModelConfig(**SHAPE)), 1)
    assert torch.equal(training_loss(plain, TOKENS, 0.0, 0.5), plain(TOKENS, return_type="loss"))


def test_training_balances_experts() -> None:
    """Router weights that send every token to one expert: with the loss they spread, without they need not."""
    spread = {}
    for balance in (0.0, 1.0):
        config = TrainConfig(
            model=ModelConfig(**{**SHAPE, "n_layers": 1, "topk_fraction": None}, experts=4, experts_active=1),
            steps=60, batch_size=16, density=1.0, min_alive=0, lr=1e-2, n_val=8, balance=balance,
        )  # fmt: skip
        found = train(config, corpus=CORPUS, progress=False).model
        with router_logits(found) as logits:
            found(TOKENS, return_type=None)
        spread[balance] = float(balance_loss(logits[0].detach(), 1))
    assert spread[1.0] < 1.1
    assert spread[1.0] < spread[0.0]


def test_the_cache_of_keys_changes_nothing() -> None:
    model, past = made(), Past()
    whole = model(TOKENS)
    for n in range(2, N_CTX + 1):
        torch.testing.assert_close(
            next_logits(model, TOKENS[:, :n], past), whole[:, n - 1], atol=2e-5, rtol=1e-4
        )
    cached, plain = (model.generate(TOKENS[:, :2], 4, kv_cache=kind) for kind in ("fp32", None))
    assert cached == plain


def test_neuron_results_of_the_cache_add_up_to_what_the_mlp_writes() -> None:
    model = made()
    _, cache = model.run_with_cache(TOKENS)
    assert type(cache) is SparseCache
    let = cache["blocks.1.hook_mlp_out"] != 0
    total = cache.get_neuron_results(1).sum(-2) + model.blocks[1].mlp.b_out * let
    torch.testing.assert_close(total, cache["blocks.1.hook_mlp_out"], atol=1e-4, rtol=1e-4)


def test_a_checkpoint_keeps_the_router(tmp_path: Any) -> None:
    model = made()
    again = load_checkpoint(save_checkpoint(tmp_path / "model.safetensors", model)).model
    assert again.fingerprint() == model.fingerprint() != made(experts_active=3).fingerprint()
    assert torch.equal(again(TOKENS), model(TOKENS))


# Sites, nodes and circuits.


def test_experts_are_a_site_before_the_neurons_and_plain_models_have_none() -> None:
    names = [row.name for row in layer_rows(routed=True)]
    assert names[names.index("router") - 1 :] == ["mlp_in", "router", "mlp_neuron", "mlp_out"]
    model = made()
    assert model.widths[HERE] == 4
    assert [str(at) for at in model._weights_at()].count("0.W_R") == 1
    assert {"0.W_R", "0.b_R"} <= {matrix.name for matrix in model.matrices()}
    plain = ModelConfig(**SHAPE)
    assert HERE not in plain.widths
    assert plain.hashed().keys().isdisjoint({"experts", "experts_active"})


def test_masking_the_router_takes_an_expert_out() -> None:
    model = made()
    zeros = {site: torch.zeros(width) for site, width in model.widths.items()}
    mask = torch.ones(4)
    mask[2] = 0
    found = run_masked(model, TOKENS, {HERE: mask}, zeros)
    with torch.no_grad():
        for name in ("W_in", "W_out"):
            model.linear(0, name).weight[(slice(None), slice(6, 9)) if name == "W_in" else slice(6, 9)] = 0
        model.linear(0, "W_in").bias[6:9] = 0
    torch.testing.assert_close(found, model(TOKENS), atol=1e-5, rtol=1e-5)
    assert torch.equal(run_masked(model, TOKENS, {HERE: torch.ones(4)}, zeros), model(TOKENS))


def test_an_expert_and_its_neurons_are_edges_and_no_weights() -> None:
    model = made()
    nodes = [
        Node(0, "router", 1),
        Node(0, "mlp_neuron", 3),
        Node(0, "mlp_neuron", 5),
        Node(0, "mlp_neuron", 6),
    ]
    edges = edges_between(model, nodes)
    assert edges == [Edge(nodes[0], nodes[1], 1.0), Edge(nodes[0], nodes[2], 1.0)]
    assert {kind_of(edge) for edge in edges} == {"gate"}
    check_parts(nodes, edges, [])
    with pytest.raises(ValueError, match="no weight runs from 0.mlp_neuron.3 to 0.router.1"):
        check_parts(nodes, [Edge(nodes[1], nodes[0], 1.0)], [])


class LastWord(FirstWord):
    """Says the last word again, `a` or `b`."""

    name = "last"

    def batch(self, n: int, *, split: str, seed: int) -> Batch:
        batch = super().batch(n, split=split, seed=seed)
        clean, corrupt = batch.clean.clone(), batch.corrupt.clone()
        clean[:, -1], corrupt[:, -1] = 0, 1
        return replace(batch, clean=clean, corrupt=corrupt, position=torch.full((n,), N_CTX - 1))


def by_routing_alone() -> SparseTransformer:
    """Neurons that always fire, one an expert, for `a` and for `b`: only the router knows which word there was."""
    shape = {**SHAPE, "n_layers": 1, "d_mlp": 2, "experts": 2, "experts_active": 1, "bigram": False}
    model = SparseTransformer(ModelConfig(**shape, topk_fraction=None), tokenizer=TASK.tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.W_E[0, 0], model.W_E[1, 0], model.W_E[2:, 2] = 1, -1, 1
        model.linear(0, "W_R").weight[0] = torch.tensor([5.0, -5.0])
        model.linear(0, "W_in").bias.fill_(1.0)
        model.linear(0, "W_out").weight[:, 1] = torch.tensor([3.0, -3.0])
        model.unembed.W_U[1, :2] = torch.tensor([3.0, -3.0])
    return model.eval()


@pytest.mark.slow
def test_pruning_keeps_a_router_that_the_task_needs(tmp_path: Any) -> None:
    model = by_routing_alone()
    settings = PruneConfig(objective="task", starts=1, steps=40, n_eval=32, n_test=32, n_mean=32)
    circuit = prune(model, LastWord(), settings, corpus=CORPUS, progress=False)
    routers = [node for node in circuit.nodes if node.site == "router"]
    assert routers
    assert Node(0, "mlp_in", 0) in circuit.nodes
    assert {kind_of(edge) for edge in circuit.edges if edge.source in routers} == {"gate"}
    assert {kind_of(edge) for edge in circuit.edges if edge.target in routers} == {"weight"}
    assert circuit.metrics["task_accuracy"] == 1
    path = circuit.save(tmp_path / "circuit.json")
    assert Circuit.load(path) == circuit
    rest = tuple(node for node in circuit.nodes if node.site != "router")
    without = replace(circuit, nodes=rest, edges=tuple(among(circuit.edges, rest)))
    logits = run_circuit(model, without, LastWord().batch(4, split="test", seed=0).clean)
    assert logits.std(0).max() < 1e-5


def test_a_stored_circuit_keeps_its_experts(tmp_path: Any) -> None:
    model, naive, circuit = known("experts", N_WORDS, N_CTX)
    stored = Circuit.from_json(json.loads(json.dumps(circuit.to_json())))
    assert stored == circuit
    assert any(node.site == "router" for node in stored.nodes)
    same(run_circuit(model, stored, TOKENS), naive.of_circuit(stored).run(TOKENS).logits)
    kinds = {kind for _, _, kind in circuit.to_networkx().edges(data="kind")}
    assert {"gate", "weight", "score"} <= kinds
    hover = "".join(str(trace.text) + str(trace.hovertext) for trace in circuit_figure(circuit).data)
    assert "share times this neuron" in hover


# What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": 0, "experts_active": 2}, "experts: got 0 with experts_active=2; expected at least 2"),
        ({"experts": 4, "experts_active": 0}, "experts_active: got 0 with experts=4; expected 1 to 4"),
        ({"experts": 4, "experts_active": 5}, "experts_active: got 5 with experts=4; expected 1 to 4"),
        (
            {"experts": 5, "experts_active": 1},
            "experts: got 5 with d_mlp=12; expected a number that divides d_mlp",
        ),
        (
            {"arch": "encdec", "n_source": 2, "pad": 0, "experts": 4, "experts_active": 1},
            "experts: got 4 with arch='encdec'; expected 0",
        ),
    ],
)
def test_experts_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ModelConfig(**{**SHAPE, **changes})


def test_what_says_nothing_of_experts_refuses_them() -> None:
    with pytest.raises(
        ValueError, match="it has experts=4; this expected experts=0.*Each neuron is multiplied"
    ):
        Says().check(made(), "this", instead="")
    Says(experts=None).check(made(), "this", instead="")


# Routing, and its picture.


def test_routing_of_a_text() -> None:
    model = made()
    found = routes.routing(model, TOKENS[0])
    for layer in range(2):
        same(found.share[layer], Naive.of(model).run(TOKENS[:1]).sites[Site(layer, "router")][0])
    assert found.tokens == tuple(map(str, TOKENS[0].tolist()))
    assert found.chosen.sum(-1).eq(2).all()
    model.tokenizer = TASK.tokenizer
    assert routes.routing(model, TOKENS[0]).tokens[0] == TASK.tokenizer.token(int(TOKENS[0, 0]))
    with pytest.raises(ValueError, match=r"tokens: got shape \(7, 6\); expected token ids \[pos\]"):
        routes.routing(model, TOKENS)


def test_choices_leave_padding_out() -> None:
    model, lengths = made(), torch.tensor([2, 6, 3, 1, 4, 5, 6])
    counts = torch.zeros(2, 4).double()
    for layer in range(2):
        share = Naive.of(model).run(TOKENS).sites[Site(layer, "router")]
        for row, n in enumerate(lengths):
            counts[layer] += (share[row, :n] > 0).sum(0)
    same(routes.choices(model, TOKENS, lengths=lengths), counts / counts.sum(-1, keepdim=True))
    same(routes.choices(model, TOKENS).sum(-1), torch.ones(2))
    assert not torch.allclose(routes.choices(model, TOKENS), routes.choices(model, TOKENS, lengths=lengths))


def test_neurons_of_a_circuit_by_expert() -> None:
    model, _, circuit = known("experts", N_WORDS, N_CTX)
    found = routes.neurons_by_expert(model, circuit)
    for layer in range(2):
        for e in range(4):
            mine = {Node(layer, "mlp_neuron", i) for i in range(3 * e, 3 * e + 3)}
            assert found[layer, e] == len(mine & set(circuit.nodes))
    with pytest.raises(ValueError, match="circuit: it belongs to model"):
        routes.neurons_by_expert(made(seed=2), circuit)


@pytest.mark.parametrize(
    "look",
    [lambda m: routes.routing(m, TOKENS[0]), lambda m: routes.choices(m, TOKENS),
     lambda m: routes.neurons_by_expert(m, known("default", N_WORDS, N_CTX)[2])],
)  # fmt: skip
def test_a_model_without_experts_has_no_routing(look: Any) -> None:
    with pytest.raises(
        ValueError, match="model: it has experts=0; .* expected a model whose MLPs have experts"
    ):
        look(known("default", N_WORDS, N_CTX)[0])


def test_the_picture_of_routing() -> None:
    model = made()
    model.tokenizer = TASK.tokenizer
    found = routes.routing(model, TOKENS[0])
    figure = found.plot(title="mine")
    assert figure == plot(found, title="mine") == routing_figure(found, title="mine")
    assert [len(trace.z) for trace in figure.data] == [4, 4]
    for layer, trace in enumerate(figure.data):
        for e in range(4):
            for at in range(N_CTX):
                value = float(found.share[layer, at, e])
                assert trace.z[e][at] == (pytest.approx(value) if value else None)
                assert f"expert {e} at {at}" in trace.text[e][at]
    assert "2 of 4 experts" in figure.layout.title.text


def test_means_of_shares() -> None:
    model = made()
    same(mean_values(model, TOKENS)[HERE], Naive.of(model).run(TOKENS).sites[HERE].mean((0, 1)))


def test_equal_logits_choose_the_first() -> None:
    model = replace_router(made(), 0.0)
    assert (shares(model) > 0)[..., :2].all()
    assert shares(model)[..., :2].eq(1).all()


def replace_router(model: SparseTransformer, value: float) -> SparseTransformer:
    for block in model.blocks:
        block.mlp.router.map.weight.data.fill_(value)
        block.mlp.router.map.bias.data.fill_(value)
    return model


def test_options_of_old_files_are_those_of_plain_models() -> None:
    said = ModelConfig(**SHAPE).to_json()
    old = {key: value for key, value in said.items() if not key.startswith("experts")}
    assert ModelConfig.from_json(old) == ModelConfig(**SHAPE)
    assert replace(ModelConfig(**SHAPE), experts=4, experts_active=1).hashed()["experts"] == 4


# The experiment.


def test_the_overlap_of_two_distributions() -> None:
    assert experiment.overlap([1, 1, 0, 0], [2, 2, 0, 0]) == pytest.approx(1)
    assert experiment.overlap([1, 0], [0, 3]) == 0
    assert experiment.overlap([3, 1], [1, 1]) == pytest.approx(0.75)


def test_controls_of_the_overlap_by_hand() -> None:
    found = experiment.compared([0.5, 0.5, 0, 0], [4, 0, 0, 0], [[0, 1, 0, 0], [1, 0, 0, 0]], seed=0)
    assert found["overlap"] == pytest.approx(0.5)
    assert found["permuted"] == pytest.approx(0.25, abs=0.03)
    assert found["other_tasks"] == pytest.approx(0.5)
    assert experiment.compared([1.0, 0.0], [1, 1], [], seed=0)["other_tasks"] is None
    needs = experiment.by_need([0.5, 0.3, 0.2, 0.0], [9.0, 2.0, 1.0, 0.0], [[0.0, 0.2, 0.3, 0.5]])
    assert needs == {"need_correlation": pytest.approx(1), "need_elsewhere": pytest.approx(-1)}


def test_the_verdict_needs_an_interval_above_zero() -> None:
    def run(overlap: float, permuted: float, other: float | None) -> dict[str, Any]:
        own = {"overlap": overlap, "permuted": permuted, "other_tasks": other}
        return {
            "seed": int(10 * overlap),
            **own,
            "neurons": [0, 2, 0, 0],
            "needs": [0.0, overlap, 0.55, -1.0],
        }

    assert experiment.verdict([{"overlap": None}])["verdict"] == "no circuit has a neuron"
    both = experiment.verdict([run(0.5, 0.1, 0.2), run(0.6, 0.1, 0.3), run(0.7, 0.2, 0.4)])
    assert both["verdict"] == "routing lines up with circuits, of the task in particular"
    assert both["routing_circuit_overlap"] == pytest.approx(0.6)
    assert both["most_needed_in_circuit"] == 2
    assert both["most_needed_by_chance"] == 0.75
    assert both["minus_permuted"] == both["minus_permuted_by_model"]
    same_model = [{**run(x, 0.0, x - 0.1), "seed": seed} for x, seed in ((0.5, 0), (0.7, 0), (0.6, 1))]
    assert experiment.verdict(same_model)["minus_permuted_by_model"] == pytest.approx([0.6, 0.6])
    assert experiment.verdict(same_model)["minus_permuted"] != pytest.approx([0.6, 0.6])
    chance = experiment.verdict([run(0.5, 0.1, 0.5), run(0.6, 0.1, 0.7), run(0.7, 0.2, 0.6)])
    assert chance["verdict"] == "routing lines up with circuits, not of the task in particular"
    neither = experiment.verdict([run(0.1, 0.1, None), run(0.0, 0.1, 0.5)])
    assert neither["verdict"] == "no line-up is shown, not of the task in particular"
    assert experiment.verdict([run(0.9, 0.1, 0.1)])["verdict"].startswith("no line-up")


def test_parity_of_the_experiment() -> None:
    assert experiment.parity() < 1e-5


def test_the_page_says_what_the_results_file_says() -> None:
    report = json.loads(experiment.RESULTS.read_text())
    page = " ".join(Path("docs/explanation/experts.md").read_text().split())
    for key in ("routing_circuit_overlap", "permuted_overlap", "other_tasks_overlap"):
        assert f"| {report[key]:.3f} |" in page
    assert f"{report['most_needed_in_circuit']} of {report['n_circuits']} cases" in page
    assert f"({report['most_needed_by_chance']:g} by chance)" in page
    assert report["minus_permuted"][0] > 0 > report["minus_permuted_by_model"][0]
    assert report["minus_other_tasks"][0] > 0 > report["minus_other_tasks_by_model"][0]
    assert report["parity_max_abs"] < 1e-5
