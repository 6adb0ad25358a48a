"""Files of other kinds than JSON and tensors made hostile: TOML, CSV, plain text, SQLite tables, torch's archives."""

import csv
import io
import json
import random
import sqlite3
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from docs.experiments.mutate import NASTY, damaged, edited, exchanged

TOML = (
    "x = nan",
    "widths = [inf]",
    "seeds = [1979-05-27T07:32:00Z]",
    "a" + ".a" * 500 + " = 1",
    "[" + "a." * 500 + "a]",
    "x = " + "[" * 2000,
    "x = " + "{a=" * 500,
    'tasks = ["""',
    "seeds = [" + "0," * 3000 + "]",
    "densities = [" + ",".join(f"0.{i + 1}" for i in range(900)) + "]",
    "tasks = 5",
    "[[train]]",
    "x = 0x" + "f" * 3000,
)
"""Lines that TOML allows, or nearly."""
SQL = (
    "CREATE VIEW more AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT * FROM n",
    "CREATE TRIGGER t AFTER UPDATE ON runs BEGIN DELETE FROM runs; END",
    "ALTER TABLE runs ADD COLUMN extra TEXT",
    "ALTER TABLE runs RENAME TO others",
    "DROP TABLE runs",
    "DELETE FROM runs",
    "CREATE TABLE others (a); INSERT INTO others VALUES (1)",
    "PRAGMA user_version = 7",
    "PRAGMA journal_mode = WAL",
    "DROP TABLE runs; CREATE VIEW runs AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
    "SELECT i AS key, i AS place, i AS model, '{}' AS settings, 'done' AS state FROM n",
)
COLUMNS = ("key", "place", "model", "settings", "worker", "beat", "attempts", "result", "error")


def hostile_bytes(path: Path, rng: random.Random) -> bytes:
    """A file of bytes made hostile."""
    return damaged(path.read_bytes(), rng)


def hostile_toml(path: Path, rng: random.Random) -> bytes:
    """A TOML file made hostile: its bytes, a line of it, or a value."""
    data = path.read_bytes()
    if rng.random() < 0.4:
        return damaged(data, rng)
    lines = data.decode().splitlines()
    i = rng.randrange(len(lines))
    how = rng.random()
    if how < 0.4:
        lines.insert(i, rng.choice(TOML))
    elif how < 0.6:
        lines[i] = rng.choice(lines)
    else:
        head, _, _ = lines[i].partition("=")
        lines[i] = f"{head}= {json.dumps(rng.choice(NASTY))}"
    return "\n".join(lines).encode()


def hostile_csv(path: Path, rng: random.Random) -> bytes:
    """A CSV file made hostile: its bytes, or cells and rows."""
    if rng.random() < 0.5:
        return damaged(path.read_bytes(), rng)
    rows = list(csv.reader(io.StringIO(path.read_text())))
    for _ in range(rng.randrange(1, 4)):
        _spoil_row(rows, rng)
        rows = rows or [[""]]
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _spoil_row(rows: list[list[str]], rng: random.Random) -> None:
    """A cell more, fewer or another, a row twice, or the rest of them gone."""
    row, cell = rng.choice(rows) or [""], str(rng.choice(NASTY))
    at = rng.randrange(len(row))
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: row.append(cell),
        lambda: row.pop(at),
        lambda: rows.append(list(row)),
        lambda: row.__setitem__(at, cell),
        lambda: row.__setitem__(0, "word " * rng.randrange(1, 5000)),
        lambda: rows.__delitem__(slice(rng.randrange(len(rows)), None)),
    )
    rng.choice(kinds)()


def hostile_text(path: Path, rng: random.Random) -> bytes:
    """A text file made hostile: damaged, of another encoding, all one line, nearly nothing."""
    data = path.read_bytes()
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: damaged(data, rng),
        lambda: data.decode().encode(rng.choice(("utf-16", "utf-32", "utf-8-sig"))),
        lambda: bytes(rng.choice(data) for _ in range(len(data))),
        lambda: rng.choice((b"", b"\n", b" ", b"a")) * rng.randrange(1, 5000),
        lambda: data.replace(b"\n", rng.choice((b"", b"\r", b"\x0c", "\u2028".encode()))),
        lambda: rng.randbytes(2000),
    )
    return rng.choice(kinds)()


def hostile_table(path: Path, rng: random.Random) -> bytes:
    """An SQLite file made hostile: its bytes, its schema, or a cell."""
    if rng.random() < 0.35:
        return damaged(path.read_bytes(), rng)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.sqlite"
        copy.write_bytes(path.read_bytes())
        with closing(sqlite3.connect(copy)) as connection, suppress(sqlite3.Error):
            connection.execute("PRAGMA ignore_check_constraints = ON")
            if rng.random() < 0.3:
                connection.executescript(rng.choice(SQL))
            else:
                _change_cell(connection, rng)
            connection.commit()
        return copy.read_bytes()


def _change_cell(connection: sqlite3.Connection, rng: random.Random) -> None:
    column = rng.choice((*COLUMNS, "settings", "result", "state"))
    key, held = rng.choice(connection.execute(f"SELECT key, {column} FROM runs").fetchall())
    value = rng.choice(NASTY)
    value = value if isinstance(value, str) else json.dumps(value)
    if column in ("settings", "result") and held and rng.random() < 0.8:
        value = json.dumps(edited(json.loads(held), rng))
    connection.execute(f"UPDATE runs SET {column} = ? WHERE key = ?", (value, key))


def hostile_archive(path: Path, rng: random.Random) -> bytes:
    """A file of `torch.save` made hostile: its bytes, its instructions, or its tensors."""
    how = rng.random()
    if how < 0.3:
        return damaged(path.read_bytes(), rng)
    if how < 0.6:
        return _repacked(path, rng)
    whole = torch.load(path, weights_only=True)
    spoilt = _spoilt(whole, rng)
    buffer = io.BytesIO()
    torch.save(spoilt, buffer, _use_new_zipfile_serialization=rng.random() < 0.9)
    return buffer.getvalue()


def _spoilt(whole: dict[str, Any], rng: random.Random) -> Any:
    if not all(isinstance(value, Tensor) for value in whole.values()):
        name = rng.choice(list(whole))
        inner = whole[name]
        return whole | {name: _spoilt(inner, rng) if isinstance(inner, dict) else rng.choice(NASTY)}
    name = rng.choice(list(whole))
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: exchanged(whole, rng),
        lambda: whole | {name: rng.choice(NASTY)},
        lambda: whole | {name: whole[name].reshape(-1)[:1].expand(20_000, 20_000)},
        lambda: whole | {name: whole[name].to_sparse()},
        lambda: whole | {rng.choice((5, None, "x", f"module.{name}", name.upper())): whole[name]},
        lambda: [whole],
        lambda: {name: whole},
    )
    return rng.choice(kinds)()


def _repacked(path: Path, rng: random.Random) -> bytes:
    """The archive with one part damaged, doubled, gone or packed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(buffer, "w") as new:
        chosen = rng.choice(
            [*archive.namelist(), *[n for n in archive.namelist() if n.endswith("data.pkl")] * 5]
        )
        how = rng.random()
        for part in archive.namelist():
            data = archive.read(part)
            if part != chosen:
                new.writestr(part, data)
            elif how < 0.7:
                new.writestr(part, damaged(data, rng))
            elif how < 0.8:
                new.writestr(part, data, zipfile.ZIP_DEFLATED)
            elif how < 0.9:
                new.writestr(part + rng.choice(("x", "/data.pkl")), data)
    return buffer.getvalue()
