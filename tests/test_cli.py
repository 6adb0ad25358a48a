"""The command line: help that teaches, JSON on request, clear errors, files that can be used."""

import json

import pytest
from quote_model import quote_closer
from typer.testing import CliRunner

from circuits.__main__ import app
from circuits.checkpoint import save_checkpoint
from circuits.circuit import Circuit

RUN = CliRunner()
TINY = {
    "model": {"n_layers": 1, "d_model": 32, "n_heads": 2, "d_head": 8, "d_mlp": 48, "n_ctx": 16},
    "batch_size": 4,
    "density": 0.2,
    "n_val": 8,
}


def invoke(*arguments):
    return RUN.invoke(app, [str(a) for a in arguments])


def test_help_teaches():
    text = invoke("--help").output
    for command in ("demo", "train", "prune", "show"):
        assert command in text
        assert invoke(command, "--help").exit_code == 0
    assert "A first session" in text


def test_train_prune_show(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(TINY))
    model = tmp_path / "m.safetensors"
    trained = invoke("train", "--config", config, "--steps", 5, "--out", model, "--json")
    assert trained.exit_code == 0, trained.output
    assert json.loads(trained.stdout)["steps"] == 5

    save_checkpoint(model, quote_closer(), meta={})
    circuit = tmp_path / "c.json"
    settings = tmp_path / "prune.json"
    settings.write_text(json.dumps({"steps": 60, "n_eval": 32, "n_test": 64, "n_mean": 64}))
    pruned = invoke("prune", model, "--config", settings, "--out", circuit, "--json")
    assert pruned.exit_code == 0, pruned.output
    assert json.loads(pruned.stdout)["n_nodes"] == Circuit.load(circuit).n_nodes

    shown = invoke("show", circuit, "--json")
    assert shown.exit_code == 0, shown.output
    page = tmp_path / "c.html"
    assert json.loads(shown.stdout)["page"] == str(page)
    assert "plotly" in page.read_text()
    assert "attn_v" in invoke("show", circuit).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "--task", "chess"), "task: got 'chess'; expected 'quotes' or 'brackets'"),
        (("train", "--recipe", "magic"), "recipe: got 'magic'; expected one of"),
        (("train", "--density", "0.0001"), "is too small for 0.W_Q"),
        (("train", "--corpus", "nowhere"), "name must be one of"),
        (("prune", "absent.safetensors"), "cannot be read as a checkpoint"),
        (("show", "absent.json"), "absent.json"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_unknown_config_keys_are_named(tmp_path):
    config = tmp_path / "c.json"
    config.write_text('{"learning_rate": 1}')
    result = invoke("train", "--config", config, "--out", tmp_path / "m.safetensors")
    assert result.exit_code == 2
    assert "unknown key ['learning_rate']" in " ".join(result.output.split())


def test_ctrl_c_says_where_to_resume(tmp_path, monkeypatch):
    import importlib

    module = importlib.import_module("circuits.train")
    one_step = module._Run.one_step

    def interrupted(run):
        if run.step == 3:
            raise KeyboardInterrupt
        one_step(run)

    monkeypatch.setattr(module._Run, "one_step", interrupted)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**TINY, "steps": 6}))
    out = tmp_path / "m.safetensors"
    stopped = invoke("train", "--config", config, "--out", out)
    left = tmp_path / "m.interrupted.safetensors"
    assert stopped.exit_code == 130
    assert left.exists()
    assert left.name in "".join(stopped.output.split())
    monkeypatch.setattr(module._Run, "one_step", one_step)
    assert invoke("train", "--config", config, "--out", out, "--resume", left).exit_code == 0
    assert out.exists()
