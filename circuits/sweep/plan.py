"""What a sweep is to do: the product of tasks, widths, densities, seeds and ways to prune, out of a TOML file."""

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from circuits.files import text_of_file
from circuits.pruning.config import PruneConfig
from circuits.reading import reading
from circuits.settings import Count, Density, Seed, Settings, check_keys, checked
from circuits.training.config import TrainConfig
from tasks import load_task

MOST = 10_000
"""Runs of a plan: a few short lists make more of them than there is time for."""


@dataclass(frozen=True, kw_only=True)
class Axes(Settings):
    """The lists of a plan, as its file has them."""

    tasks: tuple[str, ...]
    "Names of tasks of the corpus."
    widths: tuple[Count, ...] = (128,)
    "d_model of each model."
    densities: tuple[Density, ...] = (0.01,)
    "Final densities."
    seeds: tuple[Seed, ...] = (0,)
    "Of training; pruning has the same."


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training and one pruning."""

    task: str
    train: TrainConfig
    prune: PruneConfig

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"task": self.task, "train": self.train.to_json(), "prune": self.prune.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Run":
        """The inverse of `to_json`."""
        train, prune = TrainConfig.from_json(data["train"]), PruneConfig.from_json(data["prune"])
        return cls(task=checked("task", data["task"], str), train=train, prune=prune)

    @property
    def key(self) -> str:
        """What tells it from every other run: 16 hexadecimal digits."""
        return _digest(self.to_json())

    @property
    def model_key(self) -> str:
        """The same for runs that share their model."""
        return _digest(self.train.to_json())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All runs of a sweep, each once."""

    runs: tuple[Run, ...]

    @classmethod
    def of(
        cls, axes: Axes, train: Mapping[str, Any] | None = None, prunes: list[Mapping[str, Any]] | None = None
    ) -> "Plan":
        """The product of the lists. train: fields of TrainConfig for all; prunes: fields of PruneConfig, one way each.

        Raises ValueError for an unknown task, fields that do not fit, and more than `MOST` runs.
        """
        ways = prunes or [{}]
        models = axes.widths, axes.densities, axes.seeds
        n = math.prod(map(len, (*models, axes.tasks, ways)))
        if n > MOST:
            raise ValueError(
                f"plan: got {n:,} runs; expected at most {MOST:,}. Shorten its lists, or make several plans."
            )
        for task in dict.fromkeys(axes.tasks):
            load_task(task)
        runs = [
            Run(task=task, train=trained, prune=PruneConfig.from_json({"seed": trained.seed, **way}))
            for trained in (_training(dict(train or {}), *model) for model in product(*models))
            for task, way in product(axes.tasks, ways)
        ]
        return cls(runs=tuple({run.key: run for run in runs}.values()))


def load_plan(path: str | Path) -> Plan:
    """The plan of a TOML file: `tasks`, `widths`, `densities`, `seeds`, a table `[train]` and tables `[[prune]]`.

    Raises UnreadableError (a ValueError) that names the key, for a file that is no such plan.

    Examples:
        >>> from pathlib import Path
        >>> _ = Path("plan.toml").write_text('tasks = ["quotes"]\\nseeds = [0, 1]\\n')
        >>> len(circuits.sweep.load_plan("plan.toml").runs)
        2
    """
    with reading(path, "a TOML file of a sweep: tasks, widths, densities, seeds, [train], [[prune]]"):
        try:
            data = tomllib.loads(text_of_file(path))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"TOML: {error}; expected key = value lines.") from None
        train, prunes = data.pop("train", {}), data.pop("prune", [{}])
        if not isinstance(train, dict):
            raise ValueError(f"train: got {train!r}; expected a table, [train], with fields of TrainConfig.")
        if not (isinstance(prunes, list) and prunes and all(isinstance(way, dict) for way in prunes)):
            raise ValueError(
                f"prune: got {prunes!r}; expected tables, [[prune]], with fields of PruneConfig."
            )
        return Plan.of(Axes.from_json(data), train, prunes)


def _training(fields: dict[str, Any], width: int, density: float, seed: int) -> TrainConfig:
    for name, axis in (("density", "densities"), ("seed", "seeds")):
        if name in fields:
            raise ValueError(
                f"train: got {name}; expected it in the list {axis}, which every run takes it from."
            )
    start = TrainConfig.toy(seed=seed).to_json()
    check_keys(TrainConfig, fields)
    shape = fields.pop("model", {})
    if not isinstance(shape, dict) or "d_model" in shape:
        raise ValueError(f"train.model: got {shape!r}; expected a table without d_model, which widths gives.")
    model = {**start["model"], **shape, "d_model": width}
    return TrainConfig.from_json({**start, **fields, "density": density, "model": model})


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
