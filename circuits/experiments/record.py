"""What every results file holds beside its own numbers, and runs that are kept so that none is done twice."""

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch


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
    return {
        "command": command,
        "seeds": list(seeds),
        **numbers,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
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


def write_json(path: str | Path, data: dict[str, Any]) -> None:
    """Write a JSON file; a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(data, indent=1) + "\n")
    partial.replace(path)


def mean(values: Sequence[int | float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)
