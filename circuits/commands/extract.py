"""The commands that make circuits: demo, train, prune and show."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from circuits.commands.shared import (
    HF,
    AsJson,
    OtherModel,
    OwnCorpus,
    OwnPairs,
    Seed,
    answer,
    check_apart,
    clear_errors,
    configured,
    console,
    load_subject,
    load_task_of,
    load_text,
    sites_of,
)
from circuits.files import check_writable

NEWEST = "@newest"
"""What --resume stands for where no file follows it."""


class Resumable(TyperCommand):
    """A command whose --resume may stand alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments, with `NEWEST` after a --resume that stands alone."""
        following = [*args[1:], "--"]
        told = [
            [word, NEWEST] if word == "--resume" and after.startswith("--") else [word]
            for word, after in zip(args, following, strict=False)
        ]
        return list(super().parse_args(ctx, [word for words in told for word in words]))


def demo(
    task: Annotated[str, typer.Option(help="quotes or brackets.")] = "quotes",
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for report, circuit, and the two pages.")] = Path(
        "out/demo"
    ),
    as_json: AsJson = False,
) -> None:
    """Train on mini-Python, extract one circuit, write a report, the circuit and a page with its picture."""
    with clear_errors():
        from circuits.commands.demo import run_demo

        report = run_demo(task=task, seed=seed, out=out)
    answer(report, as_json, title=f"The circuit for {task}")
    if not as_json:
        page, static = (str(out / "explorer.html"), "bold"), str(out / "circuit.html")
        said = (
            "Open ",
            page,
            " in a browser to read, question and run the circuit; ",
            static,
            " is for print.",
        )
        console().print(Text.assemble(*said))


def train(
    corpus: Annotated[
        str,
        typer.Option(
            help="mini (characters), python (the standard library), packages (installed ones), or the path of a file "
            "or folder with text of your own."
        ),
    ] = "mini",
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="tokenizer.json, or a checkpoint that has one (default: a BPE trained on the text)."
        ),
    ] = None,
    d_vocab: Annotated[
        int | None, typer.Option(help="Tokens of the BPE for text of your own (default: 2,048).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")] = Path("out/model.safetensors"),
    minutes: Annotated[
        float | None, typer.Option(help="Stop by the clock (then bits are not repeatable).")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    density: Annotated[float | None, typer.Option(help="Final density, in (0, 1].")] = None,
    recipe: Annotated[str, typer.Option(help="toy, paper or dense.")] = "toy",
    config: Annotated[Path | None, typer.Option(help="JSON with any fields of TrainConfig.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with an interrupted run of the same config: its checkpoint, or (--resume alone) the newest "
            "that belongs to --out; where there is none, from the start."
        ),
    ] = None,
    keep_minutes: Annotated[float, typer.Option(help="Minutes between numbered checkpoints.")] = 1.0,
    keep_steps: Annotated[int | None, typer.Option(help="Keep one every so many steps as well.")] = None,
    keep_last: Annotated[int, typer.Option(help="How many numbered checkpoints stay.")] = 3,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train a weight-sparse transformer and save it; --resume takes up what was interrupted, or killed.

    Ctrl-C, SIGTERM and SIGHUP leave a checkpoint. While it runs, numbered ones lie in the folder OUT.checkpoints.
    """
    with clear_errors():
        from circuits.training.config import TrainConfig, with_new_names
        from circuits.training.loop import train as run
        from circuits.training.numbered import Keep, Numbered

        given = {"steps": steps, "minutes": minutes, "density": density}
        chosen = _preset(recipe, corpus)(corpus=corpus, seed=seed).to_json()
        chosen |= {key: value for key, value in given.items() if value is not None}
        settings = configured(TrainConfig.from_json, chosen, config, with_new_names)
        text = load_text(settings.corpus, tokenizer, d_vocab)
        check_writable(out)
        stopped = out.with_suffix(".interrupted.safetensors")
        keep = Keep(steps=keep_steps, minutes=keep_minutes, last=keep_last)
        numbered = Numbered(out.with_suffix(".checkpoints"), keep)
        left = [path for path in (*numbered.files(), stopped) if path.exists()]
        from_where = left if resume == Path(NEWEST) else resume
        result = run(settings, corpus=text, checkpoint=stopped, resume=from_where, numbered=numbered)
        result.save(out)
        numbered.clear()
    answer(_of_training(result, text, out), as_json, title=f"Trained on {text.name}")


def _of_training(result: Any, text: Any, out: Path) -> dict[str, Any]:
    """What there is to say of a finished run."""
    return {
        "model": str(out),
        "corpus": text.name,
        "n_tokens": len(text.train),
        "tokenizer": text.tokenizer.name,
        "val_loss": result.val_loss,
        "density": result.model.density(),
        "n_nonzero": result.model.n_nonzero(),
        "steps": result.history[-1]["step"],
        "seconds": result.seconds,
    }


def _preset(recipe: str, corpus: str) -> Callable[..., Any]:
    """What makes the settings of a recipe: for real text, the toy one is that of real Python."""
    from circuits.training.config import TrainConfig
    from tasks.corpus import CORPORA, MACHINE

    presets: dict[str, Callable[..., Any]] = {
        "toy": TrainConfig.toy if corpus in CORPORA and corpus not in MACHINE else TrainConfig.python,
        "paper": TrainConfig.paper,
        "dense": TrainConfig.dense,
    }
    if recipe not in presets:
        raise ValueError(f"recipe: got {recipe!r}; expected one of {sorted(presets)}.")
    return presets[recipe]


