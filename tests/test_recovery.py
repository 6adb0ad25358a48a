"""Files that are damaged or hostile, disks that are full, runs that are killed: nothing lost, nothing believed."""

import importlib
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from interrupted import before_step
from safetensors import safe_open
from safetensors.torch import save_file

from circuits.circuit.circuit import Circuit
from circuits.files import UnwritableError, check_writable, clean_up, write_json, write_text
from circuits.model.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from circuits.model.config import ModelConfig
from circuits.model.stored import KEY, sealed_text
from circuits.model.transformer import SparseTransformer
from circuits.reading import UnreadableError, parsed, sealed, unsealed
from circuits.signals import unbroken
from circuits.training import TrainConfig, TrainingDiverged, TrainingInterrupted, train
from circuits.training.numbered import Keep, Numbered
from docs.experiments import fuzz, readers, recovery
from docs.experiments.mutate import hostile_json

ROOT = Path(__file__).parent.parent
STORED = ROOT / "tests" / "data" / "format-1"
CONFIG = ModelConfig(d_vocab=11, d_model=32, n_heads=2, d_mlp=64, n_ctx=8, bigram=False)
TINY = replace(readers.CONFIG, steps=12)
LOOP = importlib.import_module("circuits.training.loop")


def sparse_model() -> SparseTransformer:
    model = SparseTransformer(CONFIG, seed=1)
    for matrix in model.matrices():
        flat = matrix.parameter.data.view(-1)
        flat[torch.arange(flat.numel()) % 50 != 0] = 0
    return model


