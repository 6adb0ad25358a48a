"""What the fuzz found, reader by reader; and that it leaves no reader out."""

import ast
import io
import json
import os
import pickle
import sqlite3
import zipfile
from collections import OrderedDict
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from circuits.__main__ import app
from circuits.circuit.circuit import Circuit
from circuits.files import write_json
from circuits.handmade import quotes
from circuits.interop import openai
from circuits.interop.neuronpedia import graph_to_html, graph_view
from circuits.interop.torch_file import load_tensors
from circuits.plots import demo_page, trust_figure
from circuits.reading import UnreadableError
from circuits.sweep import RunTable, load_plan
from circuits.sweep.export import sweep_page
from circuits.trust import TrustReport
from docs.experiments import fuzz, readers
from docs.experiments.imports import modules
from tasks import from_pairs
from tasks.token_cache import read_streams, write_streams
from tasks.tokenizer import BPE, WordTokenizer
from tasks.tokenizer_files import tokenizer_json, tokenizer_of_text

ROOT = Path(__file__).parent.parent
OPENS = {"open", "read_text", "read_bytes", "text_of_file", "safe_open", "fromfile", "memmap", "connect"}
OPENS |= {"from_pretrained"}
"""Names of calls that open a file."""


# The list of readers.


def opens_files(text: str) -> bool:
    calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    names = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}
    torch_load = any(ast.unparse(call) == "torch.load" for call in calls)
    return bool(names & OPENS) or torch_load


def test_every_module_that_opens_files_is_tried_by_the_fuzz_or_says_why_not(tmp_path):
    opening = {name for name, path in modules(ROOT).items() if opens_files(path.read_text())}
    assert opening == readers.TRIED.keys() | readers.OURS_ALONE.keys()
    assert opens_files("with path.open() as f: pass")
    assert opens_files("torch.load(path)")
    assert not opens_files("tl.load(x)")


@pytest.mark.slow
def test_every_target_takes_its_good_file_and_all_that_is_listed_is_a_target(tmp_path):
    targets = readers.all_targets(tmp_path)
    assert {name for names in readers.TRIED.values() for name in names} <= {target.name for target in targets}
    for target in targets:
        target.read(target.good)


def test_an_error_is_our_own_if_the_package_raises_it():
    def raised(act):
        with pytest.raises(ValueError, match=".") as caught:
            act()
        return caught.value

    assert fuzz.is_own(raised(lambda: load_tensors("nowhere", "x")), UnreadableError)
    assert fuzz.is_own(raised(lambda: WordTokenizer(name="w", words=("a",)).encode("b")), ValueError)
    assert not fuzz.is_own(raised(lambda: int("x")), ValueError)
    assert not fuzz.is_own(raised(lambda: json.loads("{")), ValueError)
    assert not fuzz.is_own(raised(lambda: WordTokenizer(name="w", words=("a",)).encode("b")), UnreadableError)


# Trust reports.


def test_a_report_comes_back_and_a_flipped_digit_is_noticed(tmp_path):
    report = readers._report()
    path = report.save(tmp_path / "r.json")
    again = TrustReport.load(path)
    assert again.to_json() == report.to_json()
    assert str(again) == str(report)
    path.write_text(path.read_text().replace("0.9", "0.8"))
    with pytest.raises(UnreadableError, match="checksum"):
        TrustReport.load(path)
    older = write_json(tmp_path / "older.json", report.to_json())
    assert TrustReport.load(older).to_json() == report.to_json()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_nodes": "5"}, "n_nodes: got '5'; expected a whole number"),
        ({"n_nodes": -1}, "n_nodes: got -1"),
        ({"n_edges": 4.5}, "n_edges: got 4.5"),
        ({"seconds": None}, "seconds: got None"),
        ({"task": 7}, "task: got 7"),
        ({"entries": {}}, "entries: got"),
        ({"entries": [5]}, "entries: got"),
        ({"more": 1}, "unknown key"),
    ],
)
def test_a_report_of_other_values_is_refused_by_name(tmp_path, change, said):
    path = write_json(tmp_path / "r.json", readers._report().to_json() | change)
    with pytest.raises(UnreadableError, match=said):
        TrustReport.load(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"verdict": "yes"}, "verdict: got 'yes'"),
        ({"value": "0.5"}, "value: got '0.5'"),
        ({"value": True}, "value: got True"),
        ({"details": [1]}, "details: got"),
        ({"name": "interchange"}, "each name once"),
    ],
)
def test_an_entry_of_other_values_is_refused_by_name(tmp_path, change, said):
    data = readers._report().to_json()
    data["entries"][0] |= change
    with pytest.raises(UnreadableError, match=said):
        TrustReport.load(write_json(tmp_path / "r.json", data))


