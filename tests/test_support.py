"""The support-gradient experiment: its ratios, its shapes, and that nothing is run twice."""

import pytest

from circuits.training.config import TrainConfig
from docs.experiments import support


def one(width, grad, seed, val_loss, seconds):
    return {"width": width, "grad": grad, "seed": seed, "val_loss": val_loss, "seconds": seconds}


def test_the_ratio_is_the_worst_width_of_means_over_seeds():
    found = support.numbers(
        [
            one(128, "exact", 0, 1.0, 10.0), one(128, "support", 0, 1.1, 5.0),
            one(128, "exact", 1, 2.0, 10.0), one(128, "support", 1, 2.0, 9.0),
            one(256, "exact", 0, 1.0, 8.0), one(256, "support", 0, 0.5, 2.0),
        ]
    )  # fmt: skip
    assert found["loss_ratio"] == pytest.approx(1.05)
    assert found["by_width"]["256"]["loss_ratio"] == pytest.approx(0.5)


def test_widths_keep_density_and_head_size():
    wide, toy = support.at_width(256), TrainConfig.toy()
    assert support.at_width(128) == toy
    assert (wide.density, wide.model.d_head) == (toy.density, toy.model.d_head)
    assert wide.model.n_heads * wide.model.d_head == wide.model.d_model == 256


@pytest.mark.slow
def test_it_writes_its_results_and_does_not_train_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(support, "WIDTHS", (128,))
    paths = dict(results=tmp_path / "r.json", kept=tmp_path / "kept")
    first = support.run(seeds=1, steps=3, **paths)
    assert [run["grad"] for run in first["runs"]] == ["exact", "support"]
    monkeypatch.setattr("docs.experiments.runs.train", lambda *a, **k: pytest.fail("trained again"))
    assert support.run(seeds=1, steps=3, **paths)["runs"] == first["runs"]
