"""The models that ship: made, pruned, trusted and measured, and written into circuits/zoo, a folder each.

    python -m docs.experiments.zoo make NAME        -> circuits/zoo/NAME, the command that each card names
    python -m docs.experiments.zoo cards            -> every card.json, measured anew

What is there already and was made by the same settings stays as it is; remove the folder to make it anew.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch.nn import functional as F

from circuits.circuit.circuit import Circuit
from circuits.files import write_results
from circuits.handmade import build
from circuits.model.checkpoint import load_checkpoint, save_checkpoint
from circuits.model.transformer import SparseTransformer
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.training.config import TrainConfig
from circuits.training.saved import load_model_alone, load_trained
from circuits.training.updates import Updates
from circuits.trust import TrustConfig, TrustReport, trust_report
from circuits.zoo.shipped import BRIDGES, CARD, FOLDER, MODEL, gathered, measured
from docs.experiments import encdec, experts, python_models
from docs.experiments.bridge_models import BridgeSetup, prepare
from docs.experiments.induction import induction_config, repeated_letters
from docs.experiments.runs import counted, kept_training
from docs.experiments.turbo import PRUNING
from tasks import load_task

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)
OUT = Path("out/zoo")
FIRST_LETTER = 1
"""Id of the first letter in the tokens of the induction task, after the end of a line."""
Circuits = Callable[[Path, str], Circuit]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one model is made, and what is asked of it."""

    about: str
    "What it is, in a line."
    make: Callable[[Path], Any]
    "Writes its checkpoint to a path, unless one of these settings is there."
    tasks: Mapping[str, Mapping[str, Any]]
    "What it is measured on: options of each task, by name."
    circuits: Mapping[str, Circuits] = field(default_factory=dict)
    "What gives the circuit of a task, from the path of the checkpoint and the task's name."
    reports: tuple[str, ...] = ()
    "Tasks whose circuits get a trust report."
    dense: str | None = None
    "The model of the zoo on the other side of its bridges."
    seed: int = 0
    "Decides weights, batches and pruning."


def trained(config: TrainConfig) -> Callable[[Path], Any]:
    """By `circuits.train`."""
    return lambda path: kept_training(path, config)


def composed(seed: int) -> TrainConfig:
    """The toy recipe with DCFormer's attention, static and dynamic maps and both gates."""
    plain = TrainConfig.toy(seed=seed)
    return replace(plain, model=replace(plain.model, attention="compose", compose="full"))


def on_a_gpu(config: TrainConfig) -> Callable[[Path], Any]:
    """By `circuits.train` in TF32."""
    return lambda path: python_models.made(path, config)


def by_hand(name: str) -> Callable[[Path], Any]:
    """By `circuits.handmade.build`."""
    return lambda path: save_checkpoint(path, build(name).model, meta={"handmade": name})


def bridged(side: str, **setup: Any) -> Callable[[Path], Any]:
    """One of two models that were trained for bridges between them, and these beside the sparse one."""

    def make(path: Path) -> None:
        if path.exists():
            return
        folder = OUT / "-".join(map(str, setup.values()))
        prepare(BridgeSetup.toy(**setup), folder)
        shutil.copy(folder / f"{side}.safetensors", path)
        if side == "sparse":
            shutil.copy(folder / BRIDGES, path.with_name(BRIDGES))

    return make


def induction(path: Path) -> None:
    """As in `docs.experiments.induction`, in the tokens of the induction task: scored on what was said before."""
    if path.exists():
        return
    tokenizer, config = load_task("induction").tokenizer, induction_config(0)
    config = replace(config, model=replace(config.model, d_vocab=tokenizer.d_vocab))
    model = SparseTransformer(config.model, seed=0, tokenizer=tokenizer)
    updates, generator = Updates(model, config), torch.Generator().manual_seed(0)
    for step in range(config.steps):
        letters, again = repeated_letters(config.batch_size, generator)
        tokens, where = letters + FIRST_LETTER, again[:, 1:]
        updates(F.cross_entropy(model(tokens)[:, :-1][where], tokens[:, 1:][where]), step / config.steps)
    save_checkpoint(path, model.eval(), meta={"train": config.to_json()})


def pruned(config: PruneConfig | None = None) -> Circuits:
    """By `circuits.prune`, unless a circuit of this model and these settings is there."""

    def find(path: Path, task: str) -> Circuit:
        kept, asked = path.with_name(f"{task}.json"), config or PruneConfig()
        model, corpus = load_trained(path)
        if kept.exists():
            found = Circuit.load(kept)
            how = PruneConfig.from_json(found.metrics["prune"])
            if (found.model_hash, how) == (model.fingerprint(), asked):
                return found
        return prune(model, load_task(task), asked, corpus=corpus, progress=False)

    return find


def known(path: Path, task: str) -> Circuit:
    """The true circuit of a model made by hand."""
    return build(task).circuit


