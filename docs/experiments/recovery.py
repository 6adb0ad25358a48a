"""Recovery: killed runs that go on to the same bits, hostile files, killed workers of sweeps, and several processes.

    python -m docs.experiments.recovery kills     # 10 runs killed by each signal at random moments, and resumed
    python -m docs.experiments.recovery fuzz      # 21,700 hostile files
    python -m docs.experiments.recovery sweeps    # 24 runs with three killed workers, on each executor
    python -m docs.experiments.recovery processes # two processes against one: how far the loss curves part
    python -m docs.experiments.recovery all       # all four

Each part writes its own keys of docs/results/recovery.json and leaves those of others (`record`).
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from circuits.__main__ import app as circuits_app
from circuits.files import commit, once, read_json, write_json, write_results
from circuits.model.checkpoint import load_checkpoint
from circuits.sweep import Progress, RunTable, run_sweep
from circuits.sweep.plan import Axes, Plan
from docs.experiments.fuzz import fuzz as run_fuzz
from docs.experiments.processes import compared

app = typer.Typer(help=__doc__)
RESULTS = Path(__file__).parents[1] / "results" / "recovery.json"
KEYS = ("kills", "identical", "fuzz_cases", "fuzz_bad", "sweep_runs", "sweep_results")
"""Headlines; None where that part has not been run."""
FOLDER = Path("out/recovery")
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
CONFIG: dict[str, Any] = {
    "model": {"n_layers": 1, "d_model": 64, "n_heads": 4, "d_head": 8, "d_mlp": 128, "n_ctx": 40},
    **{"steps": 100, "batch_size": 8, "density": 0.05, "n_val": 16},
}
KEPT_EVERY = 4
PART = 2_000
"""Hostile files between which the fuzz can be stopped, and goes on."""
Cases = Annotated[int, typer.Option(help="Hostile files.")]
Each = Annotated[int, typer.Option(help="Runs killed by each signal.")]
Seed = Annotated[int, typer.Option(help="Decides moments and files.")]


def record(
    numbers: dict[str, Any], *, seconds: float, seed: int = 0, results: Path = RESULTS
) -> dict[str, Any]:
    """Write some keys of the results, keeping those that other parts wrote; returns the whole."""
    kept: dict[str, Any] = dict.fromkeys(KEYS)
    old = _earlier(results)
    minutes = old.get("minutes", 0.0)
    common = {"command", "seeds", "machine", "threads", "versions", "commit", "minutes", "date"}
    kept |= {key: value for key, value in old.items() if key not in common}
    command = "python -m docs.experiments.recovery all"
    total = seconds + 60 * minutes
    return write_results(results, command=command, seeds=[seed], seconds=total, numbers={**kept, **numbers})


def _earlier(results: Path) -> dict[str, Any]:
    """What an earlier run wrote; nothing where there was none."""
    return (
        read_json(results, name="results", expected="results of an earlier run") if results.exists() else {}
    )


@app.command()
def sweeps(executors: Annotated[str, typer.Option(help="Which, with commas.")] = "local,slurm,ray") -> None:
    """24 small runs on each executor, three of whose workers are killed: is every run done, and none twice?

    What is known of other executors is kept.
    """
    started = time.perf_counter()
    found: dict[str, Any] = dict(_earlier(RESULTS).get("sweep_by_executor") or {})
    for executor in executors.split(","):
        found[executor] = sweep_with_kills(executor)
        print(executor, found[executor], flush=True)
        numbers = {
            "sweep_runs": sum(one["runs"] for one in found.values()),
            "sweep_results": sum(one["results"] for one in found.values()),
            "sweep_by_executor": found,
        }
        record(
            numbers, seconds=time.perf_counter() - started if executor == executors.split(",")[-1] else 0.0
        )


PLAN = Axes(tasks=("quotes",), widths=(16,), densities=(0.5,), seeds=tuple(range(24)))
SHAPE = {"steps": 4, "model": {"n_heads": 2, "d_head": 4, "d_mlp": 16}}
WAY = {"objective": "faithful", "steps": 2, "starts": 1, "n_eval": 8, "n_test": 8, "n_mean": 8}
"""Runs of seconds: what is tested is who does them."""
WORKER = {"local": "circuits.sweep.worker", "slurm": "submitit.core._submit", "ray": "ray::work"}
"""What the command line of a worker's process holds."""


