"""One worker of a sweep: it claims a run, trains and prunes, records what came out, and claims the next."""

import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from circuits.files import results_report
from circuits.pruning.procedure import prune
from circuits.sweep.plan import Run
from circuits.sweep.table import LEASE, RunTable
from circuits.training.loop import Training, train
from tasks import load_task

Do = Callable[[Run, Path], dict[str, Any]]
"""How a run is done: the run and the sweep's folder to a flat record."""


def table_of(folder: Path, *, shared: bool = False) -> RunTable:
    """The table of a sweep's folder."""
    return RunTable(folder / "runs.sqlite", shared=shared)


def work(folder: Path, worker: str, *, shared: bool = False, do: Do | None = None) -> int:
    """Do runs until none is left to claim; returns how many were finished. A run that raises is recorded as failed."""
    table, n_done = table_of(folder, shared=shared), 0
    while (claimed := table.claim(worker)) is not None:
        key, run = claimed
        try:
            with _Heart(table, worker, key):
                result = (do or do_run)(run, folder)
        except Exception:
            table.fail(worker, key, traceback.format_exc())
        except BaseException:  # interrupted: somebody else may have it
            table.release(worker)
            raise
        else:
            n_done += table.finish(worker, key, result)
    return n_done


def do_run(run: Run, folder: Path) -> dict[str, Any]:
    """Train (or take the model that an earlier run trained), prune, keep the circuit, and say all that was measured."""
    started = time.perf_counter()
    training = _trained(run, folder)
    circuit = prune(training.model, load_task(run.task), run.prune, corpus=training.corpus, progress=False)
    circuit.save(folder / "circuits" / f"{run.key}.json")
    summary = {name: value for name, value in circuit.summary().items() if name != "task"}
    trained = {"val_loss": training.val_loss, "nonzeros": training.model.n_nonzero()}
    seconds = time.perf_counter() - started
    numbers = {**summary, **trained, "seconds": round(seconds, 2)}
    told = results_report(command="circuits sweep", seeds=[run.train.seed], seconds=seconds, numbers=numbers)
    versions = {f"version.{name}": version for name, version in told.pop("versions").items()}
    return {
        name: value
        for name, value in {**told, **versions}.items()
        if name not in ("command", "seeds", "minutes")
    }


def _trained(run: Run, folder: Path) -> Training:
    path = folder / "models" / f"{run.model_key}.safetensors"
    if path.exists():
        return Training.load(path)
    training = train(run.train, progress=False)
    training.save(path)
    return training


class _Heart:
    """Says every so often that a worker is alive, while it is busy."""

    def __init__(self, table: RunTable, worker: str, key: str) -> None:
        self.table, self.worker, self.key = table, worker, key
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *failure: object) -> None:
        self.stopped.set()
        self.thread.join()

    def _beat(self) -> None:
        while not self.stopped.wait(LEASE / 6):
            self.table.beat(self.worker, self.key)