TOY: Mapping[str, Mapping[str, Any]] = {"quotes": {}, "brackets": {}}
PYTHON = ("bracket_brace", "fstring_brace", "while_return_true", "lambda_func", "for_while")
"""Choices that the sparse model of real Python makes right."""
EXPLAINED = ("bracket_brace",)
"""Those that ship with a circuit."""
SHORT, LONG = {"seed": 0, "steps": 2500, "n_ctx": 40}, {"seed": 0, "steps": 1500, "n_ctx": 96}
RECIPES = {
    "mini-python": Recipe(
        about="the toy recipe on mini-Python: one layer, 128 wide, density 1 %",
        make=trained(TrainConfig.toy(seed=0)),
        tasks=TOY,
        circuits={task: pruned(PRUNING[task]) for task in TOY},
        reports=("quotes",),
    ),
    "quotes-128": Recipe(
        about="the toy recipe again, with a circuit that orders prompts as the model does",
        make=trained(TrainConfig.toy(seed=35)),
        tasks=TOY,
        circuits={"quotes": pruned(PruneConfig(seed=35, target_order=0.8))},
        reports=("quotes",),
        seed=35,
    ),
    "mini-python-dense": Recipe(
        about="a dense model of mini-Python, windows of 40 tokens",
        make=bridged("dense", **SHORT),
        tasks=TOY,
    ),
    "mini-python-sparse": Recipe(
        about="a sparse model trained together with bridges from mini-python-dense",
        make=bridged("sparse", **SHORT),
        tasks=TOY,
        dense="mini-python-dense",
    ),
    "mini-python-long-dense": Recipe(
        about="a dense model of mini-Python, windows of 96 tokens",
        make=bridged("dense", **LONG),
        tasks=TOY,
    ),
    "mini-python-long-sparse": Recipe(
        about="a sparse model trained together with bridges from mini-python-long-dense",
        make=bridged("sparse", **LONG),
        tasks=TOY,
        dense="mini-python-long-dense",
    ),
    "experts": Recipe(
        about="the toy recipe with 16 sparse experts, 2 of them active, for a quarter of the steps",
        make=trained(replace(experts.config(0), steps=500)),
        tasks=TOY,
    ),
    "composed": Recipe(
        about="the toy recipe with heads that are composed dynamically, before and after the softmax",
        make=trained(composed(0)),
        tasks=TOY,
    ),
    "induction": Recipe(
        about="two dense layers that learnt induction on random letters",
        make=induction,
        tasks={"induction": {}},
    ),
    "copy": Recipe(
        about="the Transformer of 2017, small: encoder and decoder that copy letters, dense",
        make=trained(encdec.original("copy", 0)),
        tasks={"copy": {}},
    ),
    "translate": Recipe(
        about="a sparse encoder-decoder that translates with gender, density 8 %",
        make=trained(encdec.sparse(4)),
        tasks={"gender": {}},
        circuits={"gender": pruned(encdec.PRUNINGS["margins"])},
        reports=("gender",),
    ),
    "python-sparse": Recipe(
        about="a sparse model of real Python: 4 layers, 512 wide, density 7 %, trained on a GPU",
        make=on_a_gpu(python_models.sparse(1)),
        tasks={task: {} for task in PYTHON},
        circuits=dict.fromkeys(EXPLAINED, pruned(python_models.PRUNING)),
        reports=EXPLAINED,
        seed=1,
    ),
    "python-dense": Recipe(
        about="its dense twin: 4 layers, 192 wide, the same text",
        make=on_a_gpu(python_models.dense(0)),
        tasks={task: {} for task in PYTHON},
    ),
    "quotes-handmade": Recipe(
        about="compiled by hand: closes quotes, the circuit known, hidden among decoys",
        make=by_hand("quotes"),
        tasks={"quotes": {}},
        circuits={"quotes": known},
        reports=("quotes",),
    ),
    "brackets-handmade": Recipe(
        about="compiled by hand: counts brackets, the circuit known, hidden among decoys",
        make=by_hand("brackets"),
        tasks={"brackets": {"length": 2}},
        circuits={"brackets": known},
        reports=("brackets",),
    ),
}
"""Every model that ships, by its name."""


@app.command()
def make(name: Annotated[str, typer.Argument(help=f"One of {', '.join(RECIPES)}.")]) -> None:
    """Make a model, its circuits and their trust reports, and write its card."""
    recipe, folder = RECIPES[name], FOLDER / name
    folder.mkdir(exist_ok=True)
    started = time.perf_counter()
    recipe.make(folder / MODEL)
    for task, find in recipe.circuits.items():
        find(folder / MODEL, task).save(folder / f"{task}.json")
        if task in recipe.reports:
            _trust(folder, task, recipe.seed)
    write_card(name, time.perf_counter() - started)


@app.command()
def cards() -> None:
    """Measure every model that ships, and write its card; nothing is trained or pruned."""
    for name in RECIPES:
        write_card(name)


def write_card(name: str, seconds: float = 0.0) -> None:
    """Write what is known of a model: how it was made, and what is measured now."""
    recipe, folder = RECIPES[name], FOLDER / name
    meta = load_checkpoint(folder / MODEL).meta
    reports = {task: TrustReport.load(folder / f"{task}.trust.json") for task in recipe.reports}
    numbers: dict[str, Any] = {
        "about": recipe.about,
        "tasks": recipe.tasks,
        "train": meta.get("train"),
        "model": load_model_alone(folder / MODEL).config.to_json(),
        "prune": {
            task: Circuit.load(folder / f"{task}.json").metrics.get("prune") for task in recipe.circuits
        },
        "trust": {task: counted(report) for task, report in reports.items()},
        "dense": recipe.dense,
    }
    numbers["metrics"] = measured(gathered(name, numbers))
    write_results(
        folder / CARD,
        command=f"python -m docs.experiments.zoo make {name}",
        seeds=[recipe.seed],
        seconds=meta.get("seconds", seconds),
        numbers=numbers,
    )
    Console().print(name, numbers["metrics"])


def _trust(folder: Path, task: str, seed: int) -> None:
    """The report on a circuit, unless there is one of this circuit."""
    path, circuit = folder / f"{task}.trust.json", Circuit.load(folder / f"{task}.json")
    about = (circuit.model_hash, circuit.n_nodes, circuit.n_edges)
    if path.exists():
        kept = TrustReport.load(path)
        if (kept.model_hash, kept.n_nodes, kept.n_edges) == about:
            return
    model = load_model_alone(folder / MODEL)
    trust_report(model, circuit, config=TrustConfig(seed=seed)).save(path)


if __name__ == "__main__":
    app()
