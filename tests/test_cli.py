"""The command line: help that teaches, JSON on request, clear errors, files that can be used."""

import html
import json
from dataclasses import replace

import pytest
from interrupted import before_step
from quote_model import CORPUS, TRUE_NODES, quote_closer
from typer.testing import CliRunner

from circuits.__main__ import app
from circuits.circuit.ablation import mean_values
from circuits.circuit.circuit import Circuit
from circuits.circuit.criterion import Criterion
from circuits.circuit.parts import edges_between
from circuits.files import json_text
from circuits.handmade import Recovery
from circuits.model.checkpoint import load_checkpoint, save_checkpoint
from circuits.model.transformer import SparseTransformer
from circuits.trust.report import TrustReport

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
    for command in ("demo", "train", "prune", "show", "trust", "verify"):
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
    assert '<div id="explorer"></div>' in page.read_text()
    assert "attn_v" in invoke("show", circuit).output


@pytest.fixture(scope="module")
def closer(tmp_path_factory):
    """A folder with a model, its true circuit, and another model and a stray file beside them."""
    folder = tmp_path_factory.mktemp("closer")
    model = quote_closer()
    save_checkpoint(folder / "b.safetensors", model)
    save_checkpoint(folder / "a.safetensors", SparseTransformer(model.config, seed=1))
    (folder / "0.safetensors").write_bytes(b"no checkpoint")
    text = CORPUS.train[:640].view(10, 64)
    circuit = Circuit(
        nodes=TRUE_NODES,
        edges=tuple(edges_between(model, TRUE_NODES)),
        widths=model.config.widths,
        n_layers=1,
        criterion=Criterion(task="quotes", n_eval=32, n_test=32),
        model_hash=model.fingerprint(),
        values=mean_values(model, text),
    )
    circuit.save(folder / "c.json")
    (folder / "quick.json").write_text(
        json.dumps({"n_pairs": 16, "n_random": 4, "n_knockouts": 2, "control_steps": 2})
    )
    return folder


def test_trust_finds_the_model_and_writes_a_page(closer):
    done = invoke("trust", closer / "c.json", "--config", closer / "quick.json", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["model"] == str(closer / "b.safetensors")
    entry = next(entry for entry in report["entries"] if entry["name"] == "sufficiency")
    assert entry["verdict"] == "pass"
    assert entry["value"] < 0.15 < entry["baseline"]
    page = (closer / "c.trust.html").read_text()
    assert report["page"] == str(closer / "c.trust.html")
    assert all(html.escape(entry["meaning"]) in page for entry in report["entries"])
    kept = TrustReport.load(closer / "c.trust.json")
    assert json.loads(json_text(kept.to_json())) == {key: report[key] for key in kept.to_json()}
    shown = invoke("show", closer / "c.json", "--page", closer / "shown.html")
    assert shown.exit_code == 0, shown.output
    assert kept.verdict in (closer / "shown.html").read_text()
    replace(kept, n_nodes=kept.n_nodes + 1).save(closer / "c.trust.json")
    shown = invoke("show", closer / "c.json", "--page", closer / "shown.html")
    assert shown.exit_code == 0, shown.output
    assert "c.trust.json is left out. trust: got a report on" in shown.output
    assert kept.verdict not in (closer / "shown.html").read_text()
    (closer / "c.trust.json").unlink()


@pytest.mark.slow
def test_the_commands_agree_on_a_faithful_circuit_under_position_ablation(closer):
    settings = {"objective": "faithful", "ablation": "position", "starts": 1, "steps": 40, "n_eval": 16}
    settings |= {"n_test": 24, "n_mean": 16}
    (closer / "prune.json").write_text(json.dumps(settings))
    out = closer / "faithful.json"
    pruned = invoke(
        "prune", closer / "b.safetensors", "--config", closer / "prune.json", "--out", out, "--json"
    )
    assert pruned.exit_code == 0, pruned.output
    said = json.loads(pruned.stdout)
    done = invoke("trust", out, "--config", closer / "quick.json", "--json")
    assert done.exit_code == 0, done.output
    found = {entry["name"]: entry for entry in json.loads(done.stdout)["entries"]}
    assert said["one_minimal"] is True
    assert found["1-minimality"]["verdict"] == "pass"
    assert found["sufficiency"]["value"] == pytest.approx(said["kl_to_model"], abs=1e-6)
    assert found["sufficiency"]["verdict"] == "pass"


def test_trust_prints_every_item(closer):
    done = invoke(
        "trust", closer / "c.json", "--config", closer / "quick.json", "--model", closer / "b.safetensors"
    )
    assert done.exit_code == 0, done.output
    words = " ".join(done.output.split())
    for item in ("sufficiency", "necessity", "CPR", "checks"):
        assert item in words


def test_trust_refuses_another_model_and_a_missing_one(closer, tmp_path):
    wrong = invoke("trust", closer / "c.json", "--model", closer / "a.safetensors")
    assert wrong.exit_code == 2
    assert "it belongs to model" in " ".join(wrong.output.split())
    (tmp_path / "c.json").write_text((closer / "c.json").read_text())
    missing = invoke("trust", tmp_path / "c.json")
    assert missing.exit_code == 2
    assert "say where it is with --model" in " ".join(missing.output.split())


@pytest.mark.slow
def test_verify_proves_resumes_and_writes_on_request_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = []

    def recovered(made, seed):
        calls.append(seed)
        return Recovery(
            exact=seed == 0,
            missing=[] if seed == 0 else [str(made.circuit.nodes[0])],
            extra=[],
            seconds=1.0,
            situation="unique",
            core_right=True,
        )

    monkeypatch.setattr("circuits.handmade.proof.recover", recovered)
    done = invoke("verify", "--seeds", 2, "--models", "copying", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["recovered"], report["total"]) == (1, 2)
    assert report["per_model"]["copying"]["misses"][0]["seed"] == 1
    assert report["methods"]["pruning"]["recall"] < 1
    assert not (tmp_path / "docs").exists()

    again = invoke("verify", "--seeds", 3, "--models", "copying", "--resume")
    assert again.exit_code == 0, again.output
    assert "1 of 3 circuits recovered exactly" in " ".join(again.output.split())
    assert calls == [0, 1, 2]
    later = invoke("verify", "--seeds", 1, "--first", 7, "--models", "copying", "--json")
    assert json.loads(later.stdout)["seeds"] == [7]
    assert json.loads(later.stdout)["command"] == "circuits verify --seeds 1 --first 7 --write"
    assert calls == [0, 1, 2, 7]
    assert invoke("verify", "--models", "copying", "--write").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "--task", "chess"), "task: got 'chess'; expected 'quotes' or 'brackets'"),
        (("train", "--recipe", "magic"), "recipe: got 'magic'; expected one of"),
        (("train", "--density", "0.0001"), "is too small for 0.W_Q"),
        (("train", "--corpus", "nowhere"), "corpus: got 'nowhere'; expected one of"),
        (("prune", "absent.safetensors"), "cannot be read as a checkpoint"),
        (("show", "absent.json"), "absent.json"),
        (("trust", "absent.json"), "absent.json"),
        (("verify", "--seeds", "0"), "at least one seed"),
        (("verify", "--first", "-1"), "first: got -1; expected a seed from 0 on"),
        (("verify", "--models", "chess"), "models: got 'chess'; expected one of"),
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


