"""Who works on a sweep: processes of this machine, jobs of a Slurm cluster, or tasks of a Ray cluster."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from circuits.sweep.plan import Plan
from circuits.sweep.table import Progress, RunTable
from circuits.sweep.work import table_of, work
from tasks.near import unknown

Watch = Callable[[Progress], Any]
POLL = 0.2
"""Seconds between looks at processes."""


def run_sweep(
    plan: Plan,
    folder: str | Path,
    *,
    executor: str = "local",
    n_workers: int | None = None,
    watch: Watch | None = None,
    options: Mapping[str, Any] | None = None,
) -> Progress:
    """Do all runs of a plan that are not done yet; the table is `runs.sqlite` in `folder`.

    executor: local (processes here, the default: one a core), slurm (needs submitit) or ray (needs ray). options: for
    slurm, those of a submitit executor, and `cluster`; for ray, those of `ray.init`. watch: called with the counts now
    and then. A run whose worker is killed is done again; what failed is kept with its traceback. Ctrl-C ends the
    workers, and the same call goes on from there. Raises ValueError for an unknown executor, and where its package
    is missing.

    Examples:
        >>> from pathlib import Path
        >>> _ = Path("plan.toml").write_text('''tasks = ["quotes"]
        ... widths = [16]
        ... densities = [0.5]
        ... train = {steps = 2, n_val = 8, model = {n_heads = 2, d_head = 4, d_mlp = 16}}
        ... prune = [{objective = "faithful", steps = 2, starts = 1, n_eval = 8, n_test = 8, n_mean = 8}]
        ... ''')
        >>> circuits.sweep.run_sweep(circuits.sweep.load_plan("plan.toml"), "runs", n_workers=1).done
        1
    """
    if executor not in EXECUTORS:
        raise ValueError(unknown("executor", executor, EXECUTORS))
    if n_workers is not None and n_workers < 1:
        raise ValueError(f"n_workers: got {n_workers}; expected a whole number of at least 1.")
    table = table_of(Path(folder), shared=executor != "local")
    table.add(plan)
    EXECUTORS[executor](table, n_workers or os.cpu_count() or 1, watch or _silent, dict(options or {}))
    return table.progress()


def _silent(_: Progress) -> None:
    """Nobody watches."""


def by_processes(table: RunTable, n_workers: int, watch: Watch, options: dict[str, Any]) -> None:
    """Processes on this machine; one that is killed is replaced."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    n_started = 0
    try:
        while (progress := table.progress()).left:
            watch(progress)
            for name, process in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    table.release(name)
            while len(running) < min(n_workers, table.progress().left):
                n_started += 1
                name = f"{socket.gethostname()}-{os.getpid()}-{n_started}"
                running[name] = subprocess.Popen(
                    _command(table, name), env={**os.environ, "OMP_NUM_THREADS": "1"}
                )
            time.sleep(POLL)
        watch(progress)
    finally:
        for name, process in running.items():
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
            table.release(name)


def _command(table: RunTable, name: str) -> list[str]:
    return [sys.executable, "-m", "circuits.sweep.worker", str(table.path.parent), name]


def by_slurm(table: RunTable, n_workers: int, watch: Watch, options: dict[str, Any]) -> None:
    """Jobs of a Slurm cluster, through submitit."""
    submitit = _imported("submitit", "slurm", "sweep")
    folder = table.path.parent
    cluster = options.pop("cluster", "slurm")
    sender = submitit.AutoExecutor(folder=str(folder / "jobs"), cluster=cluster)
    sender.update_parameters(**{"timeout_min": 60, **options})

    def one_round(names: list[str]) -> None:
        jobs = [sender.submit(work, folder, name, shared=True) for name in names]
        while any(not job.done() for job in jobs):
            watch(table.progress())
            time.sleep(POLL)

    _in_rounds(table, "slurm", n_workers, watch, one_round)


def by_ray(table: RunTable, n_workers: int, watch: Watch, options: dict[str, Any]) -> None:
    """Tasks of a Ray cluster that sees the folder."""
    ray = _imported("ray", "ray", "ray")
    folder, own = table.path.parent, not ray.is_initialized()
    if own:
        ray.init(**{"num_cpus": n_workers, "log_to_driver": False, **options})
    task = ray.remote(max_retries=0)(work)

    def one_round(names: list[str]) -> None:
        waiting = [task.remote(folder, name, shared=True) for name in names]
        while waiting:
            _, waiting = ray.wait(waiting, timeout=POLL)
            watch(table.progress())

    try:
        _in_rounds(table, "ray", n_workers, watch, one_round)
    finally:
        if own:
            ray.shutdown()


def _in_rounds(
    table: RunTable, kind: str, n_workers: int, watch: Watch, one_round: Callable[[list[str]], None]
) -> None:
    """Send workers, wait until all have ended, and send them again for what killed ones have left."""
    rounds = 0
    while table.progress().left:
        rounds += 1
        names = [f"{kind}-{os.getpid()}-{rounds}-{i}" for i in range(n_workers)]
        one_round(names)
        for name in names:
            table.release(name)
    watch(table.progress())


def _imported(name: str, executor: str, extra: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise ValueError(
            f'executor: {executor!r} needs the package {name}. Install it: pip install "sparse-circuits[{extra}]".'
        ) from None


EXECUTORS: Mapping[str, Callable[[RunTable, int, Watch, dict[str, Any]], None]] = {
    "local": by_processes,
    "slurm": by_slurm,
    "ray": by_ray,
}
"""How the runs of a table are worked through, by name."""
