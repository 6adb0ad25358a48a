"""Numbered checkpoints of a run: one every so often, the last few kept, and the way back to the newest good one.

A process that is killed is not asked first. Each checkpoint is written whole, under the number of its step, in a folder
that belongs to one run at a time.
"""

import fcntl
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from circuits.files import UnwritableError, clean_up
from circuits.reading import UnreadableError
from circuits.settings import Count, Positive, Settings

LOCK = "lock"
_FILES = "step-*.safetensors"


@dataclass(frozen=True, kw_only=True)
class Keep(Settings):
    """How often a run is kept, and how many checkpoints of it."""

    steps: Count | None = None
    "Every so many steps; None: by the clock alone."
    minutes: Positive | None = 1.0
    "Every so many minutes; None: by steps alone."
    last: Count = 3
    "So many of them; older ones are removed."


class Numbered:
    """The numbered checkpoints of one run, in a folder of their own."""

    def __init__(self, folder: str | Path, keep: Keep) -> None:
        self.folder, self.keep = Path(folder), keep
        self._kept_at = time.monotonic()

    def files(self) -> list[Path]:
        """Checkpoints that are there, oldest first."""
        return sorted(self.folder.glob(_FILES))

    def newest(self) -> Path | None:
        """The last one; None where there is none."""
        return next(reversed(self.files()), None)

    def keep_if_due(self, step: int, save: Callable[[Path], Path]) -> None:
        """Write a checkpoint if one is due after this step, and remove those beyond the last few.

        Raises UnwritableError where it cannot be written; those before it are still there.
        """
        by_step = self.keep.steps is not None and step % self.keep.steps == 0
        waited = time.monotonic() - self._kept_at
        if by_step or (self.keep.minutes is not None and waited >= 60 * self.keep.minutes):
            self.write(step, save)

    def write(self, step: int, save: Callable[[Path], Path]) -> Path:
        """Write the checkpoint of a step, and remove those beyond the last few."""
        path = save(self.folder / f"step-{step:09d}.safetensors")
        for old in self.files()[: -self.keep.last]:
            old.unlink(missing_ok=True)
        self._kept_at = time.monotonic()
        return path

    def clear(self) -> None:
        """Remove all of them, and the folder: of a run whose result is safe elsewhere."""
        for path in self.files():
            path.unlink(missing_ok=True)
        with suppress(OSError):
            (self.folder / LOCK).unlink(missing_ok=True)
            self.folder.rmdir()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, the folder is this process's alone; the system lets go of it however the process ends.

        Raises UnwritableError where another run holds it: two would remove one another's checkpoints.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / LOCK).open("a")
        except OSError as error:
            raise UnwritableError(f"checkpoint: {self.folder} cannot be written ({error}).") from None
        with lock:
            self._lock(lock)
            self._clean_up()
            yield
        with suppress(OSError):  # nothing was kept: nothing is left
            if not self.files():
                self.clear()

    def _lock(self, lock: IO[str]) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UnwritableError(
                f"checkpoint: {self.folder} belongs to a run that is going on; expected a place of its own. Choose "
                "another output, or wait for that run."
            ) from None

    def _clean_up(self) -> None:
        for left in self.folder.glob(".step-*.partial"):
            clean_up(self.folder / f"{left.name[1:].partition('.safetensors')[0]}.safetensors")


def take_up(resume: str | Path | Sequence[Path] | None, restore: Callable[[Path], None]) -> None:
    """Restore from a file, or of several from the newest that is whole; of none, nothing is restored.

    Raises UnreadableError, as `newest_good` does; of several, each that is passed over is warned of.
    """
    if isinstance(resume, str | Path):
        restore(Path(resume))
    elif resume is not None:
        newest_good(list(resume), restore, warnings.warn)


def newest_good(
    files: list[Path], restore: Callable[[Path], None], say: Callable[[str], None]
) -> Path | None:
    """Restore from the newest file that can be read, and return it; None where there are none at all.

    say: told of each that cannot. Raises UnreadableError, the first one, where none can be read.
    """
    first: UnreadableError | None = None
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            restore(path)
        except UnreadableError as error:
            first = first or error
            say(f"{path.name} is passed over: {error}")
        else:
            return path
    if first is not None:
        raise first
    return None
