"""Recovery: runs that are killed and go on to the same bits, and every reader against hostile files.

    python -m docs.experiments.recovery kills     # 10 runs killed by each signal at random moments, and resumed
    python -m docs.experiments.recovery fuzz      # 20,000 hostile files
    python -m docs.experiments.recovery all       # both

Each part writes its own keys of docs/results/recovery.json and leaves those of others (`record`).
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from circuits.files import once, read_json, write_json, write_results
from circuits.model.checkpoint import load_checkpoint
from docs.experiments.fuzz import fuzz as run_fuzz

app = typer.Typer(help=__doc__)
RESULTS = Path(__file__).parents[1] / "results" / "recovery.json"
KEYS = ("kills", "identical", "fuzz_cases", "fuzz_bad", "sweep_runs", "sweep_results")
"""Headlines; None where that part has not been run."""
FOLDER = Path("out/recovery")
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
CONFIG: dict[str, Any] = {
    "model": {"n_layers": 1, "d_model": 64, "n_heads": 4, "d_head": 8, "d_mlp": 128, "n_ctx": 40},
    **{"steps": 200, "batch_size": 8, "density": 0.05, "n_val": 16},
}
KEPT_EVERY = 5
Cases = Annotated[int, typer.Option(help="Hostile files.")]
Each = Annotated[int, typer.Option(help="Runs killed by each signal.")]
Seed = Annotated[int, typer.Option(help="Decides moments and files.")]


def record(
    numbers: dict[str, Any], *, seconds: float, seed: int = 0, results: Path = RESULTS
) -> dict[str, Any]:
    """Write some keys of the results, keeping those that other parts wrote; returns the whole."""
    kept: dict[str, Any] = dict.fromkeys(KEYS)
    minutes = 0.0
    if results.exists():
        old = read_json(results, name="results", expected="results of an earlier run")
        minutes = old.get("minutes", 0.0)
        common = {"command", "seeds", "machine", "threads", "versions", "commit", "minutes", "date"}
        kept |= {key: value for key, value in old.items() if key not in common}
    command = "python -m docs.experiments.recovery all"
    total = seconds + 60 * minutes
    return write_results(results, command=command, seeds=[seed], seconds=total, numbers={**kept, **numbers})


@app.command()
def kills(each: Each = 10, seed: Seed = 0) -> None:
    """Kill training at random moments, resume it, and compare the weights with those of an untouched run."""
    started = time.perf_counter()
    whole = once(FOLDER / "whole.json", {"config": CONFIG}, untouched)
    runs = []
    for sign in SIGNALS:
        for i in range(each):
            settings = {"config": CONFIG, "signal": sign.name, "seed": f"{seed}/{i}"}
            kept = FOLDER / f"{sign.name}-{seed}-{i}.json"
            runs.append(once(kept, settings, partial(killed, sign, f"{seed}/{i}", whole["seconds_loop"])))
            print(sign.name, i, runs[-1], flush=True)
    for run in runs:
        run["identical"] = run["model"] == whole["model"]
    numbers = {
        "kills": len(runs),
        "identical": sum(run["identical"] for run in runs),
        "kills_by_signal": {
            sign.name: {
                "runs": each,
                "identical": sum(run["identical"] for run in runs if run["signal"] == sign.name),
                "at_steps": [run["step"] for run in runs if run["signal"] == sign.name],
            }
            for sign in SIGNALS
        },
        "kill_steps_total": CONFIG["steps"],
    }
    record(numbers, seconds=time.perf_counter() - started, seed=seed)


def untouched() -> dict[str, Any]:
    """A run that nobody stops: the weights it reaches, and how long its loop takes."""
    out = FOLDER / "whole" / "m.safetensors"
    process = started_run(out, resume=False)
    begun = wait_for_start(process, out)
    assert process.wait() == 0, "a run that nobody stops ends well"
    return {"model": load_checkpoint(out).model.fingerprint(), "seconds_loop": time.perf_counter() - begun}


def killed(sign: signal.Signals, seed: str, seconds: float) -> dict[str, Any]:
    """A run that a signal ends at a random moment of its loop, and the weights that `--resume` reaches."""
    folder = FOLDER / f"{sign.name}-{seed.replace('/', '-')}"
    out, rng = folder / "m.safetensors", random.Random(f"{sign.name}/{seed}")
    for _ in range(5):
        shutil.rmtree(folder, ignore_errors=True)
        process = started_run(out, resume=False)
        begun = wait_for_start(process, out)
        time.sleep(max(0.0, begun + rng.uniform(0.0, 0.9) * seconds - time.perf_counter()))
        process.send_signal(sign)
        status = process.wait()
        if not out.exists():  # else it was done before the signal
            break
    left = sorted(path.name for path in folder.glob("m.checkpoints/step-*.safetensors"))
    step = int(left[-1][5:14]) if left else 0
    assert started_run(out, resume=True).wait() == 0, "a resumed run ends well"
    model = load_checkpoint(out).model.fingerprint()
    return {"signal": sign.name, "status": status, "step": step, "model": model}


def started_run(out: Path, *, resume: bool) -> "subprocess.Popen[bytes]":
    """`circuits train` in a process of its own."""
    config = write_json(out.parent / "config.json", CONFIG)
    command = [sys.executable, "-m", "circuits", "train", "--config", str(config), "--out", str(out)]
    command += ["--keep-steps", str(KEPT_EVERY), "--json", *(["--resume"] if resume else [])]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=(out.parent / "stderr.txt").open("wb"),
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        preexec_fn=_heeds_ctrl_c,
    )


def _heeds_ctrl_c() -> None:
    """Shells start what runs in the background with Ctrl-C ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for_start(process: "subprocess.Popen[bytes]", out: Path) -> float:
    """When the loop began, as far as a folder for its checkpoints tells."""
    while not out.with_suffix(".checkpoints").exists() and process.poll() is None:
        time.sleep(0.01)
    return time.perf_counter()


@app.command()
def fuzz(cases: Cases = 20_000, seed: Seed = 0) -> None:
    """Read hostile files with every reader of the package; each loads, or is refused with the project's own error."""
    started = time.perf_counter()
    report = run_fuzz(cases, seed=seed)
    numbers = {
        "fuzz_cases": report.cases,
        "fuzz_refused": report.refused,
        "fuzz_bad": len(report.bad),
        "fuzz_kinds": asdict(report)["kinds"],
    }
    print(json.dumps(numbers, indent=1))
    record(numbers, seconds=time.perf_counter() - started, seed=seed)


@app.command("all")
def everything(each: Each = 10, cases: Cases = 20_000, seed: Seed = 0) -> None:
    """All parts, one after the other."""
    kills(each, seed)
    fuzz(cases, seed)


if __name__ == "__main__":
    app()