def test_a_config_that_is_no_object_is_refused(tmp_path):
    config = tmp_path / "c.json"
    for text, problem in (("[1, 2]", "holds a JSON list; expected"), ("{", "cannot be read as JSON")):
        config.write_text(text)
        result = invoke("train", "--config", config, "--out", tmp_path / "m.safetensors")
        assert result.exit_code == 2
        assert "config: " in result.output
        assert problem in " ".join(result.output.split())


def test_configs_of_older_versions_are_read(tmp_path):
    config, out = tmp_path / "c.json", tmp_path / "m.safetensors"
    config.write_text(json.dumps({**TINY, "steps": 2, "grad": "support", "gradient": "rms"}))
    assert invoke("train", "--config", config, "--out", out).exit_code == 0
    settings = load_checkpoint(out).meta["train"]
    assert (settings["weight_gradient"], settings["gradient_scaling"]) == ("support", "rms")


def test_ctrl_c_says_where_to_resume(tmp_path, monkeypatch):
    import signal

    before_step(monkeypatch, 3, lambda run: signal.raise_signal(signal.SIGINT))
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**TINY, "steps": 6}))
    out = tmp_path / "m.safetensors"
    stopped = invoke("train", "--config", config, "--out", out)
    left = tmp_path / "m.interrupted.safetensors"
    assert stopped.exit_code == 130
    assert left.exists()
    assert left.name in "".join(stopped.output.split())
    monkeypatch.undo()
    assert invoke("train", "--config", config, "--out", out, "--resume", left).exit_code == 0
    assert out.exists()


def test_a_finished_run_is_said_to_be_and_not_trained_again(tmp_path, monkeypatch):
    import importlib

    config, out = tmp_path / "c.json", tmp_path / "m.safetensors"
    config.write_text(json.dumps({**TINY, "steps": 3}))
    first = invoke("train", "--config", config, "--out", out, "--json", "--resume")
    assert first.exit_code == 0, first.output
    before, module = out.read_bytes(), importlib.import_module("circuits.training.loop")
    monkeypatch.setattr(module._Run, "one_step", lambda run: pytest.fail("training started"))
    again = invoke("train", "--config", config, "--out", out, "--json", "--resume")
    assert again.exit_code == 0, again.output
    assert f"{out} is finished" in again.stderr
    assert json.loads(again.stdout) == json.loads(first.stdout)
    config.write_text(json.dumps({**TINY, "steps": 4}))
    refused = invoke("train", "--config", config, "--out", out, "--resume")
    assert refused.exit_code == 2
    assert "is a finished run of another config" in " ".join(refused.output.split())
    assert out.read_bytes() == before


@pytest.mark.parametrize("name", ["[red]", "[/]", "[/bold]", ":smile:", "[bold]x[/bold]"])
def test_names_that_look_like_markup_are_printed_as_they_are(closer, tmp_path, name):
    found = Circuit.load(closer / "c.json")
    criterion = replace(found.criterion, task=name, task_options=None)
    path = replace(found, criterion=criterion).save(tmp_path / f"{name.replace('/', '')}.json")
    shown = invoke("show", path)
    assert shown.exit_code == 0, shown.output
    assert f"The circuit for {name}" in shown.output
    assert invoke("show", path, "--json").exit_code == 0
    refused = invoke("trust", path, "--model", closer / "b.safetensors")
    assert refused.exit_code == 2, refused.output
    missing = invoke("show", tmp_path / name)
    assert missing.exit_code == 2
    assert str(tmp_path / name) in missing.output
    assert "error path: " in missing.output


def test_show_and_trust_hold_weights_against_the_model(closer):
    found = Circuit.load(closer / "c.json")
    edges = tuple(edge._replace(weight=100 * edge.weight) for edge in found.edges)
    replace(found, edges=edges, facts={}).save(closer / "edited.json")
    for command in ("show", "trust"):
        done = invoke(command, closer / "edited.json")
        assert done.exit_code == 2, done.output
        assert f"its edge {found.edges[0].source} -> {found.edges[0].target} has weight" in done.output
