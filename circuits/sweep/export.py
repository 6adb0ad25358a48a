"""The table of a sweep for other programs and for the eye: CSV, Parquet, and a page with any two columns."""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from circuits.files import whole_file, write_text
from circuits.plots.page import table, write_page
from circuits.plots.sweep import number_columns, sweep_figure
from circuits.sweep.table import RunTable


def export(runs: RunTable, path: str | Path) -> Path:
    """Write all rows as `.csv` or `.parquet`, by the name.

    Raises ValueError for another name, and where pyarrow is missing.
    """
    path = Path(path)
    rows = runs.rows()
    names = columns(rows)
    if path.suffix == ".csv":
        text = StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return write_text(path, text.getvalue())
    if path.suffix == ".parquet":
        return _parquet(path, {name: [row.get(name) for row in rows] for name in names})
    raise ValueError(f"path: got {path.name!r}; expected a name that ends in .csv or .parquet.")


def _parquet(path: Path, held: dict[str, list[Any]]) -> Path:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(
            'path: .parquet needs pyarrow. Install it: pip install "sparse-circuits[sweep]"; .csv needs nothing.'
        ) from None
    with whole_file(path) as partial:
        parquet.write_table(pyarrow.table(held), partial)
    return path


def columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Every name that any row has, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def sweep_page(runs: RunTable, path: str | Path) -> Path:
    """A page: a plot whose axes are any two columns of numbers, and every run in a table with its state and error."""
    rows = runs.rows()
    progress = runs.progress()
    said = f"{progress.done} done, {progress.failed} failed, {progress.claimed} being done, {progress.pending} to do."
    short = (
        "task",
        "width",
        "density",
        "seed",
        "state",
        "n_nodes",
        "n_edges",
        "task_loss",
        "val_loss",
        "seconds",
    )
    held = [{name: row.get(name) for name in (*short, "error")} for row in rows]
    shown = [{name: "" if value is None else value for name, value in row.items()} for row in held]
    done = [row for row in rows if row["state"] == "done"]
    drawn = {"n_edges", "task_loss"} <= set(number_columns(done))  # else there is nothing to begin with
    blocks = [said, *([sweep_figure(done)] if drawn else []), table(shown)]
    return write_page(path, title="Sweep", blocks=blocks)
