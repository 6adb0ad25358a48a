"""Where the history goes besides: TensorBoard, a stand-in for Weights & Biases, packages that are missing."""

import json
import sys
from types import SimpleNamespace

import pytest
from test_ranks import QUICK
from typer.testing import CliRunner

from circuits.__main__ import app
from circuits.training.loggers import logs
from circuits.training.loop import train


class Project:
    """What `wandb.init` gives, as far as it is used; it keeps what it is told."""

    def __init__(self) -> None:
        self.asked, self.logged, self.ended = {}, [], []

    def init(self, **asked):
        self.asked = asked
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self, exit_code=0):
        self.ended.append(exit_code)


@pytest.fixture
def project(monkeypatch) -> Project:
    found = Project()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=found.init))
    return found


def test_tensorboard_gets_every_entry(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, out = tmp_path / "c.json", tmp_path / "m.safetensors"
    config.write_text(json.dumps(QUICK.to_json()))
    command = ["train", "--config", str(config), "--out", str(out), "--tensorboard", str(tmp_path / "tb")]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    history = train(QUICK, progress=False).history
    assert [event.step for event in events.Scalars("loss")] == [entry["step"] for entry in history]
    for name in ("loss", "density", "lr", "val_loss"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        assert logged == [(e["step"], pytest.approx(e[name])) for e in history if name in e], name


def test_weights_and_biases_gets_config_and_entries(project):
    with logs(QUICK, wandb="small models") as log:
        history = train(QUICK, progress=False, log=log).history
    assert project.asked == {"project": "small models", "config": QUICK.to_json()}
    assert project.logged == [
        (entry["step"], {name: value for name, value in entry.items() if name != "step"}) for entry in history
    ]
    assert project.ended == [0]


def test_a_run_that_fails_is_failed_there_too(project):
    with pytest.raises(RuntimeError, match="lost"), logs(QUICK, wandb="p"):
        raise RuntimeError("lost")
    assert project.ended == [1]


def test_both_at_once_and_none(project, tmp_path):
    with logs(QUICK, tensorboard=tmp_path / "tb", wandb="p") as log:
        log({"step": 3, "loss": 1.5})
    assert project.logged == [(3, {"loss": 1.5})]
    assert len(list((tmp_path / "tb").iterdir())) == 1
    with logs(QUICK) as log:
        assert log is None


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_said_before_training(monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, name, None)
    config = tmp_path / "c.json"
    config.write_text(json.dumps(QUICK.to_json()))
    out = tmp_path / "m.safetensors"
    done = CliRunner().invoke(
        app, ["train", "--config", str(config), "--out", str(out), f"--{name}", str(tmp_path / "x")]
    )
    assert done.exit_code == 2
    said = " ".join(done.output.split())
    assert f"{name}: the package {name} is not installed; expected it" in said
    assert f"sparse-circuits[{name}]" in said
    assert not out.exists()
