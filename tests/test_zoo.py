"""The models that ship with the package do what their description says."""

import pytest

from circuits.score import task_score
from circuits.train import TrainConfig, with_vocabulary
from circuits.zoo import FOLDER, PRETRAINED, load_pretrained
from tasks import load_task


def test_every_file_is_described_and_every_description_has_a_file():
    assert {path.stem for path in FOLDER.glob("*.safetensors")} == set(PRETRAINED)


def test_mini_python_is_the_toy_recipe_and_solves_both_tasks():
    training = load_pretrained("mini-python")
    assert training.config == with_vocabulary(TrainConfig.toy(seed=0), training.corpus)
    assert training.model.density() < 0.02
    for task in ("quotes", "brackets"):
        assert task_score(training.model, load_task(task).batch(200, split="test", seed=0)).accuracy > 0.98


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"name: got 'gpt-5'; expected one of \['mini-python'\]"):
        load_pretrained("gpt-5")