def test_a_report_whose_details_are_others_is_not_drawn():
    report = readers._report()
    bad = replace(report, entries=(replace(report.entries[0], details={"shares": 5}), *report.entries[1:]))
    with pytest.raises(ValueError, match="details of CPR and interchange cannot be drawn"):
        trust_figure(bad)


# Circuits that are shown.


def test_metrics_that_are_no_numbers_are_not_set_as_numbers(tmp_path):
    circuit = Circuit.load(readers.STORED / "mean.json").with_metrics(task_accuracy="<b>all</b>")
    text = demo_page(tmp_path / "c.html", circuit, circuit.summary()).read_text()
    assert "&lt;b&gt;all&lt;/b&gt;" in text
    data = json.loads((readers.STORED / "mean.json").read_text())
    data["metrics"]["task_loss"] = "low"
    with pytest.raises(UnreadableError, match="task_loss 'low'"):
        Circuit.load(write_json(tmp_path / "c.json", data))


@pytest.mark.parametrize("history", [5, [5], [{"step": 1}], [{"step": 1, "task_loss": None, "n_open": 2}]])
def test_a_history_that_is_none_is_refused(tmp_path, history):
    path = Circuit.load(readers.STORED / "mean.json").with_metrics(history=history).save(tmp_path / "c.json")
    told = CliRunner().invoke(app, ["show", str(path)])
    assert told.exit_code == 2, told.output
    assert "history: " in told.output
    made = quotes(1)
    circuit = made.circuit.with_metrics(history=history)
    with pytest.raises(ValueError, match="history: got"):
        circuit.to_html(tmp_path / "c.html", made.model, made.task)


# Sweeps.


def test_a_short_plan_of_endless_runs_is_refused_at_once(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(f"tasks = ['quotes']\nwidths = {list(range(8, 800, 8))}\nseeds = {list(range(200))}\n")
    with pytest.raises(UnreadableError, match=r"19,800 runs; expected at most 10,000"):
        load_plan(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableError, match="no regular file"):
        load_plan(tmp_path / "pipe")


def sweep_table(path: Path) -> Path:
    table = RunTable(path, shared=True)
    table.add(readers.Plan.of(readers.Axes(tasks=("quotes",), seeds=(0, 1))))
    return path


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("ALTER TABLE runs ADD COLUMN extra TEXT", "columns of a sweep's table"),
        ("CREATE TRIGGER t AFTER UPDATE ON runs BEGIN DELETE FROM runs; END", "neither views nor"),
        ("CREATE VIEW v AS SELECT 1", "neither views nor triggers"),
        ("DROP TABLE runs; CREATE VIEW runs AS SELECT 1 AS key", "columns of a sweep's table"),
    ],
)
def test_a_table_of_another_schema_is_refused(tmp_path, statement, said):
    path = sweep_table(tmp_path / "runs.sqlite")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(statement)
    with pytest.raises(UnreadableError, match=said):
        RunTable(path)


def test_a_result_does_not_say_which_run_it_is_of(tmp_path):
    table = RunTable(sweep_table(tmp_path / "runs.sqlite"), shared=True)
    key, _ = table.claim("a")
    table.finish("a", key, {"task": [1], "key": "other", "state": "failed", "n_nodes": 3})
    row = table.rows()[0]
    assert (row["task"], row["key"], row["state"], row["n_nodes"]) == ("quotes", key, "done", 3)
    with closing(sqlite3.connect(table.path)) as connection:
        (held,) = connection.execute("SELECT settings FROM runs WHERE key = ?", (key,)).fetchone()
        settings = json.dumps(json.loads(held) | {"task": [1]})
        connection.execute("UPDATE runs SET settings = ? WHERE key = ?", (settings, key))
        connection.commit()
    with pytest.raises(UnreadableError, match="task: got"):
        table.rows()


@pytest.mark.parametrize("settings", ["5", "{", '{"task": "quotes"}', "[]"])
def test_a_table_with_other_settings_is_refused(tmp_path, settings):
    path = sweep_table(tmp_path / "runs.sqlite")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE runs SET settings = ?", (settings,))
        connection.commit()
    table = RunTable(path)
    with pytest.raises(UnreadableError, match=r"runs\.sqlite cannot be read"):
        table.rows()
    with pytest.raises(UnreadableError, match=r"runs\.sqlite cannot be read"):
        table.claim("a")
    assert table.progress().pending == 2, "what could not be read is not claimed"


