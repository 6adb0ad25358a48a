"""The models that ship with the package do what their description says."""

import pytest

from circuits.circuit.score import task_score
from circuits.model.checkpoint import load_checkpoint
from circuits.training.config import TrainConfig
from circuits.training.loop import with_vocabulary
from circuits.zoo.pretrained import (
    FOLDER,
    PRETRAINED,
    PRETRAINED_BRIDGES,
    load_pretrained,
    load_pretrained_bridges,
)
from tasks import load_task

FINGERPRINTS = {
    "mini-python": "99d1c4e35f447268",
    "bridges/mini-python/dense": "b7bd705dcb2be28b",
    "bridges/mini-python/sparse": "7428e1eba6792823",
    "bridges/mini-python-long/dense": "cf1d736360b8840c",
    "bridges/mini-python-long/sparse": "be1c9a885a37283c",
}
"""Circuits and bridges are tied to models by these; one that changes cuts every tie."""


def test_the_models_that_ship_keep_their_fingerprints():
    paths = [p for p in FOLDER.rglob("*.safetensors") if p.stem != "bridges"]
    names = {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in paths}
    assert {name: load_checkpoint(path).model.fingerprint() for name, path in names.items()} == FINGERPRINTS


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


def test_every_set_of_bridges_is_described_and_every_description_has_one():
    assert {path.name for path in (FOLDER / "bridges").iterdir()} == set(PRETRAINED_BRIDGES)


@pytest.mark.parametrize("name", sorted(PRETRAINED_BRIDGES))
def test_bridges_come_with_models_that_solve_the_tasks_and_recover_the_loss(name):
    bridges = load_pretrained_bridges(name)
    assert bridges.sparse.density() < 0.02 < bridges.dense.density()
    for model in (bridges.dense, bridges.sparse):
        for task in ("quotes", "brackets"):
            prompts = load_task(task).batch(200, split="test", seed=0)
            assert task_score(model, prompts).accuracy > 0.93
    summary = bridges.summary()
    assert summary["min_recovered_dense_to_sparse"] > 0.9
    assert summary["min_recovered_sparse_to_dense"] > (0.9 if name == "mini-python" else 0.85)
    with pytest.raises(ValueError, match="name: got 'gpt-5'; expected one of"):
        load_pretrained_bridges("gpt-5")
