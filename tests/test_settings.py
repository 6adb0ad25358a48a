"""Settings of every procedure are checked when they are made: types, ranges, what JSON and numpy bring."""

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch

from circuits.bridges import BridgeConfig
from circuits.circuit.criterion import Criterion
from circuits.composition import ComposePruneConfig
from circuits.model.config import ModelConfig
from circuits.pruning.config import PruneConfig
from circuits.settings import Count, Decay, Positive, Settings, checked
from circuits.training.config import TrainConfig
from circuits.trust import TrustConfig


@dataclass(frozen=True, kw_only=True)
class Made(Settings):
    """Past the types that the package's own functions are checked for in tests."""

    steps: Count = 3
    lr: Positive = 0.1
    sink: bool = True
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    kind: Literal["a", "b"] = "a"


@pytest.mark.parametrize(
    "given",
    [
        {
            "steps": np.int64(20),
            "lr": np.float32(0.5),
            "sink": np.bool_(False),
            "betas": np.array([0.5, 0.25]),
        },
        {
            "steps": torch.tensor(20),
            "lr": torch.tensor(0.5),
            "sink": torch.tensor(False),
            "betas": [0.5, 0.25],
        },
    ],
)
def test_scalars_of_numpy_and_torch_become_plain_numbers(given):
    made = Made(**given)
    assert made == Made(steps=20, lr=0.5, sink=False, betas=(0.5, 0.25))
    assert json.loads(json.dumps(made.to_json()))["betas"] == [0.5, 0.25]
    assert [type(value) for value in vars(made).values()] == [int, float, bool, tuple, str]


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (TrainConfig, {"steps": 1.5}),
        (TrainConfig, {"steps": True}),
        (TrainConfig, {"seed": "x"}),
        (TrainConfig, {"lr": float("inf")}),
        (TrainConfig, {"lr": float("nan")}),
        (TrainConfig, {"lr": 10**400}),
        (TrainConfig, {"betas": [5, 7]}),
        (TrainConfig, {"betas": [0.9]}),
        (TrainConfig, {"model": 5}),
        (TrainConfig, {"sharkfin": 1}),
        (TrainConfig, {"corpus": None}),
        (TrainConfig, {"anneal": [0.5, 0.1]}),
        (TrainConfig, {"minutes": -1}),
        (ModelConfig, {"n_ctx": 0}),
        (ModelConfig, {"topk_sites": "attn_in"}),
        (ModelConfig, {"topk_sites": ["nowhere"]}),
        (PruneConfig, {"ablation": "evil"}),
        (PruneConfig, {"penalty": -1.0}),
        (PruneConfig, {"prune_edges": "no"}),
        (TrustConfig, {"n_pairs": 2.0}),
        (TrustConfig, {"target_loss": float("nan")}),
        (BridgeConfig, {"pairs": [["embed"]]}),
        (BridgeConfig, {"topk_fraction": 2}),
        (ComposePruneConfig, {"level": "leaf"}),
        (Criterion, {"task": "quotes", "target_accuracy": 2}),
        (Criterion, {"task": "quotes", "task_options": 3}),
    ],
)
def test_what_is_no_setting_is_refused_by_name(config, wrong):
    name = list(wrong)[-1]
    with pytest.raises(ValueError, match=rf"{name}: got .*expected"):
        config.from_json(wrong)


def test_a_mistake_in_a_nested_config_is_named():
    with pytest.raises(ValueError, match=r"n_layers: got 0\.5; expected a whole number from 1 to 1,024"):
        TrainConfig.from_json({"model": {"n_layers": 0.5}})
    with pytest.raises(ValueError, match=r"model.n_ctx: got 1; expected at least 2"):
        TrainConfig(model=ModelConfig(n_ctx=1))


@pytest.mark.parametrize("data", [[], 5, None, "text"])
def test_anything_but_an_object_is_refused(data):
    with pytest.raises(ValueError, match="TrainConfig: got .*expected a JSON object"):
        TrainConfig.from_json(data)


def test_a_field_without_a_default_is_missed():
    with pytest.raises(ValueError, match=r"Criterion: no key \['task'\]"):
        Criterion.from_json({})


def test_an_argument_is_checked_like_a_field():
    assert checked("n", np.int32(4), Count) == 4
    with pytest.raises(ValueError, match="n: got 0; expected a whole number of at least 1"):
        checked("n", 0, Count)
    assert checked("n", None, Count | None) is None
    assert checked("kind", "a", Literal["a", "b"]) == "a"
    with pytest.raises(ValueError, match="kind: got 1; expected one of"):
        checked("kind", 1, Literal[True, "b"])
