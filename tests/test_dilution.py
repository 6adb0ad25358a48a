"""Dilution: a model that averages depth by construction, whose failures are therefore known beforehand."""

import random
import re
from dataclasses import replace

import pytest
import torch

from circuits.bridges import Side
from circuits.bridges.dilution import attack, dilution_sweep, mutated
from circuits.bridges.dilution.margins import circuit_margins, model_margins
from circuits.circuit.ablation import ablation_values
from circuits.circuit.circuit import Circuit
from circuits.circuit.criterion import Criterion
from circuits.circuit.nodes import all_nodes
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer
from circuits.plots import dilution_figure
from circuits.statistics import spearman
from tasks.brackets import Brackets

MODEL = ModelConfig(
    d_vocab=50,
    d_model=8,
    n_layers=1,
    n_heads=1,
    d_head=4,
    d_mlp=8,
    n_ctx=64,
    topk_fraction=None,
    sink=False,
    bigram=False,
)


def averaging(threshold: float) -> SparseTransformer:
    """Says `]]` where the share of open brackets in the context is above `threshold`, else `]`."""
    tokenizer = Brackets().tokenizer
    model = SparseTransformer(MODEL, tokenizer=tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.W_E[:, 0] = 1.0
        model.W_E[tokenizer.id("["), 1] = 1.0
        attn = model.blocks[0].attn
        attn.v.weight[1, 0] = 1.0
        attn.o.weight[0, 2] = 1.0
        attn.o.bias[2] = -threshold
        model.unembed.W_U[2, tokenizer.id("]]")] = 10.0
    return model


def whole(model: SparseTransformer, task: str = "brackets") -> Circuit:
    """The circuit that leaves nothing out."""
    nodes = all_nodes(model.config.widths)
    from circuits.circuit.parts import edges_between

    return Circuit(
        nodes=tuple(sorted(nodes)),
        edges=tuple(sorted(edges_between(model, nodes))),
        widths=model.config.widths,
        n_layers=1,
        criterion=Criterion(task=task),
        model_hash=model.fingerprint(),
        values=ablation_values(model, torch.zeros(1, 4, dtype=torch.int64), "zero"),
    )


@pytest.fixture(scope="module")
def sparse():
    return averaging(0.08)


@pytest.fixture(scope="module")
def circuit(sparse):
    return whole(sparse)


@pytest.fixture(scope="module")
def sweep(sparse, circuit):
    return dilution_sweep(averaging(0.09), sparse, circuit, lengths=range(1, 14), n=32)


def test_the_whole_circuit_is_the_model(sparse, circuit):
    targets = Brackets(length=4).batch(8, split="test", seed=0).tokens_and_targets()
    assert torch.allclose(
        circuit_margins(sparse, circuit, targets), model_margins(Side(sparse, "sparse"), targets), atol=1e-5
    )


def test_longer_lists_wash_the_depth_out(sweep):
    margins = [cell.depth_margin for cell in sweep.cells]
    assert margins == sorted(margins, reverse=True)
    assert sweep.cells[0].dense_error == 0
    assert sweep.cells[-1].dense_error > 0
    assert sweep.spearman > 0.3
    assert sweep.summary()["n_cells"] == 13
    assert len(dilution_figure(sweep.to_json()).data) == 4


def test_cells_that_do_not_fit_are_listed(sparse, circuit):
    sweep = dilution_sweep(sparse, sparse, circuit, lengths=(2, 40), distractors=(0, 1), n=4)
    assert sweep.skipped == ((40, 0), (40, 1))
    assert {(cell.length, cell.distractors) for cell in sweep.cells} == {(2, 0), (2, 1)}
    assert sweep.to_json()["skipped"] == [[40, 0], [40, 1]]


def test_attack_finds_failures_by_the_circuit_alone(circuit, sparse):
    found = attack(averaging(0.075), sparse, circuit, length=5, n=64, keep=16, rounds=4)
    assert found.found_margin < found.random_margin
    assert len({len(Brackets().tokenizer.encode(prompt)) for prompt in found.prompts}) == 1
    assert found.to_json()["n_found"] == 16


def test_mutation_keeps_length_depth_and_grammar():
    task, rng = Brackets(length=4, distractors=1), random.Random(0)
    targets = task.batch(10, split="val", seed=0).tokens_and_targets()
    for row, end, answer in zip(targets.tokens, targets.position, targets.answer, strict=True):
        ids = row[: int(end) + 1].tolist()
        for _ in range(20):
            ids = mutated(ids, task.tokenizer, rng)
            text = task.tokenizer.decode(ids)
            assert len(ids) == int(end) + 1
            assert task.solve(text) == task.tokenizer.decode([int(answer)])
            assert not re.search(r"\b0\d", text)


def test_bad_input_is_refused(sparse, circuit):
    with pytest.raises(ValueError, match="circuit: got one for 'quotes'"):
        dilution_sweep(sparse, sparse, replace(circuit, criterion=Criterion(task="quotes")))
    with pytest.raises(ValueError, match=r"none of .* fit n_ctx = 64"):
        dilution_sweep(sparse, sparse, circuit, lengths=(50,))
    with pytest.raises(ValueError, match="length: prompts of 50 elements"):
        attack(sparse, sparse, circuit, length=50)
    with pytest.raises(ValueError, match="circuit: it belongs to model"):
        dilution_sweep(sparse, averaging(0.5), circuit, lengths=(2,))
    with pytest.raises(ValueError, match="dense: got a model of 51 tokens"):
        dilution_sweep(SparseTransformer(replace(MODEL, d_vocab=51)), sparse, circuit)


def test_the_experiment_sweeps_and_attacks(sparse, circuit):
    from circuits.bridges import identity_bridges
    from docs.experiments.bridges import dilution_of

    found = dilution_of(identity_bridges(sparse), circuit, n=4, rounds=2)
    assert found["spearman"] == spearman(
        [-cell["depth_margin"] for cell in found["cells"]], [cell["dense_error"] for cell in found["cells"]]
    )
    assert [a["length"] for a in found["attacks"]] == [8, 10, 12, 14]
    errors = [max(a["found_error"], 1 / a["n_random"]) for a in found["attacks"]]
    randoms = [max(a["random_error"], 1 / a["n_random"]) for a in found["attacks"]]
    assert found["adversarial_ratio"] == pytest.approx(sum(errors) / sum(randoms))
    assert found["adversarial_ratio_deep"] <= found["adversarial_ratio"]
