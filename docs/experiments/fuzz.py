"""Every reader of the package against hostile files: each loads or says why not, in time, and within memory."""

import random
import re
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from docs.experiments.readers import Target, all_targets

SECONDS, WAIT, TIMES, SPARE = 5, 120, 10, 48 * 2**20
"""A case may take so many seconds of the processor and of waiting (others may be at work), and this many times the
memory of its file, beyond the memory of the model of a toy."""
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came of the cases."""

    cases: int
    "Files that were read."
    refused: int
    "Of these, refused with the project's own error."
    bad: tuple[str, ...]
    "What went otherwise: another error, too long, too much memory, two readers that disagree."
    kinds: dict[str, int]
    "Bad ones, by reader and kind."
    readers: tuple[str, ...]
    "Names of the readers."


class TookLongError(BaseException):
    """A case is still running."""


def fuzz(cases: int, *, first: int = 0, seed: int = 0, say: Callable[[str], None] = print) -> Report:
    """Read `cases` hostile files from number `first` on, in turn for each reader; a seed gives the same files."""
    with tempfile.TemporaryDirectory() as folder:
        targets = all_targets(Path(folder))
        for target in targets:  # each takes what is good, and has loaded what it needs
            target.read(target.good)
        refused, bad, kinds = 0, [], Counter[str]()
        for case in range(first, first + cases):
            target = targets[case % len(targets)]
            rng = random.Random(f"{seed}/{case}")
            told = one_case(target, rng, Path(folder) / "hostile.file")
            refused += told == ""
            if told:
                bad.append(f"case {case}, {target.name}: {told}")
                kinds[f"{target.name}: {told.partition(':')[0]}"] += 1
                say(bad[-1])
    return Report(
        cases=cases,
        refused=refused,
        bad=tuple(bad),
        kinds=dict(kinds),
        readers=tuple(target.name for target in targets),
    )


def one_case(target: Target, rng: random.Random, path: Path) -> str | None:
    """Empty where a hostile file was refused, None where it could be read, else what is wrong with the reader."""
    data = target.spoil(target.good, rng)
    path.write_bytes(data)
    before, started, told = peak(reset=True), time.process_time(), None
    try:
        with at_most(SECONDS, WAIT):
            target.read(path)
    except TookLongError:
        return f"hang: over {SECONDS} s, or {WAIT} s of waiting"
    except BaseException as error:
        if not is_own(error, target.refuses):
            return f"{type(error).__name__}: {str(error)[:200]}"
        told = "" if len(str(error)) < 5000 else "message: too long"
    if time.process_time() - started > SECONDS:
        return f"hang: {time.process_time() - started:.1f} s"
    grown = peak() - before
    return f"memory: {grown} bytes for {len(data)}" if grown > TIMES * len(data) + SPARE else told


def is_own(error: BaseException, kind: type[ValueError]) -> bool:
    """Whether an error is of this kind; a plain ValueError must come from a `raise` of the package itself."""
    if type(error) is not ValueError:
        ours = type(error).__module__.partition(".")[0] in ("circuits", "tasks")
        return isinstance(error, kind) and ours
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        kind is ValueError and Path(last.filename).is_relative_to(ROOT) and str(last.line).startswith("raise")
    )


def peak(*, reset: bool = False) -> int:
    """Most bytes that this process has held at once, since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None, "Linux says how much memory a process has held"
    return 1024 * int(found[1])


@contextmanager
def at_most(seconds: int, wait: int) -> Iterator[None]:
    """Inside, TookLongError is raised after so many seconds of the processor, or so many by the clock."""
    timers = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, wait)}
    before = {number: signal.signal(number, _stop) for number in timers}
    for timer, limit in timers.values():
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)
        for number, own in before.items():
            signal.signal(number, own)


def _stop(number: int, frame: FrameType | None) -> None:
    raise TookLongError
