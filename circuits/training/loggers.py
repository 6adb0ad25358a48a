"""Where the history of a run goes besides its checkpoint: TensorBoard, Weights & Biases.

A log is any function that takes an entry of the history; `train(log=...)` calls it with each new one.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from circuits.training.config import TrainConfig
from circuits.training.steps import Entry

Log = Callable[[Entry], None]


@contextmanager
def logs(
    config: TrainConfig, *, tensorboard: str | Path | None = None, wandb: str | None = None
) -> Iterator[Log | None]:
    """One log for all that are asked for, closed at the end; None where none is.

    tensorboard: the folder of its events. wandb: the name of a project; where its files go, and whether a network is
    used, is told to the package by its own environment variables (`WANDB_MODE=offline`).
    Raises ValueError where the package is not installed.
    """
    with ExitStack() as stack:
        asked = [
            stack.enter_context(log)
            for log in (
                tensorboard and to_tensorboard(tensorboard),
                wandb and to_wandb(wandb, config),
            )
            if log
        ]

        def log_all(entry: Entry) -> None:
            for log in asked:
                log(entry)

        yield log_all if asked else None


@contextmanager
def to_tensorboard(folder: str | Path) -> Iterator[Log]:
    """A log that writes scalars for TensorBoard into a folder; they are on the disk after each entry."""
    _package("tensorboard", "tensorboard")
    writer = import_module("torch.utils.tensorboard").SummaryWriter(str(folder))

    def log(entry: Entry) -> None:
        for name, value in _measured(entry).items():
            writer.add_scalar(name, value, entry["step"])
        writer.flush()

    try:
        yield log
    finally:
        writer.close()


@contextmanager
def to_wandb(project: str, config: TrainConfig) -> Iterator[Log]:
    """A log that gives entries to a new run of a project on Weights & Biases, which also keeps the config."""
    run = _package("wandb", "wandb").init(project=project, config=config.to_json())
    try:
        yield lambda entry: run.log(_measured(entry), step=entry["step"])
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


def _measured(entry: Entry) -> dict[str, int | float]:
    return {name: value for name, value in entry.items() if name != "step"}


def _package(name: str, extra: str) -> Any:
    """A package that is an extra. Raises ValueError where it is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{extra}: the package {error.name} is not installed; expected it, to log there. Install it: pip install "
            f"'sparse-circuits[{extra}]'."
        ) from None
