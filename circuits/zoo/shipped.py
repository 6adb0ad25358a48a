"""Small models that ship with the package, so that a question need not wait for training: a folder here for each.

In it are model.safetensors; card.json, which says what it is, how it was made and what was measured; and, where there
are such, TASK.json and TASK.trust.json, a circuit and its trust report, and bridges.safetensors, bridges from a dense
model of the zoo. All of it is written by `python -m docs.experiments.zoo make NAME`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

from circuits.bridges import BridgeSet, load_bridges
from circuits.bridges.measure import bridge_metrics
from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import run_circuit
from circuits.circuit.score import margins, score_margins, task_score
from circuits.files import read_json
from circuits.model.text import text_of
from circuits.model.transformer import SparseTransformer
from circuits.training.loop import Training
from circuits.training.saved import load_model_alone
from circuits.trust.report import TrustReport
from tasks import Corpus, Task, load_task_for
from tasks.near import unknown

T = TypeVar("T")
FOLDER = Path(__file__).parent
CARD, MODEL, BRIDGES = "card.json", "model.safetensors", "bridges.safetensors"
N_PROMPTS = 256
"""Pairs of test prompts, and validation windows, that a model is measured on."""


@dataclass(frozen=True, kw_only=True)
class ZooModel:
    """A model that ships, with the circuits, trust reports and bridges that ship with it."""

    name: str
    "That of `circuits.load`."
    model: SparseTransformer
    "In eval mode, its tokenizer attached."
    card: Mapping[str, Any] = field(repr=False)
    "What it is (about), the command that remakes it, seeds, settings (train, prune), and metrics, as JSON types."
    circuits: Mapping[str, Circuit] = field(default_factory=dict)
    "By the name of their task."
    reports: Mapping[str, TrustReport] = field(default_factory=dict)
    "Trust reports of those circuits, by the name of their task."
    bridges: BridgeSet | None = None
    "Between a dense model of the zoo and this one."

    @property
    def path(self) -> Path:
        """The file of the model, for the command line; what else ships with it lies beside."""
        return FOLDER / self.name / MODEL

    @property
    def task(self) -> Task:
        """The first task that it was measured on."""
        name, options = next(iter(self.card["tasks"].items()))
        return load_task_for(self.model.tokenizer, name, **options)

    @property
    def circuit(self) -> Circuit:
        """The first circuit that ships with it. Raises ValueError where none does."""
        return _first(self.circuits, "circuit", self.name)

    @property
    def report(self) -> TrustReport:
        """The first trust report that ships with it. Raises ValueError where none does."""
        return _first(self.reports, "report", self.name)

    @cached_property
    def corpus(self) -> Corpus:
        """The text that it was trained on; of models made by hand, text that their task is from."""
        return text_of(self.model)

    @cached_property
    def training(self) -> Training:
        """The run that made it, with its history. Raises UnreadableError (a ValueError) where no plain run did."""
        return Training.load(self.path)

    def __repr__(self) -> str:
        return f"ZooModel({self.name!r}: {self.card['about']}; {said_of(self.card)})"


def load(name: str) -> ZooModel:
    """A model that ships with the package, and its circuits, trust reports and bridges; `circuits zoo` lists them.

    Raises ValueError for an unknown name, with the nearest.

    Examples:
        >>> found = circuits.load("quotes-128")
        >>> found.task.name, found.circuit.n_nodes, found.report.failed
        ('quotes', 21, [])
    """
    return gathered(name, _card(name))


def gathered(name: str, card: Mapping[str, Any]) -> ZooModel:
    """The model of that name with all that its card says is beside it."""
    model, dense = _model(name), card.get("dense")
    paths = {task: FOLDER / name / f"{task}.json" for task in card["prune"]}
    return ZooModel(
        name=name,
        model=model,
        card=card,
        circuits={task: Circuit.load(path) for task, path in paths.items()},
        reports={task: TrustReport.load(FOLDER / name / f"{task}.trust.json") for task in card["trust"]},
        bridges=load_bridges(FOLDER / name / BRIDGES, dense=_model(dense), sparse=model) if dense else None,
    )


def names() -> list[str]:
    """The models that ship, in alphabetical order.

    Examples:
        >>> "quotes-128" in circuits.zoo.names()
        True
    """
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{CARD}"))


def catalogue() -> list[dict[str, Any]]:
    """What ships: for each model its name, kilobytes on disk, what loads it, and its card.

    Examples:
        >>> [row["loads"] for row in circuits.zoo.catalogue() if row["name"] == "quotes-128"]
        ["circuits.load('quotes-128')"]
    """
    return [
        {
            "name": name,
            "kilobytes": sum(path.stat().st_size for path in (FOLDER / name).iterdir()) // 1000,
            "loads": f"circuits.load({name!r})",
            **_card(name),
        }
        for name in names()
    ]


def said_of(card: Mapping[str, Any]) -> str:
    """A card in a line: how well the model does its tasks, and what else ships with it."""
    metrics = card["metrics"]
    does = [f"{task} {score['task_accuracy']:.1%}" for task, score in metrics["tasks"].items()]
    kept = [f"circuit of {task} ({c['n_nodes']} nodes)" for task, c in metrics["circuits"].items()]
    trust = [f"trust {said['passed']} of {said['counted']}" for said in card["trust"].values()]
    return ", ".join([*does, *kept, *trust, *(["bridges"] if card.get("dense") else [])])


def measured(found: ZooModel) -> dict[str, Any]:
    """What the card says under `metrics`, measured anew.

    Task losses (nats) and accuracies of the whole model and of each circuit, uncalibrated, on test prompts; of bridges,
    the least share of the loss that a hybrid recovers over all locations, each way.

    Examples:
        >>> metrics = circuits.zoo.measured(circuits.load("quotes-128"))
        >>> metrics["tasks"]["quotes"]["task_accuracy"]
        1.0
    """
    asked = found.card["tasks"].items()
    tasks = {name: load_task_for(found.model.tokenizer, name, **options) for name, options in asked}
    return {
        "n_nonzero": found.model.n_nonzero(),
        "density": found.model.density(),
        "tasks": {name: _whole(found.model, task) for name, task in tasks.items()},
        "circuits": {name: _alone(found.model, one) for name, one in found.circuits.items()},
        "bridges": {} if found.bridges is None else _recovered(found.bridges, found.corpus),
    }


def _whole(model: SparseTransformer, task: Task) -> dict[str, float]:
    score = task_score(model, task.batch(N_PROMPTS, split="test", seed=0))
    return {"task_loss": score.loss, "task_accuracy": score.accuracy}


def _alone(model: SparseTransformer, circuit: Circuit) -> dict[str, int | float]:
    prompts = circuit.criterion.load_task(model.tokenizer).batch(N_PROMPTS, split="test", seed=0)
    targets = prompts.tokens_and_targets()
    with torch.no_grad():
        score = score_margins(margins(run_circuit(model, circuit, targets.tokens), targets))
    return {
        "n_nodes": circuit.n_nodes,
        "n_edges": circuit.n_edges,
        "task_loss": score.loss,
        "task_accuracy": score.accuracy,
    }


def _recovered(bridges: BridgeSet, corpus: Corpus) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    windows = corpus.windows(N_PROMPTS, bridges.sparse.config.n_ctx, split="val", generator=generator)
    rows = bridge_metrics(bridges, windows)["locations"]
    ways = ("recovered_dense_to_sparse", "recovered_sparse_to_dense")
    return {f"min_{way}": min(row[way] for row in rows if row[way] is not None) for way in ways}


def _card(name: str) -> dict[str, Any]:
    if not isinstance(name, str) or name not in names():
        raise ValueError(unknown("name", name, names()))
    return read_json(FOLDER / name / CARD, name="name", expected="the card of a model that ships")


def _model(name: str) -> SparseTransformer:
    return load_model_alone(FOLDER / name / MODEL)


def _first(found: Mapping[str, T], what: str, name: str) -> T:
    if not found:
        raise ValueError(
            f"{what}: none ships with {name!r}. Make one: circuits.prune(model, task), trust_report."
        )
    return next(iter(found.values()))
