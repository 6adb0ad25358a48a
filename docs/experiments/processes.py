"""Two processes against one: the same training on the same whole batches, and how far their loss curves part.

`python -m docs.experiments.recovery processes` measures it. The processes are forked and given torchrun's environment,
so that all is loaded and compiled in them already; they run the same `train` as those that torchrun starts.
"""

import multiprocessing
import os
import pickle
import socket
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from circuits.training.config import TrainConfig
from circuits.training.loop import Training, train

CONFIG = TrainConfig.from_json(
    {
        "model": {"n_layers": 1, "d_model": 64, "n_heads": 4, "d_head": 8, "d_mlp": 128, "n_ctx": 40},
        **{"steps": 100, "batch_size": 8, "density": 0.05, "n_val": 16, "log_every": 1},
    }
)
"""A run of seconds whose matrices run on their nonzeros for most of it."""
WAYS = ("exact", "support")


class Raised(NamedTuple):
    """An error that ended a process: the name of its type, and what it said."""

    kind: str
    said: str


def in_ranks(function: Callable[[], Any], size: int = 2, *, seconds: float = 120.0) -> list[Any]:
    """What a function returns in each of `size` processes, by rank: a `Raised` where it raises, None where one dies.

    Whatever is still alive after `seconds` is killed. Raises RuntimeError in a process that has used a GPU: what is
    forked from it cannot.
    """
    if torch.cuda.is_initialized():
        raise RuntimeError(
            "in_ranks: this process has used a GPU, so nothing can be forked from it; call it first."
        )
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(rank) for rank in range(size)]
        environment = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        processes = [
            fork.Process(
                target=_in_rank,
                args=(function, file, {**environment, "RANK": file.name, "LOCAL_RANK": file.name}),
            )
            for file in files
        ]
        with (
            warnings.catch_warnings()
        ):  # later Pythons warn of threads: those of the kernels have nothing to do here
            warnings.simplefilter("ignore", DeprecationWarning)
            for process in processes:
                process.start()
        for process in processes:
            process.join(seconds)
            process.kill()
            process.join()
        return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]


def _in_rank(function: Callable[[], Any], file: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        result = function()
    except BaseException as error:
        result = Raised(type(error).__name__, str(error))
    file.write_bytes(pickle.dumps(result))


def _free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        port: int = tried.getsockname()[1]
        return port


def compared(seeds: int) -> dict[str, Any]:
    """How far two processes part from one, for each seed and way to take gradients; beside it, one in two parts.

    Those two parts are added up in another order than the whole batch, and nothing else: what they part by is rounding.
    """
    runs = []
    for way in WAYS:
        for seed in range(seeds):
            config = replace(CONFIG, seed=seed, weight_gradient=way)  # type: ignore[arg-type]
            one = train(config, progress=False)
            parts = train(replace(config, accumulate=2), progress=False)
            told = in_ranks(partial(_told, config))
            assert not any(isinstance(rank, Raised) or rank is None for rank in told), told
            assert told[0] == told[1], "both ranks end with the same weights and curve"
            runs.append(
                {
                    "weight_gradient": way,
                    "seed": seed,
                    "largest_difference": apart(_curve(one), told[0]["curve"]),
                    "of_two_parts": apart(_curve(one), _curve(parts)),
                    "val_loss": one.val_loss,
                    "val_loss_of_two": told[0]["val_loss"],
                }
            )
            print(runs[-1], flush=True)
    return {
        "largest_difference": max(run["largest_difference"] for run in runs),
        "largest_difference_of_two_parts": max(run["of_two_parts"] for run in runs),
        "steps": CONFIG.steps,
        "batch_size": CONFIG.batch_size,
        "runs": runs,
    }


def _told(config: TrainConfig) -> dict[str, Any]:
    """What one rank has to say of its run; the clock left out."""
    done = train(config, progress=False)
    return {"curve": _curve(done), "val_loss": done.val_loss, "model": done.model.fingerprint()}


def _curve(training: Training) -> list[float]:
    return [entry["loss"] for entry in training.history]


def apart(one: list[float], other: list[float]) -> float:
    """The largest difference of two loss curves, in nats."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
