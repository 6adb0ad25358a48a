"""The commands that make circuits: demo, prune and show."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from circuits.commands.shared import (
    HF,
    AsJson,
    Force,
    OtherModel,
    OwnCorpus,
    OwnPairs,
    Seed,
    SeedOver,
    answer,
    check_apart,
    check_free,
    clear_errors,
    configured,
    console,
    load_subject,
    load_task_of,
    report_beside,
    report_path,
    say_replaced,
    show_table,
    sites_of,
)
from circuits.files import check_writable


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
        from circuits.commands.demo import FILES, run_demo

        say_replaced(*(out / name for name in FILES))
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
        str | None,
        typer.Option(
            help="margins (the model's, with their sizes; the default), task (right answers), or faithful."
        ),
    ] = None,
    target_loss: Annotated[
        float | None,
        typer.Option(help="Loss that the circuit may reach (by default 0.04 for margins, else 0.15 nats)."),
    ] = None,
    corpus: OwnCorpus = None,
    config: Annotated[Path | None, typer.Option(help="JSON with any fields of PruneConfig.")] = None,
    seed: SeedOver = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Find the smallest circuit that still solves a task, and save it."""
    out = out or Path("out") / f"{Path(task).stem}.json"
    with clear_errors():
        from circuits.pruning.config import PruneConfig
        from circuits.pruning.procedure import prune as run

        where = _one_model(checkpoint, model)
        given = {"objective": objective, "target_loss": target_loss, "seed": seed}
        settings = configured(PruneConfig.from_json, config, given)
        check_apart(out, where, config, task)
        check_free(out, force=force)
        found, text = load_subject(where, corpus, sites)
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
    runs it; with the report of `circuits trust` beside it, the page says how far it can be trusted.
    """
    page = page or circuit.with_suffix(".html")
    with clear_errors():
        from circuits.circuit.circuit import Circuit
        from circuits.plots import demo_page

        check_apart(page, circuit, model, task, report_path(circuit), name="page")
        found = Circuit.load(circuit)
        say_replaced(page)
        subject = _given(found, model) if model else _model_of(found, circuit.parent)
        if not _explore(page, found, subject, report_beside(circuit, found), task):
            demo_page(page, found, found.summary(), search_figures(found))
    answer({"page": str(page), **found.summary()}, as_json, title=f"The circuit for {found.task}")
    if not as_json:
        _print_nodes(found)


def search_figures(circuit: Any) -> list[Any]:
    """How a circuit was found, as its file keeps it: one figure, or none. Raises ValueError for no such history."""
    from circuits.plots import pruning_figure

    return [pruning_figure(circuit.history)] if circuit.history else []


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


def _explore(page: Path, circuit: Any, model: Any, trust: Any, pairs: str | None = None) -> bool:
    """Write the explorer; False without a model, and where no page can run the circuit (which is said)."""
    from circuits.explorer import circuit_view
    from circuits.explorer.page import page_html
    from circuits.files import write_text

    if model is None:
        return False
    try:
        own = circuit.criterion.load_task
        task = load_task_of(model.tokenizer, pairs) if pairs else own(model.tokenizer)
        text = page_html(circuit_view(model, circuit, task, trust=trust))
    except ValueError as error:
        console(stderr=True).print(f"The picture stands alone: the page cannot run this circuit. {error}")
        return False
    write_text(page, text)
    return True


def _print_nodes(circuit: Any) -> None:
    from circuits.circuit.nodes import NodeFacts

    rows = []
    for node in circuit.nodes:
        facts = circuit.facts.get(node, NodeFacts(math.nan, math.nan))
        rows.append(
            (str(node.layer), node.site, str(node.index), f"{facts.mean:+.3f}", f"{facts.effect:+.3f}")
        )
    show_table("Nodes", ("layer", "site", "index", "mean", f"effect{circuit.criterion.unit}"), rows)