def prune(
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Checkpoint that `circuits train` wrote.")
    ] = None,
    model: OtherModel = None,
    task: Annotated[
        str,
        typer.Option(
            help="A task of the model's corpus, such as quotes or brackets; of a model of Hugging Face ioi, "
            "greater-than, docstring, pronouns, or a CSV file of pairs: clean, corrupt, answer, foil."
        ),
    ] = "quotes",
    sites: Annotated[
        list[str] | None,
        typer.Option(help="Of a model of Hugging Face, repeatable: attn_head, mlp_neuron, attn_v, ..."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Circuit to write (default: out/TASK.json).")] = None,
    objective: Annotated[
        str, typer.Option(help="margins (the model's, with their sizes), task (right answers), or faithful.")
    ] = "margins",
    target_loss: Annotated[
        float | None,
        typer.Option(help="Loss that the circuit may reach (by default 0.04 for margins, else 0.15 nats)."),
    ] = None,
    corpus: OwnCorpus = None,
    config: Annotated[Path | None, typer.Option(help="JSON with any fields of PruneConfig.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Find the smallest circuit that still solves a task, and save it."""
    out = out or Path("out") / f"{Path(task).stem}.json"
    with clear_errors():
        from circuits.pruning.config import PruneConfig
        from circuits.pruning.procedure import prune as run

        where = _one_model(checkpoint, model)
        found, text = load_subject(where, corpus, sites)
        chosen = {"objective": objective, "target_loss": target_loss, "seed": seed}
        settings = configured(PruneConfig.from_json, chosen, config)
        check_apart(out, Path(where))
        check_writable(out)
        circuit = run(found, load_task_of(found.tokenizer, task), settings, corpus=text)
        circuit.save(out)
    answer({"circuit": str(out), **circuit.summary()}, as_json, title=f"The circuit for {task}")


def _one_model(checkpoint: str | None, model: str | None) -> str:
    if (checkpoint is None) == (model is None):
        raise ValueError(
            "model: got none, or two; expected one: a checkpoint as the argument, or --model hf:FOLDER."
        )
    return checkpoint or model or ""


def show(
    circuit: Annotated[Path, typer.Argument(help="Circuit that `circuits prune` wrote.")],
    model: OtherModel = None,
    task: OwnPairs = None,
    page: Annotated[
        Path | None, typer.Option(help="HTML page to write (default: beside the circuit).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a circuit and write a page with its picture, to be opened in any browser, offline.

    Where its model is given or lies beside it, the weights of the circuit are held against the model's, and the page
    runs it.
    """
    page = page or circuit.with_suffix(".html")
    with clear_errors():
        from circuits.circuit.circuit import Circuit
        from circuits.plots import demo_page, pruning_figure

        check_apart(page, circuit, name="page")
        found = Circuit.load(circuit)
        subject = _given(found, model) if model else _model_of(found, circuit.parent)
        if not _explore(page, found, subject, task):
            history = found.metrics.get("history")
            demo_page(page, found, found.summary(), [pruning_figure(history)] if history else [])
    answer({"page": str(page), **found.summary()}, as_json, title=f"The circuit for {found.task}")
    if not as_json:
        _print_nodes(found)


def _given(circuit: Any, where: str) -> Any:
    """The circuit's model, by its path or as hf:FOLDER; ValueError where it is another."""
    from circuits.circuit.masked import check_belongs

    wrapped = where.startswith(HF)
    subject, _ = load_subject(where, sites=sites_of(circuit) if wrapped else None)
    check_belongs(subject, circuit)
    return subject


def _model_of(circuit: Any, folder: Path) -> Any:
    """The circuit's model if that is in the folder, else None; ValueError where its weights are not the circuit's."""
    from circuits.circuit.masked import check_belongs
    from circuits.model.checkpoint import find_checkpoint, load_checkpoint

    try:
        path = find_checkpoint(folder, circuit.model_hash)
    except ValueError:
        return None
    model = load_checkpoint(path).model
    check_belongs(model, circuit)
    return model


def _explore(page: Path, circuit: Any, model: Any, pairs: str | None = None) -> bool:
    """Write the explorer; False without a model, and where no page can run the circuit (which is said)."""
    from circuits.explorer import circuit_view
    from circuits.explorer.page import page_html
    from circuits.files import write_text

    if model is None:
        return False
    try:
        own = circuit.criterion.load_task
        task = load_task_of(model.tokenizer, pairs) if pairs else own(model.tokenizer)
        text = page_html(circuit_view(model, circuit, task))
    except ValueError as error:
        console(stderr=True).print(f"The picture stands alone: the page cannot run this circuit. {error}")
        return False
    write_text(page, text)
    return True


def _print_nodes(circuit: Any) -> None:
    from circuits.circuit.nodes import NodeFacts

    table = Table("layer", "site", "index", "mean", "effect (nats)", title="Nodes")
    for node in circuit.nodes:
        facts = circuit.facts.get(node, NodeFacts(math.nan, math.nan))
        table.add_row(
            str(node.layer), node.site, str(node.index), f"{facts.mean:+.3f}", f"{facts.effect:+.3f}"
        )
    console().print(table)