def sweep_with_kills(executor: str, n_kills: int = 3) -> dict[str, Any]:
    """One sweep; a worker is killed whenever a few more runs are done, until three have been."""
    folder = FOLDER / f"sweep-{executor}"
    shutil.rmtree(folder, ignore_errors=True)
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        if len(killed) < n_kills and progress.claimed and progress.done >= 3 * len(killed):
            alive = [pid for pid in running(WORKER[executor]) if pid not in killed]
            if alive:
                os.kill(alive[-1], signal.SIGKILL)
                killed.append(alive[-1])

    plan = Plan.of(PLAN, SHAPE, [WAY])
    options = {"cluster": "local"} if executor == "slurm" else {}
    run_sweep(plan, folder, executor=executor, n_workers=2, watch=kill, options=options)
    rows = RunTable(folder / "runs.sqlite", shared=executor != "local").rows()
    return {
        "runs": len(plan.runs),
        "results": sum(row["state"] == "done" and row.get("n_nodes") is not None for row in rows),
        "rows": len(rows),
        "killed": len(killed),
        "attempts": sum(row["attempts"] for row in rows),
    }


def running(said: str) -> list[int]:
    """Processes that this one has started, itself or through others, whose command line holds some text; by number."""
    told = subprocess.run(["pgrep", "-f", said], capture_output=True, text=True)
    return [int(pid) for pid in told.stdout.split() if os.getpid() in ancestors(int(pid))]


def ancestors(pid: int) -> list[int]:
    """The processes above one, as far as they are there."""
    found: list[int] = []
    while pid > 1:
        try:
            after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
        except OSError:
            break
        pid = int(after_name.split()[1])
        found.append(pid)
    return found


@app.command()
def kills(each: Each = 10, seed: Seed = 0) -> None:
    """Kill training at random moments, resume it, and compare the weights with those of an untouched run."""
    started = time.perf_counter()
    whole = once(FOLDER / "whole.json", {"config": CONFIG}, untouched)
    runs: list[dict[str, Any]] = []
    for i in range(each):
        for sign in SIGNALS:
            settings = {"config": CONFIG, "signal": sign.name, "seed": f"{seed}/{i}"}
            kept = FOLDER / f"{sign.name}-{seed}-{i}.json"
            runs.append(once(kept, settings, partial(killed, sign, f"{seed}/{i}")))
            print(sign.name, i, runs[-1], flush=True)
        seconds = time.perf_counter() - started
        record(kill_numbers(runs, whole["model"]), seconds=seconds if i == each - 1 else 0.0, seed=seed)


def kill_numbers(runs: list[dict[str, Any]], whole: str) -> dict[str, Any]:
    """The results' numbers of some killed runs; whole: the fingerprint of the untouched one."""
    assert not any(run["was_done"] for run in runs), "a signal comes before the end of a run"
    by_signal = {sign.name: [run for run in runs if run["signal"] == sign.name] for sign in SIGNALS}
    return {
        "kills": len(runs),
        "identical": sum(run["model"] == whole for run in runs),
        "kills_by_signal": {
            name: {
                "runs": len(own),
                "identical": sum(run["model"] == whole for run in own),
                "at_steps": [run["step"] for run in own],
            }
            for name, own in by_signal.items()
        },
        "kill_steps_total": CONFIG["steps"],
    }


def untouched() -> dict[str, Any]:
    """A run that nobody stops: the weights it reaches."""
    out = FOLDER / "whole" / "m.safetensors"
    process = started_run(out, resume=False)
    process.join()
    assert process.exitcode == 0, "a run that nobody stops ends well"
    return {"model": load_checkpoint(out).model.fingerprint()}


