"""Sweeps: plans, a table in which no run is lost or done twice, executors, and what is written of it."""

import csv
import importlib.util
import json
import sqlite3
import subprocess
import threading

import pytest
from typer.testing import CliRunner

from circuits.__main__ import app
from circuits.circuit.circuit import Circuit
from circuits.plots import sweep_figure
from circuits.sweep import RunTable, executors, load_plan, run_sweep
from circuits.sweep import table as table_module
from circuits.sweep.export import export, sweep_page
from circuits.sweep.plan import Axes, Plan
from circuits.sweep.work import do_run, table_of, work

SMALL = """
tasks = ["quotes"]
widths = [16]
densities = [0.5]
seeds = [0, 1]

[train]
steps = 4
model = { n_heads = 2, d_head = 4, d_mlp = 16 }

[[prune]]
objective = "faithful"
steps = 2
starts = 1
n_eval = 8
n_test = 8
n_mean = 8
"""


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return load_plan(path)


class Clock:
    """A clock that goes when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def many(n: int) -> Plan:
    return Plan.of(Axes(tasks=("quotes",), seeds=tuple(range(n))))


def quick(run, folder):
    if run.train.seed == 1:
        raise RuntimeError("the second seed never works")
    return {"n_nodes": run.train.seed, "n_edges": 2, "task_loss": 0.5}


# Plans.


def test_a_plan_is_the_product_of_its_lists_and_every_run_has_a_key_of_its_own():
    axes = Axes(tasks=("quotes", "brackets"), widths=(16, 32), densities=(0.1, 0.5, 1.0), seeds=(0, 1))
    runs = Plan.of(axes, {"steps": 7}, [{"objective": "task"}, {"objective": "margins"}]).runs
    assert len({run.key for run in runs}) == len(runs) == 48
    assert len({run.model_key for run in runs}) == 12
    assert {run.train.steps for run in runs} == {7}
    assert {run.prune.seed == run.train.seed for run in runs} == {True}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tasks = [", "TOML"),
        ("widths = [16]", "tasks"),
        ('tasks = ["quotess"]', "quotes"),
        ('tasks = ["quotes"]\nwidth = [16]', "width"),
        ('tasks = ["quotes"]\nseeds = ["one"]', "seeds: got"),
        ('tasks = ["quotes"]\ndensities = [0]', "density in"),
        ('tasks = ["quotes"]\n[train]\nstep = 5', "step"),
        ('tasks = ["quotes"]\n[train]\nseed = 5', "in the list seeds"),
        ('tasks = ["quotes"]\n[train]\nmodel = { d_model = 5 }', "widths gives"),
        ('tasks = ["quotes"]\n[[prune]]\nobjective = "best"', "objective: got 'best'"),
        ('tasks = ["quotes"]\nprune = 5', "prune: got 5"),
    ],
)
def test_a_plan_that_is_none_says_what_is_wrong(tmp_path, text, said):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        load_plan(path)
    told = CliRunner().invoke(app, ["sweep", str(path), "--out", str(tmp_path / "out")])
    assert told.exit_code == 2
    assert not (tmp_path / "out").exists()


# The table.


def test_no_run_is_claimed_by_two_workers_at_once(tmp_path):
    table = RunTable(tmp_path / "runs.sqlite")
    table.add(many(40))
    got: list[str] = []

    def claim_all(name: str) -> None:
        mine = RunTable(tmp_path / "runs.sqlite")
        while (claimed := mine.claim(name)) is not None:
            got.append(claimed[0])

    threads = [threading.Thread(target=claim_all, args=(f"w{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(set(got)) == 40


def test_the_run_of_a_silent_worker_goes_to_another_and_its_late_result_counts_for_nothing(tmp_path):
    clock = Clock()
    table = RunTable(tmp_path / "runs.sqlite", clock=clock)
    table.add(many(1))
    key, _ = table.claim("first")
    clock.now += table_module.LEASE / 2
    assert table.beat("first", key)
    clock.now += table_module.LEASE * 0.9
    assert table.claim("second") is None, "it has shown that it is alive"
    clock.now += table_module.LEASE
    assert table.claim("second")[0] == key
    assert not table.beat("first", key)
    assert not table.finish("first", key, {"n_nodes": 1})
    assert table.finish("second", key, {"n_nodes": 2})
    assert not table.finish("second", key, {"n_nodes": 3})
    (row,) = table.rows()
    assert (row["n_nodes"], row["worker"], row["attempts"], row["state"]) == (2, "second", 2, "done")


def test_a_run_that_kills_its_workers_fails_in_the_end(tmp_path):
    table = RunTable(tmp_path / "runs.sqlite")
    table.add(many(1))
    for i in range(table_module.ATTEMPTS):
        assert table.claim(f"w{i}") is not None
        table.release(f"w{i}")
    assert table.claim("last") is None
    (row,) = table.rows()
    assert row["state"] == "failed"
    assert "died, 5 times" in row["error"]
    table.retry_failed()
    assert table.claim("last") is not None


def test_runs_of_one_model_wait_for_those_of_others(tmp_path):
    plan = Plan.of(Axes(tasks=("quotes", "brackets"), seeds=(0, 1)))
    table = RunTable(tmp_path / "runs.sqlite")
    table.add(plan)
    first, second = table.claim("a")[1], table.claim("b")[1]
    assert first.model_key != second.model_key


def test_adding_a_plan_again_changes_nothing_and_a_longer_one_adds(tmp_path):
    table = RunTable(tmp_path / "runs.sqlite")
    table.add(many(2))
    key, _ = table.claim("a")
    table.finish("a", key, {"n_nodes": 5})
    table.add(many(3))
    assert table.progress() == (2, 0, 1, 0)


def test_one_machine_writes_ahead_and_several_do_not(tmp_path):
    for shared, mode in ((False, "wal"), (True, "delete")):
        table = RunTable(tmp_path / f"{shared}.sqlite", shared=shared)
        assert sqlite3.connect(table.path).execute("PRAGMA journal_mode").fetchone() == (mode,)


# Workers.


def test_a_run_that_raises_keeps_its_traceback_and_the_others_go_on(tmp_path):
    table = table_of(tmp_path)
    table.add(many(3))
    assert work(tmp_path, "a", do=quick) == 2
    assert table.progress() == (0, 0, 2, 1)
    assert "the second seed never works" in table.rows()[1]["error"]
    assert work(tmp_path, "a", do=quick) == 0


def test_an_interrupted_worker_gives_its_run_back(tmp_path):
    def stop(run, folder):
        raise KeyboardInterrupt

    table_of(tmp_path).add(many(1))
    with pytest.raises(KeyboardInterrupt):
        work(tmp_path, "a", do=stop)
    assert table_of(tmp_path).progress() == (1, 0, 0, 0)


@pytest.mark.slow
def test_a_run_trains_prunes_and_says_where_and_with_what(tmp_path, plan):
    run = plan.runs[0]
    record = do_run(run, tmp_path)
    assert json.dumps(record)
    assert {
        "n_nodes",
        "n_edges",
        "task_loss",
        "val_loss",
        "seconds",
        "commit",
        "machine",
        "version.torch",
    } <= set(record)
    circuit = Circuit.load(tmp_path / "circuits" / f"{run.key}.json")
    assert circuit.n_nodes == record["n_nodes"]
    stamp = (tmp_path / "models" / f"{run.model_key}.safetensors").stat().st_mtime_ns
    again = do_run(run, tmp_path)
    assert (tmp_path / "models" / f"{run.model_key}.safetensors").stat().st_mtime_ns == stamp, "trained once"
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in record.items() if k != "seconds"
    }


# Executors.


@pytest.mark.slow
def test_killed_processes_cost_no_run_and_none_is_done_twice(tmp_path, plan, monkeypatch):
    started: list[subprocess.Popen] = []

    def start(*args, **options):
        started.append(subprocess.Popen(*args, **options))
        return started[-1]

    killed: set[int] = set()

    def kill(progress):
        if progress.claimed and len(killed) < 2:
            alive = next((p for p in started if p.poll() is None and p.pid not in killed), None)
            if alive is not None:
                killed.add(alive.pid)
                alive.kill()

    monkeypatch.setattr(executors, "subprocess", type("Module", (), {**vars(subprocess), "Popen": start}))
    progress = run_sweep(plan, tmp_path, n_workers=1, watch=kill)
    assert len(killed) == 2
    assert progress == (0, 0, 2, 0)
    rows = table_of(tmp_path).rows()
    assert sum(row["attempts"] for row in rows) >= 3
    assert len(list((tmp_path / "circuits").glob("*.json"))) == 2
    n_before = len(started)
    assert run_sweep(plan, tmp_path, n_workers=1).done == 2
    assert len(started) == n_before, "nothing is left to do"


@pytest.mark.slow
def test_jobs_of_a_cluster_do_the_same(tmp_path, plan):
    progress = run_sweep(plan, tmp_path, executor="slurm", n_workers=1, options={"cluster": "local"})
    assert progress == (0, 0, 2, 0)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `ray` is not installed")
def test_tasks_of_a_ray_cluster_do_the_same(tmp_path, plan):
    assert run_sweep(plan, tmp_path, executor="ray", n_workers=2) == (0, 0, 2, 0)


@pytest.mark.parametrize(
    ("executor", "name", "extra"), [("slurm", "submitit", "sweep"), ("ray", "ray", "ray")]
)
def test_a_missing_package_is_named(tmp_path, plan, monkeypatch, executor, name, extra):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ValueError, match=rf"needs the package {name}.*\[{extra}\]"):
        run_sweep(plan, tmp_path, executor=executor)


@pytest.mark.parametrize(
    ("wrong", "said"), [({"executor": "pbs"}, "executor: got 'pbs'"), ({"n_workers": 0}, "n_workers: got 0")]
)
def test_wrong_arguments_are_said(tmp_path, plan, wrong, said):
    with pytest.raises(ValueError, match=said):
        run_sweep(plan, tmp_path, **wrong)


# What is written.


@pytest.fixture
def done(tmp_path):
    table = table_of(tmp_path / "sweep")
    table.add(many(3))
    work(tmp_path / "sweep", "a", do=quick)
    return table


def test_the_table_is_exported(done, tmp_path):
    path = export(done, tmp_path / "runs.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done", "failed", "done"]
    assert [row["n_nodes"] for row in rows] == ["0", "", "2"]
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `sweep` is not installed")
    held = parquet.read_table(export(done, tmp_path / "runs.parquet")).to_pydict()
    assert held["n_nodes"] == [0, None, 2]
    with pytest.raises(ValueError, match="expected a name that ends in"):
        export(done, tmp_path / "runs.xlsx")


def test_the_page_draws_any_two_columns_and_escapes_errors(done, tmp_path):
    text = sweep_page(done, tmp_path / "sweep.html").read_text()
    assert "2 done, 1 failed" in text
    figure = sweep_figure([row for row in done.rows() if row["state"] == "done"])
    assert list(figure.data[0].x) == [2, 2]
    labels = [button.label for button in figure.layout.updatemenus[0].buttons]
    assert {"x: n_nodes", "x: width", "x: seed"} <= set(labels)
    assert "x: task" not in labels
    chosen = next(b for b in figure.layout.updatemenus[1].buttons if b.label == "y: n_nodes")
    assert chosen.args[0] == {"y": [[0, 2]]}
    with pytest.raises(ValueError, match="x: got 'colour'"):
        sweep_figure(done.rows(), x="colour")


@pytest.mark.slow
def test_the_command_does_a_plan_and_says_where_things_are(tmp_path):
    (tmp_path / "small.toml").write_text(SMALL)
    arguments = ["sweep", str(tmp_path / "small.toml"), "--out", str(tmp_path / "out"), "--json"]
    told = CliRunner().invoke(app, [*arguments, "--export", str(tmp_path / "runs.csv")])
    assert told.exit_code == 0, told.output
    report = json.loads(told.stdout)
    assert (report["done"], report["failed"]) == (2, 0)
    assert (tmp_path / "out" / "sweep.html").exists()
    assert (tmp_path / "runs.csv").exists()
    assert CliRunner().invoke(app, [*arguments, "--watch"]).exit_code == 0
