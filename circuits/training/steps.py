"""Runs of many steps: one at a time to the end, Ctrl-C only between them, and what is kept to go on from there."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol, runtime_checkable

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from circuits.files import UnwritableError
from circuits.signals import unbroken

Entry = dict[str, int | float]
"""One line of a run's history."""


@runtime_checkable
class Run(Protocol):
    """Something that is done in steps, and can be kept between any two of them."""

    history: list[Entry]
    "What has been measured; not empty after the first step."

    def progress(self) -> float:
        """Fraction done; 1 at the end."""

    def one_step(self) -> None:
        """Do one step."""

    def save(self, path: str | Path) -> Path:
        """Write all that is needed to go on; returns the path."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training; `path` is the checkpoint to resume from."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"Training interrupted; resume from {path}")
        self.path = path


class TrainingDiverged(ValueError):
    """A loss that is not finite; `path` is a checkpoint with the weights as they were before the bad step."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(f"{message} The weights before it are in {path}.")
        self.path = path


class NotFiniteError(ValueError):
    """A step whose loss is not finite; `rescue` writes the weights as they were before, and returns the path."""

    def __init__(self, message: str, rescue: Callable[[str | Path], Path]) -> None:
        super().__init__(message)
        self.rescue = rescue


class LastGood:
    """Copies of parameters as they were when the loss was last known to be finite."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._own = [parameter.detach() for parameter in parameters]
        self._copies = [parameter.clone() for parameter in self._own]

    def keep(self) -> None:
        """The parameters are good as they are."""
        torch._foreach_copy_(self._copies, self._own)

    def put_back(self) -> None:
        """The parameters are again as they were when last kept."""
        torch._foreach_copy_(self._own, self._copies)


def run_to_end(
    run: Run, *, name: str, describe: Callable[[Entry], str], checkpoint: str | Path, shown: bool
) -> None:
    """Step until the run is done, with a bar that ends in what `describe` says of the last entry of its history.

    Ctrl-C takes effect at the end of the step (see `whole_steps`): the run is saved to `checkpoint` and
    TrainingInterrupted is raised. A second one stops at once, with a plain KeyboardInterrupt and no file, unless the
    file is being written already. A loss that is not finite raises TrainingDiverged, with the weights in `checkpoint`.
    """
    with progress_bar(name, shown=shown) as show, whole_steps() as asked_to_stop:
        while run.progress() < 1:
            try:
                run.one_step()
            except NotFiniteError as bad:
                raise TrainingDiverged(str(bad), _written(bad.rescue, checkpoint)) from None
            show(run.progress(), describe(run.history[-1]))
            if asked_to_stop():
                raise TrainingInterrupted(_written(run.save, checkpoint))


def _written(save: Callable[[str | Path], Path], path: str | Path) -> Path:
    """Where `save` wrote: `path`, or elsewhere if it cannot be there. A further Ctrl-C waits, and changes nothing."""
    written: list[Path] = []
    try:
        with unbroken():
            try:
                written.append(save(path))
            except UnwritableError as error:
                if error.kept is None:
                    raise
                written.append(error.kept)
    except KeyboardInterrupt:
        if not written:
            raise
    return written[0]


@contextmanager
def whole_steps() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C waits to be asked for, so that what is kept is never half a step.

    Yields the function that says whether there was one. A second Ctrl-C goes to the handler there was before, which
    as a rule raises KeyboardInterrupt on the spot; the step is then half done, and nothing is promised about it.
    One that nobody asked for any more goes there when the block ends.
    No handler is set off the main thread, which no Ctrl-C reaches, nor where the process ignores it or dies of it.
    """
    asked, heeded = threading.Event(), threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield asked.is_set
        return

    def stop() -> bool:
        if asked.is_set():
            heeded.set()
        return asked.is_set()

    def wait(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            heeded.set()  # by the handler before: not to be given it twice
            before(number, frame)
        asked.set()

    signal.signal(signal.SIGINT, wait)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
        if asked.is_set() and not heeded.is_set():
            before(signal.SIGINT, None)


@contextmanager
def progress_bar(name: str, *, shown: bool) -> Iterator[Callable[[float, str], None]]:
    """A bar on standard error; yields the function that takes the fraction done and a line to end with."""
    columns = (
        TextColumn(name),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[line]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not shown, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=1.0, line="")
        yield lambda completed, line: bar.update(task, completed=completed, line=line)


def optimizer_tensors(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as tensors for a checkpoint, under `{name}.{index of the parameter}.{key}`."""
    return {
        f"{name}.{index}.{key}": value
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def restore_optimizer(name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave under the same name; tensors under other names are passed over."""
    state: dict[int, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        owner, _, rest = path.partition(".")
        if owner == name:
            index, key = rest.split(".")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
