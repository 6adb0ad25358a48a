"""Files: written in one step and read with clear errors; results that say how they came about."""

import json
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class UnwritableError(OSError, ValueError):
    """A file cannot be written where it was asked for; `kept` is where it was written instead, or None."""

    def __init__(self, message: str, kept: Path | None = None) -> None:
        super().__init__(message)
        self.kept = kept


def check_writable(path: str | Path, *, name: str = "out") -> Path:
    """Try whether a file can be written at `path`, before there is much to lose; leaves nothing behind.

    Raises UnwritableError (a ValueError), for the argument called `name`.
    """
    path = Path(path)
    new = [folder for folder in path.parents if not folder.exists()]
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        with _partial(path) as trial:
            trial.write_bytes(b"0" * 4096)
    except OSError as error:
        raise UnwritableError(
            f"{name}: {path} cannot be written ({error}); expected a place for a file. Choose another."
        ) from None
    finally:
        for folder in new:
            if folder.exists():
                folder.rmdir()
    return path


def write_file(path: str | Path, write: Callable[[Path], Any]) -> Path:
    """Let `write` fill a file in one step (see `whole_file`), which Ctrl-C waits for; returns the path.

    Where that fails the file is kept in a temporary folder: raises UnwritableError, which says where.
    """
    path = Path(path)
    with unbroken():
        try:
            with whole_file(path) as partial:
                write(partial)
        except Exception as error:
            # What the writer was given may be at fault, and not the place: then it fails there, too, and says so.
            kept = Path(tempfile.mkdtemp(prefix="circuits-")) / path.name
            try:
                write(kept)
            except Exception:
                kept.unlink(missing_ok=True)
                kept.parent.rmdir()
                raise error from None
            raise UnwritableError(
                f"path: {path} cannot be written ({error}); it is kept in {kept}.", kept
            ) from None
    return path


@contextmanager
def unbroken() -> Iterator[None]:
    """Inside, Ctrl-C waits; it goes to the handler there was before when the block has ended."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    waiting: list[Any] = []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if waiting:
            before(*waiting[0])


@contextmanager
def heeding_interrupts() -> Iterator[Callable[[], None]]:
    """Yields what to call now and then: it raises KeyboardInterrupt if Ctrl-C came where Python swallows it.

    A KeyboardInterrupt raised inside a finaliser (`__del__`) is printed and forgotten; any other acts as ever.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: None
        return
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        try:
            before(number, frame)
        except KeyboardInterrupt:
            came.append(number)
            raise

    def heed() -> None:
        if came:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield heed
        heed()
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A place to write to beside `path`, which becomes `path` when the block ends well, and goes when it does not.

    A reader never sees half a file, and a failed write leaves the one that was there.
    """
    with _partial(Path(path)) as partial:
        yield partial
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.replace(path)


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{time.time_ns()}.partial")
    try:
        yield partial
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file in one step; returns the path."""
    return write_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, data: dict[str, Any]) -> Path:
    """Write a JSON file in one step; returns the path."""
    return write_text(path, json_text(data, indent=1) + "\n")


def json_text(data: Any, *, indent: int | None = None) -> str:
    """Data as JSON that any reader takes: numbers that are not finite become null, those of numpy and torch plain."""
    return json.dumps(_plain(data), indent=indent, allow_nan=False)


def _plain(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    if hasattr(data, "tolist"):
        return _plain(data.tolist())
    return None if isinstance(data, float) and not math.isfinite(data) else data


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
    """The content of a results file: the numbers, the command that remakes them, and all that their bits depend on."""
    from datetime import date  # here, since the command line reads its help from files that need this one
    from importlib.metadata import version

    import torch

    return {
        "command": command,
        "seeds": list(seeds),
        **numbers,
        "machine": f"{_processor()}, {os.cpu_count()} cores, torch {version('torch')}",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "transformer-lens", "numpy", "numba")},
        "commit": _commit(),
        "minutes": round(seconds / 60, 2),
        "date": date.today().isoformat(),
    }


def _processor() -> str:
    """The processor's model, as Linux names it."""
    import platform

    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit that is checked out here, with a + where files differ from it; None outside a checkout."""
    import subprocess

    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() or None


def once(path: Path, settings: dict[str, Any], run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of `run`, from `path` where the same settings have been run before; adds its `seconds`."""
    settings = json.loads(json.dumps(settings))
    if path.exists():
        kept = read_json(
            path, name="path", expected="a result that was kept earlier; delete the file to run again"
        )
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