def test_results_without_what_is_drawn_are_a_table_alone(tmp_path):
    path = sweep_table(tmp_path / "runs.sqlite")
    table = RunTable(path, shared=True)
    key, _ = table.claim("a")
    table.finish("a", key, {"n_nodes": 3})
    text = sweep_page(table, tmp_path / "sweep.html").read_text()
    assert "1 done" in text
    assert "Plotly.newPlot" not in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--config", "given.json", "--out", "given.json"],
        ["train", "--corpus", "text.txt", "--out", "text.txt"],
        ["prune", "m.safetensors", "--config", "given.json", "--out", "given.json"],
        ["prune", "m.safetensors", "--task", "pairs.csv", "--out", "pairs.csv"],
        ["bridge", "m.safetensors", "--config", "given.json", "--out", "given.json"],
        ["show", "c.json", "--model", "m.safetensors", "--page", "m.safetensors"],
        ["sweep", "plan.toml", "--export", "plan.toml"],
    ],
    ids=" ".join,
)
def test_no_command_writes_over_what_it_reads_forced_or_not(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    for name in ("text.txt", "pairs.csv"):
        Path(name).write_text("clean,corrupt,answer,foil\n" * 100)
    Path("given.json").write_text("{}")
    Path("plan.toml").write_text(readers.SWEEP)
    Path("c.json").write_bytes((readers.STORED / "mean.json").read_bytes())
    Path("m.safetensors").write_bytes((readers.STORED / "model.safetensors").read_bytes())
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    forced = [] if arguments[0] in ("show", "sweep") else ["--force"]
    told = CliRunner().invoke(app, [*arguments, *forced])
    assert told.exit_code == 2, told.output
    assert "is the file that is read" in told.output
    assert {path: path.read_bytes() for path in before} == before


def test_what_is_no_table_is_said_by_the_command(tmp_path):
    (tmp_path / "plan.toml").write_text(readers.SWEEP)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "runs.sqlite").write_bytes(b"no table " * 1000)
    told = CliRunner().invoke(app, ["sweep", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "out")])
    assert told.exit_code == 2
    assert "file is not a database" in told.output
    (tmp_path / "out" / "runs.sqlite").unlink()
    (tmp_path / "out" / "runs.sqlite").mkdir()
    with pytest.raises(UnreadableError, match="no regular file"):
        RunTable(tmp_path / "out" / "runs.sqlite")


# Attribution graphs of others.


def graph() -> dict:
    nodes = [
        {"node_id": f"{layer}_{at}_0", "layer": layer, "ctx_idx": at, "feature_type": "x"}
        for layer in ("E", "0", "1")
        for at in range(3)
    ]
    return {
        "metadata": {"prompt_tokens": ["a", "b", "c"], "slug": "s"},
        "nodes": nodes,
        "links": [{"source": "E_0_0", "target": "0_1_0", "weight": 0.5}],
    }


@pytest.mark.parametrize(
    "change",
    [
        {"nodes": 5},
        {"nodes": [5]},
        {"links": [{"source": "E_0_0", "target": "0_1_0", "weight": None}]},
        {"links": [{"source": "E_0_0", "target": "0_1_0", "weight": [1]}]},
        {"metadata": []},
        {"qParams": {"supernodes": [5]}},
        {"qParams": {"pinnedIds": [{}]}},
    ],
)
def test_a_graph_of_other_values_is_refused(tmp_path, change):
    graph_view(graph())
    with pytest.raises(ValueError, match="a value is of another kind"):
        graph_view(graph() | change)
    with pytest.raises(UnreadableError, match=r"g\.json cannot be read"):
        graph_to_html(write_json(tmp_path / "g.json", graph() | change), tmp_path / "g.html")
    assert not (tmp_path / "g.html").exists()


# Files of torch.


def archive(path: Path, instructions: bytes, data: bytes = b"\0" * 16) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, part in {
            "data.pkl": instructions,
            "version": b"3\n",
            "byteorder": b"little",
            "data/0": data,
        }.items():
            file.writestr(f"archive/{name}", part)
    return path


