"""The command that does many runs."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from circuits.commands.shared import AsJson, answer, check_apart, clear_errors, console, say_replaced


def sweep(
    plan: Annotated[Path, typer.Argument(help="TOML: tasks, widths, densities, seeds, [train], [[prune]].")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the table, models and circuits (default: out/NAME).")
    ] = None,
    executor: Annotated[str, typer.Option(help="local, slurm or ray.")] = "local",
    workers: Annotated[int | None, typer.Option(help="Workers at once (default: one a core).")] = None,
    watch: Annotated[
        bool, typer.Option(help="Only show how far another process is, until it is done.")
    ] = False,
    retry: Annotated[bool, typer.Option(help="Do failed runs again as well.")] = False,
    export: Annotated[Path | None, typer.Option(help="Write the table as .csv or .parquet as well.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train and prune every combination in a plan, on many processes, into one table; the same call goes on.

    Writes OUT/runs.sqlite, OUT/circuits, OUT/models and OUT/sweep.html, a page with a plot of any two columns.
    """
    folder = out or Path("out") / plan.stem
    with clear_errors():
        from circuits.sweep import load_plan, run_sweep
        from circuits.sweep.export import export as write
        from circuits.sweep.export import sweep_page
        from circuits.sweep.work import table_of

        for path in (folder / "sweep.html", *([export] if export else [])):
            check_apart(path, plan, name="out" if path != export else "export")
        planned = load_plan(plan)
        table = table_of(folder, shared=executor != "local")
        if retry:
            table.retry_failed()
        with _Shown() as shown:
            if watch:
                _wait(table, shown)
            else:
                run_sweep(planned, folder, executor=executor, n_workers=workers, watch=shown)
        say_replaced(*([export] if export else []))
        page = sweep_page(table, folder / "sweep.html")
        written = {} if export is None else {"export": str(write(table, export))}
        progress = table.progress()
    report = {"table": str(table.path), "page": str(page), **written, **progress._asdict()}
    answer(report, as_json, title=f"Sweep of {len(planned.runs)} runs")
    if progress.failed:
        raise typer.Exit(1)


class _Shown:
    """A line on standard error that says how far a sweep is, whenever that changes."""

    def __enter__(self) -> "_Shown":
        self.status = console(stderr=True).status("Starting")
        self.status.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.status.stop()

    def __call__(self, progress: Any) -> None:
        self.status.update(", ".join(f"{count} {state}" for state, count in progress._asdict().items()))


def _wait(table: Any, shown: _Shown) -> None:
    while (progress := table.progress()).left:
        shown(progress)
        time.sleep(1)
