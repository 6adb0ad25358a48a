"""The command line around its work: what it lists, which setting wins, what it writes over, how tables look."""

import importlib
import json
from pathlib import Path

import pytest
import typer
from interrupted import before_step
from quote_model import quote_closer
from rich.console import Console
from typer.testing import CliRunner

from circuits.__main__ import app
from circuits.commands import doctor, shared
from circuits.model.checkpoint import load_checkpoint, save_checkpoint
from tasks import TASKS, load_task
from tasks.python_choices import CHOICES

RUN = CliRunner()
TINY = {
    "model": {"n_layers": 1, "d_model": 32, "n_heads": 2, "d_head": 8, "d_mlp": 48, "n_ctx": 16},
    "batch_size": 4,
    "density": 0.2,
    "n_val": 8,
    "steps": 3,
}


def invoke(*arguments):
    return RUN.invoke(app, [str(a) for a in arguments])


def said(done) -> dict:
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def tiny(tmp_path):
    """A folder with a configuration that takes no time."""
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    return tmp_path


def train(folder, *arguments, config=TINY):
    (folder / "c.json").write_text(json.dumps(config))
    return invoke(
        "train", "--config", folder / "c.json", "--out", folder / "m.safetensors", "--json", *arguments
    )


def settings_of(folder) -> dict:
    return load_checkpoint(folder / "m.safetensors").meta["train"]


def test_every_command_has_json_and_a_sentence():
    for name, command in typer.main.get_command(app).commands.items():
        assert any("--json" in option.opts for option in command.params), name
        assert command.help, name


def test_version_and_completion():
    assert invoke("--version").stdout.startswith("circuits 0.")
    assert "--install-completion" in invoke("--help").output


def test_a_wrong_command_is_answered_with_the_nearest():
    done = invoke("prun")
    assert done.exit_code == 2
    assert "Did you mean 'prune'?" in done.output


def test_doctor_finds_what_is_here_and_says_what_is_not(monkeypatch):
    report = said(invoke("doctor", "--json"))
    found = {one["name"]: one["found"] for one in report["findings"]}
    assert report["healthy"]
    assert found["torch"].startswith("2.")
    assert found["numba compiles"] == "yes"
    version = doctor._version
    monkeypatch.setattr(
        doctor, "_version", lambda name: None if name in ("optuna", "numpy") else version(name)
    )
    done = invoke("doctor")
    assert done.exit_code == 1
    assert "numpy\tMISSING" in done.stdout
    assert (
        "extra search: pip install -c constraints.txt 'sparse-circuits[search]'  (lacking: optuna)"
        in done.stdout
    )


def test_tasks_are_listed_with_an_example_that_their_rule_agrees_with():
    rows = said(invoke("tasks", "--json"))["tasks"]
    assert {row["task"] for row in rows} == TASKS.keys() - CHOICES.keys()
    for row in rows:
        assert row["answer"] != row["foil"]
        if row["corpus"] == "mini":
            assert load_task(row["task"]).solve(row["prompt"]) == row["answer"]


def test_the_zoo_is_listed_and_what_it_names_loads():
    import circuits

    rows = said(invoke("zoo", "--json"))["models"]
    assert len(rows) >= 8
    for row in rows:
        assert {"about", "command", "seeds", "metrics", "model"} <= row.keys()
        assert row["kilobytes"] > 0
        assert eval(row["loads"], {"circuits": circuits}) is not None


def test_the_name_of_a_model_that_ships_stands_for_its_file(tmp_path, monkeypatch):
    import circuits

    model, _ = shared.load_model(Path("quotes-handmade"))
    assert model.fingerprint() == circuits.load("quotes-handmade").circuit.model_hash
    monkeypatch.chdir(tmp_path)
    save_checkpoint("quotes-handmade", quote_closer())
    assert shared.load_model(Path("quotes-handmade"))[0].fingerprint() == quote_closer().fingerprint()


