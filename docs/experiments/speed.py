"""How long the demo takes, and a prune of the model that ships: alone, and beside a process that keeps one core busy.

    python -m docs.experiments.speed --write    -> docs/results/speed.json

Each run is a fresh process with the threads that torch chooses; prunes alone and beside the neighbour take turns. Leave
the machine alone meanwhile.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console

from circuits.files import check_writable, write_results

RESULTS = Path("docs/results/speed.json")
SPIN = "while True: pass"
PRUNE = """
import time
import circuits
from tasks import load_task
model, task, config = circuits.load('mini-python').model, load_task("quotes"), circuits.PruneConfig(starts=1)
for _ in range(2):
    started = time.perf_counter()
    circuit = circuits.prune(model, task, config, progress=False)
    print(time.perf_counter() - started)
print(circuit.n_nodes, circuit.n_edges)
"""
"""Prunes twice in one process: the first compiles what it needs."""

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def run(
    rounds: Annotated[int, typer.Option(help="Runs alone, and as many beside the neighbour.")] = 3,
    write: Annotated[bool, typer.Option("--write", help="Write the results file.")] = False,
    results: Annotated[Path, typer.Option(help="That file.")] = RESULTS,
) -> dict[str, Any]:
    """Time prunes alone and beside a busy neighbour, in turns."""
    if write:
        check_writable(results)
    started, alone, beside = time.perf_counter(), [], []
    for _ in range(rounds):
        alone.append(prune_seconds())
        with busy_neighbour():
            beside.append(prune_seconds())
        Console().print({"alone": alone[-1], "beside": beside[-1]})
    numbers = {"demo_seconds": demo_seconds(), **compared(alone, beside)}
    Console().print(numbers)
    if write:
        command = f"python -m docs.experiments.speed --rounds {rounds} --write"
        seconds = time.perf_counter() - started
        write_results(results, command=command, seeds=[0], seconds=seconds, numbers=numbers)
    return numbers


def compared(alone: list[tuple[float, float]], beside: list[tuple[float, float]]) -> dict[str, Any]:
    """Medians and ranges of the second prune of each process, and the ratios that are claimed."""
    quiet, busy = ([second for _, second in runs] for runs in (alone, beside))
    return {
        "busy_neighbour_ratio": statistics.median(busy) / statistics.median(quiet),
        "first_over_second": statistics.median(first / second for first, second in alone),
        "prune_seconds": {"alone": _spread(quiet), "beside": _spread(busy)},
    }


def _spread(seconds: list[float]) -> dict[str, float]:
    return {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}


def prune_seconds() -> tuple[float, float]:
    """Seconds of the first and of the second prune in a fresh process."""
    done = subprocess.run([sys.executable, "-c", PRUNE], check=True, capture_output=True, text=True)
    first, second, _ = done.stdout.splitlines()
    return float(first), float(second)


def demo_seconds() -> float:
    """Seconds of the whole demo in a fresh process, without its set-up."""
    with TemporaryDirectory() as folder:
        started = time.perf_counter()
        command = [sys.executable, "-m", "circuits", "demo", "--out", folder, "--json"]
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - started


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """A process that keeps a core busy until the end."""
    neighbour = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.wait()


if __name__ == "__main__":
    app()