def rewritten(path: Path, *, config=None, tensors=None, shapes=None) -> Path:
    """A checkpoint with other content, whose checksum is right."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[KEY])
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header["config"] |= config or {}
    header["shapes"] |= shapes or {}
    held |= tensors or {}
    held = {name: tensor for name, tensor in held.items() if tensor is not None}
    del header["checksum"]
    save_file(held, path, metadata={KEY: sealed_text(header, held)})
    return path


# Hostile files.


@pytest.mark.slow
def test_every_reader_loads_or_refuses_whatever_a_file_holds():
    report = fuzz.fuzz(400, seed=1)
    assert report.bad == ()
    assert 0 < report.refused < report.cases == 400


def test_the_fuzz_finds_a_reader_that_is_not_careful(tmp_path):
    good = write_json(tmp_path / "good.json", {"n": 3, "list": [1, 2]})

    def careless(path: Path) -> int:
        return json.loads(path.read_text())["n"] + 1

    def greedy(path: Path) -> int:
        return int(torch.ones(2**26, dtype=torch.float32).sum())

    target = readers.Target("careless", good, hostile_json, careless)
    told = {fuzz.one_case(target, random.Random(seed), tmp_path / "x") for seed in range(40)}
    assert any(said and said.startswith(("KeyError", "JSONDecodeError", "TypeError")) for said in told)
    said = fuzz.one_case(target._replace(read=greedy), random.Random(0), tmp_path / "x")
    assert said is not None
    assert said.startswith("memory: ")


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": {"d_vocab": 20_000, "d_model": 20_000}}, "has shape"),
        ({"config": {"n_layers": 1000}}, "as many as it has tensors for"),
        ({"config": {"n_layers": 10**7}}, "from 1 to 1,024"),
        ({"config": {"d_vocab": None}}, "config.d_vocab"),
        ({"config": {"positions": "sinusoid", "n_ctx": 10**9}}, "claims a model of"),
        ({"tensors": {"stray": torch.ones(1)}}, "it has, or lacks, .*stray"),
        ({"shapes": {"stray": [1]}}, "shapes: got"),
    ],
)
def test_what_a_file_claims_is_held_against_what_it_stores(tmp_path, compact, change, said):
    good = save_checkpoint(tmp_path / "m.safetensors", sparse_model())
    load_checkpoint(good, compact=compact)  # the first in a process imports what torch needs for it, 140 MB
    path = rewritten(good, **change)
    before = fuzz.peak(reset=True)
    with pytest.raises(UnreadableError, match=said):
        load_checkpoint(path, compact=compact)
    assert fuzz.peak() - before < 2**26


def test_a_small_file_makes_no_large_model(tmp_path):
    model = SparseTransformer(replace(CONFIG, d_vocab=20_000, d_model=1000, d_mlp=8))
    for parameter in model.parameters():
        parameter.data.zero_()
    path = save_checkpoint(tmp_path / "m.safetensors", model)
    assert path.stat().st_size < 100_000
    with pytest.raises(UnreadableError, match="claims a model of"):
        load_checkpoint(path)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: torch.cat([p[:1], p[:-1]]),
        lambda p: p.flip(0),
        lambda p: p.float(),
        lambda p: p > 0,
        lambda p: p.to(torch.int32).sub(1),
        lambda p: torch.cat([p[:-1], p[-1:] + 10**6]),
        lambda p: p[:-1],
        lambda p: p.reshape(1, -1),
    ],
    ids=["twice", "falling", "floats", "bools", "negative", "outside", "too few", "two axes"],
)
def test_positions_are_refused_dense_and_compact_alike(tmp_path, compact, spoil):
    path = save_checkpoint(tmp_path / "m.safetensors", sparse_model())
    weight = "blocks.0.mlp.up.weight"
    steps, positions = f"{weight}.nonzero_steps", f"{weight}.nonzero_positions"
    with safe_open(path, framework="pt") as file:
        right = file.get_tensor(steps).to(torch.int64).cumsum(0)
    spoilt = spoil(right)
    spoilt = spoilt.to(torch.uint32) if spoilt.dtype == torch.int64 else spoilt
    rewritten(path, tensors={steps: None, positions: spoilt.contiguous()})
    with pytest.raises(UnreadableError):
        load_checkpoint(path, compact=compact)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: torch.cat([p[:2], p[1:-1] * 0]),
        lambda p: p.float(),
        lambda p: torch.cat([p[:-1], p[-1:] + 10_000]),
        lambda p: p[:-1],
        lambda p: p.reshape(1, -1),
    ],
    ids=["twice", "floats", "outside", "too few", "two axes"],
)
def test_steps_are_refused_dense_and_compact_alike(tmp_path, compact, spoil):
    path = save_checkpoint(tmp_path / "m.safetensors", sparse_model())
    steps = "blocks.0.mlp.up.weight.nonzero_steps"
    with safe_open(path, framework="pt") as file:
        spoilt = spoil(file.get_tensor(steps).to(torch.int64))
    spoilt = spoilt.to(torch.uint16) if spoilt.dtype == torch.int64 else spoilt
    rewritten(path, tensors={steps: spoilt.contiguous()})
    with pytest.raises(UnreadableError):
        load_checkpoint(path, compact=compact)


def test_a_flipped_bit_is_noticed(tmp_path):
    model = sparse_model()
    path = save_checkpoint(tmp_path / "m.safetensors", model)
    circuit = Circuit.load(STORED / "mean.json")
    kept = circuit.save(tmp_path / "c.json")
    rng = random.Random(0)
    for file, load, same in (
        (path, lambda p: load_checkpoint(p).model.fingerprint(), model.fingerprint()),
        (kept, Circuit.load, circuit),
    ):
        whole = file.read_bytes()
        for _ in range(150):
            data = bytearray(whole)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            file.write_bytes(bytes(data))
            try:
                assert load(file) == same
            except UnreadableError:
                continue


def test_files_without_a_checksum_still_load(tmp_path):
    assert "checksum" not in json.loads((STORED / "mean.json").read_text())
    assert Circuit.load(STORED / "mean.json").n_nodes > 0
    with safe_open(STORED / "model.safetensors", framework="pt") as file:
        assert set(file.metadata()) == {KEY}
        assert "checksum" not in json.loads(file.metadata()[KEY])
    data = {"a": [1, 2.5, "x"], "b": None}
    assert unsealed(sealed(data)) == unsealed(data) == data
    with pytest.raises(UnreadableError, match="checksum: got"):
        unsealed({**sealed(data), "b": 1})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "without end|in one another|fewer parts"),
        ("[" * 40 + "]" * 40, "in one another"),
        ("9" * 5000, "64 bits"),
        (str(2**70), "64 bits"),
        ("1e999", "a double"),
        ("NaN", "got NaN"),
        ("-Infinity", "got -Infinity"),
        ('{"a": 1, "a": 2}', "there twice"),
        ("[" + "{}," * 10**6 + "0]", "fewer parts"),
        ("{", "JSON: "),
    ],
)
def test_json_in_measure(text, said):
    with pytest.raises(UnreadableError, match=said):
        parsed(text)


def test_a_circuit_of_endless_layers_is_refused_at_once(tmp_path):
    data = json.loads((STORED / "mean.json").read_text())
    for change in (
        {"n_layers": 10**7},
        {"n_layers": "2"},
        {"extra": 1},
        {"edges": [["0.attn_in.0", "0.attn_q.0", "1"]]},
    ):
        path = write_json(tmp_path / "c.json", {**data, **change})
        with pytest.raises(UnreadableError, match=r"c\.json"):
            Circuit.load(path)


def test_the_length_of_a_header_is_not_believed(tmp_path):
    path = tmp_path / "m.safetensors"
    for length in (2**40, 2**63, 0):
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(UnreadableError):
            load_checkpoint(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableError, match="no regular file"):
        load_checkpoint(tmp_path / "pipe")


def test_bad_neighbours_do_not_hide_a_checkpoint(tmp_path):
    model = sparse_model()
    (tmp_path / "a.safetensors").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "b.safetensors", metadata={KEY: '{"schema": 5}'})
    (tmp_path / "c.safetensors").write_bytes(b"")
    path = save_checkpoint(tmp_path / "z.safetensors", model)
    assert find_checkpoint(tmp_path, model.fingerprint()) == path


# Writing.


def test_files_have_the_mode_that_the_umask_says_or_that_they_had(tmp_path):
    before = os.umask(0o027)
    try:
        path = save_checkpoint(tmp_path / "m.safetensors", sparse_model())
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o664)
        assert save_checkpoint(path, sparse_model()).stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)


def test_what_a_killed_writer_left_is_removed_and_what_a_live_one_has_is_not(tmp_path):
    path = tmp_path / "out.json"
    write = "import sys, time\nfrom circuits.files import whole_file\n"
    write += f"with whole_file({str(path)!r}) as p:\n    print(flush=True)\n    time.sleep(60)\n"
    with subprocess.Popen([sys.executable, "-c", write], cwd=ROOT, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        (left,) = tmp_path.iterdir()
        clean_up(path)
        assert left.exists()
        writer.kill()
    write_json(path, {})
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_and_a_reader(tmp_path):
    path = tmp_path / "out.json"
    faults: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(40):
                write_json(path, {"number": number, "rest": [number] * 500})
        except BaseException as error:
            faults.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            data = json.loads(path.read_text())
            assert data["rest"] == [data["number"]] * 500
            seen.add(data["number"])
    assert not faults
    assert seen <= {1, 2}
    assert list(tmp_path.iterdir()) == [path]


FULL = """
import resource, signal, sys, tempfile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import torch
from circuits.files import UnwritableError
from circuits.model.checkpoint import load_checkpoint, save_checkpoint
path = sys.argv[1]
saved = load_checkpoint(path)
resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
try:
    save_checkpoint(path, saved.model, extra={"more": torch.ones(1000)})