def claims(numel: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """The pickle of {"w": a tensor}, as torch writes it, with sizes that it may not have."""
    buffer = io.BytesIO()

    storage = object()

    class Writer(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if obj is storage else None

    class Rebuilt:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (storage, 0, shape, stride, False, OrderedDict())

    Writer(buffer, protocol=2).dump({"w": Rebuilt()})
    return buffer.getvalue()


def test_an_archive_of_torch_loads_where_it_is_honest(tmp_path):
    path = archive(tmp_path / "m.pt", claims(4, (2, 2), (2, 1)))
    assert torch.equal(load_tensors(path, "x")["w"], torch.zeros(2, 2))
    tied = torch.ones(5)
    torch.save({"a": tied, "b": tied}, path)
    assert torch.equal(load_tensors(path, "x")["b"], tied)


@pytest.mark.parametrize(
    ("numel", "shape", "stride"),
    [
        (4, (20_000, 20_000), (0, 0)),
        (4, (20_000, 20_000), (20_000, 1)),
        (4 * 10**8, (20_000, 20_000), (20_000, 1)),
        (10**12, (2, 2), (2, 10**9)),
    ],
    ids=["one number for all", "more than there is", "a storage beyond the file", "a stride beyond it"],
)
def test_a_tensor_never_claims_more_than_its_file_holds(tmp_path, numel, shape, stride):
    path = archive(tmp_path / "m.pt", claims(numel, shape, stride))
    before = fuzz.peak(reset=True)
    with pytest.raises(UnreadableError, match=r"m\.pt"):
        load_tensors(path, "a state dict")
    assert fuzz.peak() - before < 2**26


@pytest.mark.parametrize("act", [(bytearray, (10**10,)), (torch.Tensor, (10**5, 10**5)), (os.getcwd, ())])
def test_a_pickle_that_asks_for_anything_but_tensors_is_refused_before_it_is_read(tmp_path, act):
    class Acts:
        def __reduce__(self):
            return act

    path = archive(tmp_path / "m.pt", pickle.dumps({"w": Acts()}, protocol=2))
    with pytest.raises(UnreadableError, match="it asks for .*expected tensors"):
        load_tensors(path, "a state dict")
    path = archive(tmp_path / "m.pt", pickle.dumps({"w": Acts()}, protocol=4))
    with pytest.raises(UnreadableError, match="it asks for .*expected tensors"):
        load_tensors(path, "a state dict")


def test_archives_that_are_packed_or_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UnreadableError, match="not a zip file"):
        load_tensors(path, "a state dict")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickle.dumps({"w": "x" * 10**6}, protocol=2))
    with pytest.raises(UnreadableError, match="compressed"):
        load_tensors(path, "a state dict")


def test_a_small_config_of_openai_builds_no_large_model(tmp_path):
    home = openai.save_openai(tmp_path, readers.SparseTransformer(readers.OPENAI, seed=3))
    config = json.loads((home / openai.CONFIG).read_text())
    for change in ({"n_layer": 1000}, {"n_layer": 10**7}, {"vocab_size": 10**6, "d_model": 10**5}):
        write_json(home / openai.CONFIG, config | change)
        before = fuzz.peak(reset=True)
        with pytest.raises(UnreadableError):
            openai.load_openai(home)
        assert fuzz.peak() - before < 2**26


# Data of tasks.


def test_a_long_chain_of_pairs_is_split_in_no_time():
    words = WordTokenizer(name="w", words=tuple(f"w{i}" for i in range(3000)))
    rows = [(f"w{i}", f"w{i + 1}", "w0", "w1") for i in range(0, 2990)]
    with pytest.raises(ValueError, match="is to be answered by|unrelated pairs"):
        from_pairs(
            [(a, b, *(("w0", "w1") if i % 2 else ("w1", "w0"))) for i, (a, b, *_) in enumerate(rows)], words
        )


def test_pairs_from_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pairs.csv")
    with pytest.raises(ValueError, match="no regular file"):
        from_pairs(tmp_path / "pairs.csv", WordTokenizer(name="w", words=("a",)))


@pytest.mark.parametrize("foot", [b"", b"5", b"{}", b'{"train": -2, "val": 9, "dtype": "int16"}', b"[" * 200])
def test_a_cache_whose_foot_is_damaged_is_said(tmp_path, foot):
    bpe = BPE.train(["a text"], name="t", d_vocab=256)
    path = tmp_path / "x.tokens"
    write_streams(path, bpe, ["a text"], ["another"])
    read_streams(path, 256)
    path.write_bytes(path.read_bytes()[:-256] + foot.ljust(256))
    with pytest.raises(ValueError, match="no whole file of tokens"):
        read_streams(path, 256)


def test_a_tokenizer_of_lists_in_lists_is_refused_before_it_is_parsed():
    words = WordTokenizer(name="[{", words=("[", "{", '"', "a\\", "\u00e9"))
    text = json.dumps(tokenizer_json(words))
    assert tokenizer_of_text(text) == words
    endless = '{"kind": "words", "name": "", "words": [' + "[]," * 10**5 + "[]]}"
    with pytest.raises(ValueError, match="expected one object with one list"):
        tokenizer_of_text(endless)
