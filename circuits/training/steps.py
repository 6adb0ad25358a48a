"""Runs of many steps: one at a time to the end, Ctrl-C only between them, and what is kept to go on from there."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from circuits.files import UnwritableError
from circuits.progress import progress_bar
from circuits.reading import UnreadableError, demand, is_number
from circuits.signals import handled, passed_on, unbroken
from circuits.training.numbered import Numbered
from circuits.training.ranks import ALONE, RankError, Ranks

Entry = dict[str, int | float]
"""One line of a run's history."""


@runtime_checkable
class Run(Protocol):
    """Something that is done in steps, and can be kept between any two of them."""

    history: list[Entry]
    "What has been measured; not empty after the first step."
    step: int
    "Steps done."

    def progress(self) -> float:
        """Fraction done; 1 at the end."""

    def one_step(self) -> None:
        """Do one step."""

    def save(self, path: str | Path) -> Path:
        """Write all that is needed to go on; returns the path."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or its like during training; `path` is the checkpoint to resume from, `number` the signal's."""

    def __init__(self, path: Path, number: int = signal.SIGINT) -> None:
        super().__init__(f"Training interrupted; resume from {path}")
        self.path, self.number = path, number


class TrainingDiverged(ValueError):
    """A loss that is not finite or exploded; `path` is a checkpoint with the weights as they were before the bad step.

    `resumable` is the last checkpoint from which the run could go on, if numbered ones were kept.
    """

    def __init__(self, message: str, path: Path, resumable: Path | None = None) -> None:
        super().__init__(f"{message} The weights before it are in {path}.{_said_of_last(resumable)}")
        self.path, self.resumable = path, resumable


def _said_of_last(checkpoint: Path | None) -> str:
    return "" if checkpoint is None else f" The last checkpoint to go on from is {checkpoint}."


class NotFiniteError(ValueError):
    """A step whose loss is not finite or exploded; `rescue` writes the weights from before it, and returns the path."""

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
    run: Run,
    *,
    name: str,
    describe: Callable[[Entry], str],
    checkpoint: str | Path,
    shown: bool,
    numbered: Numbered | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Step until the run is done, with a bar that ends in what `describe` says of the last entry of its history.

    Ctrl-C, SIGTERM and SIGHUP take effect at the end of the step (see `whole_steps`): the run is saved to `checkpoint`
    and TrainingInterrupted is raised. A second one stops at once, with a plain KeyboardInterrupt and no file, unless
    the file is being written already. A loss that is not finite raises TrainingDiverged, with the weights in
    `checkpoint`. numbered: where the run is kept now and then besides, for what no process can be told of beforehand.
    ranks: the processes that do the run together: a signal to one stops all at the end of the same step, and rank 0
    writes and shows for all. Raises RankError where one is gone.
    """
    numbered = numbered if ranks.leads else None
    with progress_bar(name, shown=shown and ranks.leads) as show, whole_steps() as asked_to_stop:
        while run.progress() < 1:
            try:
                run.one_step()
                number = ranks.highest(asked_to_stop())
            except (NotFiniteError, RankError) as bad:
                last = None if numbered is None else numbered.newest()
                if isinstance(bad, RankError):
                    raise RankError(f"{bad}{_said_of_last(last)}") from None
                raise TrainingDiverged(str(bad), _written_once(bad.rescue, checkpoint, ranks), last) from None
            show(run.progress(), describe(run.history[-1]))
            if number:
                raise TrainingInterrupted(_written_once(run.save, checkpoint, ranks), number)
            if numbered is not None and run.progress() < 1:
                numbered.keep_if_due(run.step, run.save)


def _written_once(save: Callable[[str | Path], Path], path: str | Path, ranks: Ranks) -> Path:
    """Where rank 0 wrote; the others wait for it, since as a rule the first process that ends takes all with it."""
    written = _written(save, path) if ranks.leads else Path(path)
    ranks.wait()
    return written


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
def whole_steps() -> Iterator[Callable[[], int]]:
    """Inside, Ctrl-C, SIGTERM and SIGHUP wait to be asked for, so that what is kept is never half a step.

    Yields the function that says which there was; 0: none. A second one goes to the handler there was before, which
    as a rule raises KeyboardInterrupt on the spot, or ends the process; the step is then half done, and nothing is
    promised about it. One that nobody asked for any more goes there when the block ends.
    No handler is set off the main thread, which no signal reaches, nor where the process ignores it or dies of Ctrl-C.
    """
    asked: list[tuple[int, FrameType | None]] = []
    heeded = threading.Event()

    def stop() -> int:
        if asked:
            heeded.set()
        return asked[0][0] if asked else 0

    def wait(number: int, frame: FrameType | None) -> None:
        if asked:
            heeded.set()  # by the handler before: not to be given it twice
            passed_on(before, number, frame)
        asked.append((number, frame))

    try:
        with handled(wait) as before:
            yield stop
    finally:
        if asked and not heeded.is_set():
            passed_on(before, *asked[0])


def optimizer_tensors(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as tensors for a checkpoint, under `{name}.{index of the parameter}.{key}`."""
    return {
        f"{name}.{index}.{key}": value
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def restore_optimizer(name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave under the same name; tensors under other names are passed over.

    Raises UnreadableError for tensors of another optimiser.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        owner, _, rest = path.partition(".")
        if owner == name:
            index, _, key = rest.partition(".")
            right = index.isdecimal() and len(index) < 8 and int(index) < len(parameters) and key in _MOMENTS
            demand(right, f"extra: got {path}", f"one of {list(_MOMENTS)} of {len(parameters)} parameters")
            shape = torch.Size() if key == "step" else parameters[int(index)].shape
            demand(
                value.shape == shape and value.is_floating_point(),
                f"extra: {path} is {value.dtype} of shape {tuple(value.shape)}",
                f"floats of shape {tuple(shape)}",
            )
            state.setdefault(int(index), {})[key] = value
    halves = [index for index, own in state.items() if own.keys() != set(_MOMENTS)]
    demand(not halves, f"extra: parameter {halves[:1]} lacks some of {name}", f"all of {list(_MOMENTS)}")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def stored_history(data: Any) -> list[Entry]:
    """The history of a file. Raises UnreadableError unless it is a list of entries with numbers."""
    demand(isinstance(data, list), f"history: got {data!r}", "a list")
    for entry in data:
        right = isinstance(entry, dict) and all(value is None or is_number(value) for value in entry.values())
        demand(right, f"history: got {entry!r}", "an object of numbers")
    return list(data)


def stored_count(data: Any, name: str, most: int) -> int:
    """A whole number of a file, from 0 to `most`. Raises UnreadableError for anything else."""
    right = type(data) is int and 0 <= data <= most
    demand(right, f"{name}: got {data!r}", f"a whole number from 0 to {most}")
    return int(data)


def stored_seconds(data: Any) -> float:
    """Seconds of a file. Raises UnreadableError for anything but a number of at least 0."""
    demand(is_number(data) and data >= 0, f"seconds: got {data!r}", "a number")
    return float(data)


def restore_generator(generator: torch.Generator, tensors: Mapping[str, Tensor]) -> None:
    """Put back a generator's state. Raises UnreadableError for tensors that have none."""
    demand("generator" in tensors, "extra: no generator", "its state")
    try:
        generator.set_state(tensors["generator"])
    except (RuntimeError, TypeError) as error:
        raise UnreadableError(f"extra: the generator's state is none ({error}).") from None


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps of each parameter."""
