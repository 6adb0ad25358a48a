"""Runs of many steps: one at a time to the end, Ctrl-C only between them, and what is kept to go on from there."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol, runtime_checkable

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

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


def run_to_end(
    run: Run, *, name: str, describe: Callable[[Entry], str], checkpoint: str | Path, shown: bool
) -> None:
    """Step until the run is done, with a bar that ends in what `describe` says of the last entry of its history.

    Ctrl-C takes effect at the end of the step (see `whole_steps`): the run is saved to `checkpoint` and
    TrainingInterrupted is raised. A second one stops at once, with a plain KeyboardInterrupt and no file.
    """
    with progress_bar(name, shown=shown) as show, whole_steps() as asked_to_stop:
        while run.progress() < 1:
            run.one_step()
            show(run.progress(), describe(run.history[-1]))
            if asked_to_stop():
                raise TrainingInterrupted(run.save(checkpoint))


@contextmanager
def whole_steps() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C waits to be asked for, so that what is kept is never half a step.

    Yields the function that says whether there was one. A second Ctrl-C goes to the handler there was before, which
    as a rule raises KeyboardInterrupt on the spot; the step is then half done, and nothing is promised about it.
    No handler is set off the main thread, which no Ctrl-C reaches, nor where the process ignores it or dies of it.
    """
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield asked.is_set
        return

    def wait(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            before(number, frame)
        asked.set()

    signal.signal(signal.SIGINT, wait)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


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