def killed(sign: signal.Signals, seed: str) -> dict[str, Any]:
    """A run that a signal ends at a random moment, and the weights that `--resume` reaches.

    The moment: some time after a random one of its checkpoints, before the next or while that is written.
    """
    folder = FOLDER / f"{sign.name}-{seed.replace('/', '-')}"
    out, rng = folder / "m.safetensors", random.Random(f"{sign.name}/{seed}")
    target, kept = rng.randrange(0, CONFIG["steps"] - 2 * KEPT_EVERY), folder / "m.checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    process = started_run(out, resume=False)
    while not kept.exists() or last_step(kept) < target - target % KEPT_EVERY:
        assert process.is_alive(), "a run that nobody stops goes on"
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.1))
    assert process.pid is not None
    os.kill(process.pid, sign)
    process.join()
    step, was_done = last_step(kept), out.exists()
    again = started_run(out, resume=True)
    again.join()
    assert again.exitcode == 0, "a resumed run ends well"
    model = load_checkpoint(out).model.fingerprint()
    return {
        "signal": sign.name,
        "status": process.exitcode,
        "step": step,
        "was_done": was_done,
        "model": model,
    }


def last_step(folder: Path) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    return max((int(path.name[5:14]) for path in folder.glob("step-*.safetensors")), default=0)


def started_run(out: Path, *, resume: bool) -> Any:
    """`circuits train` in a process of its own, with all modules loaded already."""
    config = write_json(out.parent / "config.json", CONFIG)
    arguments = ["train", "--config", str(config), "--out", str(out)]
    arguments += ["--keep-steps", str(KEPT_EVERY), "--json", *(["--resume"] if resume else [])]
    process = multiprocessing.get_context("fork").Process(target=_command, args=(arguments, out.parent))
    process.start()
    return process


def _command(arguments: list[str], folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have it ignored in the background
    with (folder / "said.txt").open("ab") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    torch.set_num_threads(1)
    circuits_app(arguments)


@app.command()
def fuzz(cases: Cases = 21_700, seed: Seed = 0) -> None:
    """Read hostile files with every reader of the package; each loads, or is refused with the project's own error."""
    started, code = time.perf_counter(), commit()
    parts: list[dict[str, Any]] = []
    for first in range(0, cases, PART):
        n = min(PART, cases - first)
        settings = {"seed": seed, "first": first, "cases": n, "commit": code}
        kept = FOLDER / f"fuzz-{seed}-{first}.json"
        parts.append(once(kept, settings, lambda: asdict(run_fuzz(n, first=first, seed=seed))))  # noqa: B023
        print(first + n, len(parts[-1]["bad"]), flush=True)
    kinds = Counter[str]()
    for part in parts:
        kinds.update(part["kinds"])
    numbers = {
        "fuzz_cases": sum(part["cases"] for part in parts),
        "fuzz_refused": sum(part["refused"] for part in parts),
        "fuzz_bad": sum(len(part["bad"]) for part in parts),
        "fuzz_kinds": dict(kinds),
        "fuzz_readers": len(set(parts[0]["readers"])),
    }
    print(json.dumps(numbers, indent=1))
    record(numbers, seconds=time.perf_counter() - started, seed=seed)


@app.command()
def processes(seeds: Annotated[int, typer.Option(help="Seeds of each way to take gradients.")] = 3) -> None:
    """Train in two processes and in one, on the same batches: the largest difference of the loss curves."""
    started = time.perf_counter()
    found = compared(seeds)
    record({"processes": found}, seconds=time.perf_counter() - started)


@app.command("all")
def everything(each: Each = 10, cases: Cases = 21_700, seed: Seed = 0) -> None:
    """All parts, one after the other."""
    kills(each, seed)
    fuzz(cases, seed)
    sweeps()
    processes()


if __name__ == "__main__":
    app()
