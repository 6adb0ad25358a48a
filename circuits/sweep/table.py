"""The table of a sweep: one row a run, claimed by one worker at a time, in one SQLite file."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from circuits.files import json_text
from circuits.reading import UnreadableError, demand, parsed, reading
from circuits.settings import checked
from circuits.sweep.plan import Plan, Run

State = Literal["pending", "claimed", "done", "failed"]
STATES: tuple[State, ...] = ("pending", "claimed", "done", "failed")
LEASE = 60.0
"""Seconds without a sign of life after which a run is taken from its worker."""
ATTEMPTS = 5
"""Workers that may die in a run before it counts as failed."""
EXPECTED = "a table that `circuits sweep` wrote"
SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
  key TEXT PRIMARY KEY, place INTEGER NOT NULL, model TEXT NOT NULL, settings TEXT NOT NULL,
  state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'claimed', 'done', 'failed')),
  worker TEXT, beat REAL, attempts INTEGER NOT NULL DEFAULT 0, result TEXT, error TEXT
)
"""
CLAIM = """
UPDATE runs SET state = 'claimed', worker = :worker, beat = :now, attempts = attempts + 1 WHERE key = (
  SELECT key FROM runs AS one WHERE state = 'pending' ORDER BY
  (SELECT COUNT(*) FROM runs WHERE model = one.model AND state = 'claimed'), place LIMIT 1
) RETURNING key, settings
"""


class Progress(NamedTuple):
    """How many runs are in each state."""

    pending: int
    claimed: int
    done: int
    failed: int

    @property
    def left(self) -> int:
        """Runs that somebody still has to finish."""
        return self.pending + self.claimed


class RunTable:
    """The runs of a sweep in one file. Every change is one transaction, so that a killed process leaves a whole one.

    shared: whether several machines see the file; SQLite's log of one machine (WAL) is not for those.
    clock: seconds that all workers agree on. Raises UnreadableError (a ValueError) for a file that is no such table.
    """

    def __init__(
        self, path: str | Path, *, shared: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self.path, self.clock = Path(path), clock
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            with reading(self.path, EXPECTED, name="table"):
                demand(self.path.is_file(), "it is no regular file", EXPECTED)
        with self._connection() as connection:
            connection.execute(f"PRAGMA journal_mode={'DELETE' if shared else 'WAL'}")  # the file keeps it
        with self._transaction() as connection:
            connection.execute(SCHEMA)
            _check_schema(connection)

    def add(self, plan: Plan) -> None:
        """Put in the runs that are not there yet; the others keep their state."""
        rows = [
            (run.key, place, run.model_key, json_text(run.to_json())) for place, run in enumerate(plan.runs)
        ]
        with self._transaction() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO runs (key, place, model, settings) VALUES (?, ?, ?, ?)", rows
            )

    def claim(self, worker: str) -> tuple[str, Run] | None:
        """A run for this worker alone: one whose model nobody is training, if there is any; None: nothing is left."""
        with self._transaction() as connection:
            self._free_stale(connection)
            row = connection.execute(CLAIM, {"worker": worker, "now": self.clock()}).fetchone()
            return None if row is None else (row[0], Run.from_json(parsed(row[1])))

    def beat(self, worker: str, key: str) -> bool:
        """Say that the worker is alive; False where the run has been taken from it."""
        return self._change("beat = ?", (self.clock(),), worker, key)

    def finish(self, worker: str, key: str, result: dict[str, Any]) -> bool:
        """Record a result, once: False, and nothing changed, where the run is no longer this worker's."""
        return self._change("state = 'done', error = NULL, result = ?", (json_text(result),), worker, key)

    def fail(self, worker: str, key: str, error: str) -> bool:
        """Record a traceback."""
        return self._change("state = 'failed', error = ?", (error,), worker, key)

    def release(self, worker: str) -> None:
        """Give back what a worker has that is known to be dead, without waiting for its lease to end."""
        with self._transaction() as connection:
            _give_back(connection, "worker = ?", (worker,))

    def retry_failed(self) -> None:
        """Failed runs are to be done again."""
        with self._transaction() as connection:
            connection.execute("UPDATE runs SET state = 'pending', attempts = 0 WHERE state = 'failed'")

    def progress(self) -> Progress:
        """Counts of runs by state."""
        with self._transaction() as connection:
            counts = dict(connection.execute("SELECT state, COUNT(*) FROM runs GROUP BY state").fetchall())
        return Progress(*(counts.get(state, 0) for state in STATES))

    def rows(self) -> list[dict[str, Any]]:
        """Every run, in the plan's order, flat: its settings that vary, state, result, error."""
        with self._transaction() as connection:
            held = connection.execute(
                "SELECT key, settings, state, worker, attempts, result, error FROM runs ORDER BY place"
            ).fetchall()
            return [_row(*row) for row in held]

    def _change(self, what: str, values: tuple[Any, ...], worker: str, key: str) -> bool:
        with self._transaction() as connection:
            changed = connection.execute(
                f"UPDATE runs SET {what} WHERE key = ? AND worker = ? AND state = 'claimed'",
                (*values, key, worker),
            )
            return changed.rowcount == 1

    def _free_stale(self, connection: sqlite3.Connection) -> None:
        _give_back(connection, "beat < ?", (self.clock() - LEASE,))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """The open file. Whatever is wrong with it, or with what it holds, is an UnreadableError that names it."""
        with reading(self.path, EXPECTED, name="table"):
            try:
                with closing(sqlite3.connect(self.path, timeout=60, isolation_level=None)) as connection:
                    connection.execute("PRAGMA trusted_schema=OFF")
                    yield connection
            except sqlite3.Error as error:
                raise UnreadableError(f"{type(error).__name__}: {error}") from None


def _check_schema(connection: sqlite3.Connection) -> None:
    """Raise UnreadableError for a table of other columns, and for views and triggers: they compute as they please."""
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.execute(SCHEMA)
        expected = fresh.execute("SELECT sql FROM sqlite_master WHERE name = 'runs'").fetchone()
    found = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'runs'").fetchone()
    demand(found == expected, f"runs: got {found[0]!r}", "the columns of a sweep's table")
    others = connection.execute(
        "SELECT type, name FROM sqlite_master WHERE type IN ('view', 'trigger')"
    ).fetchall()
    demand(not others, f"got {others}", "neither views nor triggers")


def _give_back(connection: sqlite3.Connection, whose: str, values: tuple[Any, ...]) -> None:
    connection.execute(
        f"UPDATE runs SET error = 'Its worker died, ' || attempts || ' times.', worker = NULL, "
        f"state = CASE WHEN attempts >= {ATTEMPTS} THEN 'failed' ELSE 'pending' END "
        f"WHERE state = 'claimed' AND {whose}",
        values,
    )


def _row(
    key: str,
    settings: str,
    state: str,
    worker: str | None,
    attempts: int,
    result: str | None,
    error: str | None,
) -> dict[str, Any]:
    run, held = parsed(settings), parsed(result) if result else {}
    train, prune = run["train"], run["prune"]
    plain = {f"prune.{name}": value for name, value in prune.items() if isinstance(value, int | float | str)}
    head = {"key": key, "task": checked("task", run["task"], str), "width": train["model"]["d_model"]}
    head |= {"density": train["density"], "seed": train["seed"], "steps": train["steps"]}
    tail = {"state": state, "worker": worker, "attempts": attempts, "error": error}
    return {**head, **plain, **held, **head, **tail}  # whatever a result says, it is that of this run
