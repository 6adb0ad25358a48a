"""Files: written in one step and read with clear errors; results that say how they came about."""

import glob
import hashlib
import json
import math
import os
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from circuits.reading import UnreadableError, parsed, reading
from circuits.signals import unbroken

PARTIAL = ".partial"
"""How the names of files end that are being written."""


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

    Where that fails, what was there before is still there, and the new file is kept in a temporary folder where that
    has room: raises UnwritableError, which says so.
    """
    path = Path(path)
    with unbroken():
        try:
            with whole_file(path) as partial:
                write(partial)
        except Exception as error:
            kept = _kept_elsewhere(path.name, write)
            # What the writer was given may be at fault, and not the place: then it fails there, too, and says so.
            if kept is None and not isinstance(error, OSError):
                raise
            where = "is not kept" if kept is None else f"is kept in {kept}"
            raise UnwritableError(f"path: {path} cannot be written ({error}); it {where}.", kept) from None
    return path


def _kept_elsewhere(name: str, write: Callable[[Path], Any]) -> Path | None:
    """Where `write` could fill a file after all; None where it could nowhere."""
    try:
        kept = Path(tempfile.mkdtemp(prefix="circuits-")) / name
    except OSError:
        return None
    try:
        write(kept)
    except Exception:
        kept.unlink(missing_ok=True)
        kept.parent.rmdir()
        return None
    return kept


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A place to write to beside `path`, which becomes `path` when the block ends well, and goes when it does not.

    A reader never sees half a file, a failed write leaves the one that was there, and of two writers each writes its
    own: the last one's is there in the end. When the block has ended, the file is on the disk, and not only promised.
    """
    path = Path(path)
    with _partial(path) as partial:
        mode = stat.S_IMODE((path if path.exists() else partial).stat().st_mode)
        yield partial
        with partial.open("rb+") as written:
            os.fchmod(written.fileno(), mode)  # some libraries write a file that nobody else may read
            os.fsync(written.fileno())
        partial.replace(path)
        _sync_folder(path.parent)


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    clean_up(path)
    partial = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{time.time_ns()}{PARTIAL}")
    try:
        partial.touch(exist_ok=False)
        yield partial
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def clean_up(path: Path) -> None:
    """Remove what writers of `path` left that are no more: killed, or cut off with the power."""
    with suppress(OSError):
        for left in path.parent.glob(f".{glob.escape(path.name)}.{_host()}.*{PARTIAL}"):
            pid = left.name.removesuffix(PARTIAL).split(".")[-2]
            if pid.isdecimal() and not _is_alive(int(pid)):
                left.unlink(missing_ok=True)


def _host() -> str:
    """This machine: the processes of another are not to be judged by their numbers."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Have the name of a new file survive a power cut as well as its content."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file in one step; returns the path."""
    return write_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, data: dict[str, Any]) -> Path:
    """Write a JSON file in one step; returns the path."""
    return write_text(path, json_text(data, indent=1) + "\n")


def json_text(data: Any, *, indent: int | None = None) -> str:
    """Data as JSON that any reader takes: numbers that are not finite become null, those of numpy and torch plain."""
    try:
        return json.dumps(data, indent=indent, allow_nan=False, default=_plain)
    except ValueError:  # some number is not finite, and a walk over all of it finds which
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
    """One JSON object from a file. Raises UnreadableError (a ValueError) on anything else, for the argument `name`."""
    with reading(path, expected, name=name, kind=" as JSON"):
        data = parsed(text_of_file(path))
        if not isinstance(data, dict):
            raise UnreadableError(f"{name}: {path} holds a JSON {type(data).__name__}; expected {expected}.")
    return data


def text_of_file(path: str | Path) -> str:
    """The text of a regular file: a pipe or a device would not end. Raises UnreadableError for those."""
    if Path(path).exists() and not Path(path).is_file():
        raise UnreadableError("it is no regular file")
    return Path(path).read_text(encoding="utf-8")


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
        "commit": commit(),
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


def commit(tree: Path | None = None) -> str | None:
    """The commit that is checked out in a folder (None: here), + where files differ; None outside a checkout."""
    import subprocess

    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            cwd=tree,
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
        if kept.get("settings") == settings and isinstance(kept.get("result"), dict):
            return kept["result"]
    started = time.perf_counter()
    result = run()
    result = {**result, "seconds": round(time.perf_counter() - started, 1)}
    write_json(path, {"settings": settings, "result": result})
    return result


def mean(values: Sequence[int | float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)