except UnwritableError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_full_disk_is_said_and_leaves_the_checkpoint_before(tmp_path):
    path = save_checkpoint(tmp_path / "m.safetensors", sparse_model())
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "m.safetensors cannot be written" in done.stdout, done.stderr
    assert "is not kept" in done.stdout
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 2048


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_wait_for_a_file(tmp_path, number):
    heard = []
    before = signal.signal(number, lambda number, frame: heard.append(number))
    try:
        with unbroken():
            signal.raise_signal(number)
            assert heard == []
        assert heard == [number]
    finally:
        signal.signal(number, before)


# Runs.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_are_as_ctrl_c(tmp_path, monkeypatch, number):
    whole = train(TINY, progress=False).model.fingerprint()
    path = tmp_path / "stopped.safetensors"
    before = signal.signal(number, signal.SIG_DFL)  # under nohup, the hangup is ignored, and stays so
    with monkeypatch.context() as patch:
        before_step(patch, 5, lambda run: signal.raise_signal(number))
        with pytest.raises(TrainingInterrupted, match="stopped") as stop:
            train(TINY, checkpoint=path, progress=False)
    assert (stop.value.path, stop.value.number) == (path, number)
    assert signal.signal(number, before) == signal.SIG_DFL
    assert train(TINY, resume=path, progress=False).model.fingerprint() == whole


class Killed(BaseException):
    """Ends a run as no handler sees it."""


def die(run) -> None:
    raise Killed


def test_a_killed_run_goes_on_from_its_newest_good_checkpoint(tmp_path, monkeypatch):
    whole = train(TINY, progress=False).model.fingerprint()
    numbered = Numbered(tmp_path / "kept", Keep(steps=2, last=2))
    with monkeypatch.context() as patch:
        before_step(patch, 9, die)
        with pytest.raises(Killed):
            train(TINY, numbered=numbered, progress=False)
    assert [path.name for path in numbered.files()] == [
        "step-000000006.safetensors",
        "step-000000008.safetensors",
    ]
    last = numbered.newest()
    assert last is not None
    last.write_bytes(last.read_bytes()[:-10])
    with pytest.warns(UserWarning, match="step-000000008.safetensors is passed over"):
        again = train(TINY, numbered=numbered, resume=numbered.files(), progress=False)
    assert again.model.fingerprint() == whole
    for path in numbered.files():
        path.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="is passed over"),
        pytest.raises(UnreadableError, match="cannot be read as a checkpoint"),
    ):
        train(TINY, resume=numbered.files(), progress=False)
    numbered.clear()
    assert not numbered.folder.exists()
    assert train(TINY, resume=[], progress=False).model.fingerprint() == whole