def test_the_line_beats_the_file_and_the_file_beats_the_recipe(tiny):
    assert said(train(tiny, "--steps", 2))["steps"] == 2
    assert settings_of(tiny)["steps"] == 2
    assert settings_of(tiny)["batch_size"] == 4
    config = {**TINY, "seed": 3, "corpus": "induction"}
    assert said(train(tiny, "--force", config=config))["corpus"] == "induction"
    assert settings_of(tiny)["seed"] == 3
    assert said(train(tiny, "--force", "--seed", 4, "--corpus", "mini", config=config))["corpus"] == "mini"
    assert settings_of(tiny)["seed"] == 4


def test_a_part_of_the_model_changes_that_part_alone(tiny):
    config = {"model": {"n_ctx": 16, "d_model": 32}, "density": 0.5, "steps": 1, "batch_size": 2, "n_val": 2}
    said(train(tiny, config=config))
    model = settings_of(tiny)["model"]
    assert (model["n_ctx"], model["d_model"]) == (16, 32)
    assert (model["n_layers"], model["n_heads"], model["d_head"]) == (1, 16, 8)


def test_a_wrong_flag_is_not_blamed_on_the_file(tiny):
    done = train(tiny, "--steps", 0)
    assert done.exit_code == 2
    assert "c.json" not in done.output
    assert "steps: got 0; expected a whole number of at least 1" in " ".join(done.output.split())


def test_what_took_a_while_is_written_over_only_when_asked(tiny):
    said(train(tiny))
    before = (tiny / "m.safetensors").read_bytes()
    refused = train(tiny, "--seed", 1)
    assert refused.exit_code == 2
    assert "Write over it with --force, or choose another with --out" in " ".join(refused.output.split())
    assert (tiny / "m.safetensors").read_bytes() == before
    said(train(tiny, "--seed", 1, "--force"))
    assert (tiny / "m.safetensors").read_bytes() != before


def test_pruning_refuses_an_interrupted_run_and_an_old_circuit(tiny, monkeypatch):
    import signal

    before_step(monkeypatch, 1, lambda run: signal.raise_signal(signal.SIGINT))
    assert train(tiny).exit_code == 130
    left = tiny / "m.interrupted.safetensors"
    done = invoke("prune", left, "--out", tiny / "circuit.json")
    assert done.exit_code == 2
    assert "interrupted at step 2, with density" in " ".join(done.output.split())
    assert "--resume" in done.output
    save_checkpoint(tiny / "whole.safetensors", quote_closer())
    (tiny / "old.json").write_text("{}")
    done = invoke("prune", tiny / "whole.safetensors", "--out", tiny / "old.json")
    assert done.exit_code == 2
    assert "is there already" in " ".join(done.output.split())


def test_a_resume_with_another_config_names_the_keys_that_differ(tiny, monkeypatch):
    loop = importlib.import_module("circuits.training.loop")
    monkeypatch.setattr(loop._Run, "progress", lambda run: run.step / 3)
    run = loop._Run
    config = loop.TrainConfig.from_json({**TINY, "steps": 3})
    corpus = loop.load_corpus("mini")
    config = loop.with_vocabulary(config, corpus)
    started = run(config, corpus)
    started.one_step()
    left = started.save(tiny / "m.interrupted.safetensors")
    done = train(tiny, "--resume", left, "--density", 0.5)
    assert done.exit_code == 2
    text = " ".join(done.output.split())
    assert "it differs in density: 0.2 and 0.5 (there and here)" in text
    assert len(text) < 400 + len(str(tiny))


ROWS = [("a" * 20, "b" * 70, "c"), ("d", "long words " * 20, "e")]


def test_a_table_fits_a_terminal_of_80_columns(monkeypatch, capsys):
    wide = Console(width=80, force_terminal=True, color_system=None, markup=False, emoji=False)
    monkeypatch.setattr(shared, "console", lambda stderr=False: wide)
    shared.show_table("Title", ("x", "y", "z"), ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("Title" in line for line in lines)


def test_a_table_in_a_pipe_is_lines_with_tabs(capsys):
    shared.show_table("Title", ("x", "y", "z"), ROWS)
    captured = capsys.readouterr()
    assert [line.split("\t")[0] for line in captured.out.splitlines()] == ["x", "a" * 20, "d"]
    assert captured.err == "Title\n"
