"""Files: written in one step and read with clear errors; results that say how they came about."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A place to write to beside `path`, which becomes `path` when the block ends well, and goes when it does not.

    A reader never sees half a file, and a failed write leaves the one that was there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{time.time_ns()}.partial")
    try:
        yield partial
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file in one step; returns the path."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, data: dict[str, Any]) -> Path:
    """Write a JSON file in one step; returns the path."""
    return write_text(path, json.dumps(data, indent=1) + "\n")


def read_json(path: str | Path, *, name: str, expected: str) -> dict[str, Any]:
    """One JSON object from a file. Raises ValueError on anything else, for the argument called `name`."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {path} cannot be read as JSON ({error}); expected {expected}.") from None
    if not isinstance(data, dict):
        raise ValueError(f"{name}: {path} holds a JSON {type(data).__name__}; expected {expected}.")
    return data


def write_results(
    path: str | Path, *, command: str, seeds: Sequence[int], seconds: float, numbers: dict[str, Any]
) -> dict[str, Any]:
    """Write one results file in one step and return what is in it: the numbers, and how they came about."""
    report = results_report(command=command, seeds=seeds, seconds=seconds, numbers=numbers)
    write_json(path, report)
    return report


def results_report(
    *, command: str, seeds: Sequence[int], seconds: float, numbers: dict[str, Any]
) -> dict[str, Any]:
    """The content of a results file: the numbers, the command that remakes them, the machine, the minutes."""
    import platform  # here, since the command line reads its help from files that need this one
    from datetime import date
    from importlib.metadata import version

    processor = platform.processor() or platform.machine()
    return {
        "command": command,
        "seeds": list(seeds),
        **numbers,
        "machine": f"{processor}, {os.cpu_count()} cores, torch {version('torch')}",
        "minutes": round(seconds / 60, 2),
        "date": date.today().isoformat(),
    }


def once(path: Path, settings: dict[str, Any], run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of `run`, from `path` where the same settings have been run before; adds its `seconds`."""
    settings = json.loads(json.dumps(settings))
    if path.exists():
        kept = json.loads(path.read_text())
        if kept.get("settings") == settings:
            return kept["result"]
    started = time.perf_counter()
    result = run()
    result = {**result, "seconds": round(time.perf_counter() - started, 1)}
    write_json(path, {"settings": settings, "result": result})
    return result


def mean(values: Sequence[int | float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)