def test_a_folder_of_checkpoints_belongs_to_one_run_at_a_time(tmp_path):
    numbered = Numbered(tmp_path / "kept", Keep(steps=2))
    with numbered.held(), pytest.raises(UnwritableError, match="belongs to a run that is going on"):
        train(TINY, numbered=numbered, progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableError, match="cannot be written"):
        train(TINY, numbered=Numbered(tmp_path / "file" / "x", Keep()), progress=False)


def test_a_loss_that_explodes_names_step_tensor_and_checkpoint(tmp_path, monkeypatch):
    numbered = Numbered(tmp_path / "kept", Keep(steps=2))
    with monkeypatch.context() as patch:
        before_step(patch, 7, lambda run: run.model.unembed.b_U.data[0].fill_(1e6))
        with pytest.raises(
            TrainingDiverged, match=r"step 8 .*largest, of unembed\.b_U.*step-000000006"
        ) as bad:
            train(TINY, numbered=numbered, checkpoint=tmp_path / "x.safetensors", progress=False)
    assert bad.value.resumable == numbered.newest()
    assert load_checkpoint(bad.value.path).model.unembed.b_U.abs().max() < 1e3


@pytest.mark.slow
def test_resume_alone_takes_up_what_belongs_to_the_output(tmp_path):
    """The command, killed in the middle and started again, as the experiment does it ten times a signal."""
    out = tmp_path / "m.safetensors"
    config = write_json(
        tmp_path / "c.json", {**TINY.to_json(), "steps": 400, "model": readers.SHAPE.to_json()}
    )
    command = [
        sys.executable,
        "-m",
        "circuits",
        "train",
        "--config",
        str(config),
        "--out",
        str(out),
        "--json",
    ]
    command += ["--keep-steps", "5"]
    kept = out.with_suffix(".checkpoints")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        while not list(kept.glob("step-*")):
            assert run.poll() is None
        run.kill()
    assert not out.exists()
    done = subprocess.run([*command, "--resume"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not kept.exists()
    whole = train(TrainConfig.from_json(json.loads(config.read_text())), progress=False)
    assert load_checkpoint(out).model.fingerprint() == whole.model.fingerprint()


# Commands and pages.


def test_a_command_does_not_write_over_what_it_reads(tmp_path):
    from typer.testing import CliRunner

    from circuits.__main__ import app

    page = tmp_path / "c.html"
    page.write_bytes((STORED / "mean.json").read_bytes())
    before = page.read_bytes()
    done = CliRunner().invoke(app, ["show", str(page)])
    assert done.exit_code == 2
    assert "is the file that is read" in done.output
    assert page.read_bytes() == before


def test_names_in_a_circuit_file_are_shown_and_never_run(tmp_path):
    circuit = Circuit.load(STORED / "mean.json")
    task = "</script><script>alert(1)</script>\nimport os"
    evil = replace(circuit, criterion=replace(circuit.criterion, task=task))
    evil = Circuit.load(evil.save(tmp_path / "c.json"))
    assert "<script>alert" not in evil._repr_html_()
    from circuits.plots import demo_page

    assert "<script>alert" not in demo_page(tmp_path / "c.html", evil, evil.summary()).read_text()
    from circuits.decompile.source import function_name

    assert function_name(evil).isidentifier()
    data = {**json.loads((STORED / "mean.json").read_text()), "model_hash": "x\nimport os"}
    with pytest.raises(UnreadableError, match="model_hash"):
        Circuit.load(write_json(tmp_path / "c.json", data))


def test_results_of_two_parts_share_a_file(tmp_path):
    path = tmp_path / "recovery.json"
    recovery.record({"kills": 30, "identical": 30}, seconds=60.0, results=path)
    assert json.loads(path.read_text())["sweep_runs"] is None
    recovery.record({"sweep_runs": 24, "sweep_results": 24}, seconds=60.0, results=path)
    data = json.loads(path.read_text())
    assert [data[key] for key in ("kills", "sweep_runs", "fuzz_bad")] == [30, 24, None]
    assert data["minutes"] == 2.0


def test_an_output_that_is_tried_leaves_nothing(tmp_path):
    check_writable(tmp_path / "new" / "x.json")
    assert list(tmp_path.iterdir()) == []
    write_text(tmp_path / "[a]*.txt", "odd names are names")
    assert [path.name for path in tmp_path.iterdir()] == ["[a]*.txt"]
