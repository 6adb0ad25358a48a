"""Files that are out in the world stay readable and keep their meaning: models, circuits, interrupted runs.

`data/format-1` was written by version 0.1.0: a small model, a circuit of it for each ablation, a run stopped by Ctrl-C,
and in `expected.json` what that version made of them.
"""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import run_circuit
from circuits.circuit.score import margins, score_margins
from circuits.model.checkpoint import load_checkpoint
from circuits.model.config import UNSAID, ModelConfig
from circuits.model.sites import Site
from circuits.model.transformer import SparseTransformer
from circuits.training import TrainConfig, train
from tasks.base import Targets

FOLDER = Path(__file__).parent / "data" / "format-1"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
TARGETS = Targets(**{name: torch.tensor(values) for name, values in EXPECTED["targets"].items()})


@pytest.fixture(scope="module")
def model() -> SparseTransformer:
    return load_checkpoint(FOLDER / "model.safetensors").model.eval()


@pytest.mark.parametrize("ablation", EXPECTED["losses"])
def test_a_stored_circuit_scores_what_it_scored(model, ablation):
    assert model.fingerprint() == EXPECTED["model"]
    circuit = Circuit.load(FOLDER / f"{ablation}.json")
    assert circuit.ablation == ablation
    found = score_margins(margins(run_circuit(model, circuit, TARGETS.tokens), TARGETS).detach())
    assert found.loss == pytest.approx(EXPECTED["losses"][ablation], abs=1e-6)


def test_a_site_that_a_circuit_does_not_speak_of_is_left_alone(model):
    whole = Circuit.load(FOLDER / "mean.json")
    place = Site(0, "attn_out")
    nodes = tuple(node for node in whole.nodes if node.at == place)
    part = replace(
        whole, nodes=nodes, edges=(), widths={place: whole.widths[place]}, values={place: whole.values[place]}
    )
    kept = torch.zeros(8)
    kept[[node.index for node in nodes]] = 1

    def cut(value, hook):
        return value * kept + whole.values[place] * (1 - kept)

    by_hand = model.run_with_hooks(TARGETS.tokens, fwd_hooks=[("blocks.0.hook_attn_out", cut)])
    torch.testing.assert_close(run_circuit(model, part, TARGETS.tokens), by_hand)
    assert not torch.allclose(run_circuit(model, whole, TARGETS.tokens), by_hand)


def test_an_interrupted_run_goes_on_to_where_it_was_going():
    config = TrainConfig.from_json(EXPECTED["train"])
    resumed = train(config, resume=FOLDER / "interrupted.safetensors", progress=False)
    for found, before in zip(resumed.history, EXPECTED["history"], strict=True):
        for key, value in before.items():
            assert found[key] == pytest.approx(value, rel=1e-5), key


def test_fingerprints_take_fields_for_what_they_were_when_introduced():
    assert [f.name for f in fields(ModelConfig)] == list(UNSAID)
    assert ModelConfig().hashed() == {}
    config = ModelConfig(d_vocab=7, topk_sites=("attn_in",), sink=False)
    assert config.hashed() == {"d_vocab": 7, "topk_sites": ("attn_in",), "sink": False}
