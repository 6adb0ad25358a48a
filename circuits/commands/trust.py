"""The commands that ask whether circuits are real: trust for one circuit, verify for the method itself."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from circuits.commands.shared import (
    HF,
    AsJson,
    OtherModel,
    OwnCorpus,
    OwnPairs,
    SeedOver,
    answer,
    check_apart,
    clear_errors,
    configured,
    console,
    load_subject,
    load_task_of,
    report_path,
    say_replaced,
    show_table,
    sites_of,
)
from circuits.files import check_writable


def trust(
    circuit: Annotated[Path, typer.Argument(help="Circuit that `circuits prune` wrote.")],
    model: OtherModel = None,
    task: OwnPairs = None,
    page: Annotated[
        Path | None, typer.Option(help="HTML page to write (default: CIRCUIT.trust.html).")
    ] = None,
    prune_seeds: Annotated[
        int | None,
        typer.Option(help="Prune this many times more, and compare the circuits (slow; default: 0)."),
    ] = None,
    corpus: OwnCorpus = None,
    config: Annotated[Path | None, typer.Option(help="JSON with any fields of TrustConfig.")] = None,
    seed: SeedOver = None,
    as_json: AsJson = False,
) -> None:
    """Is the circuit what the model uses? Every check with its meaning, value, baseline and verdict.

    Its model is the checkpoint beside the circuit that fits it, unless --model says otherwise. The report is kept as
    CIRCUIT.trust.json, from which `circuits show` puts it on the circuit's page.
    """
    page = page or circuit.with_suffix(".trust.html")
    with clear_errors():
        from circuits.circuit.circuit import Circuit
        from circuits.model.checkpoint import find_checkpoint
        from circuits.plots import trust_page
        from circuits.trust import TrustConfig, trust_report

        found = Circuit.load(circuit)
        path = model or str(find_checkpoint(circuit.parent, found.model_hash))
        loaded, text = load_subject(path, corpus, sites_of(found) if path.startswith(HF) else None)
        asked = load_task_of(loaded.tokenizer, task) if task else None
        settings = configured(TrustConfig.from_json, config, {"seed": seed, "prune_seeds": prune_seeds})
        check_apart(page, circuit, path, config, task, report_path(circuit), name="page")
        check_apart(report_path(circuit), path, config, task, name="circuit")
        check_writable(page, name="page")
        check_writable(report_path(circuit), name="circuit")
        say_replaced(page)
        report = trust_report(loaded, found, asked, config=settings, corpus=text)
        trust_page(page, report)
        report.save(report_path(circuit))
    if as_json:
        answer(
            {"circuit": str(circuit), "model": str(path), "page": str(page), **report.to_json()},
            True,
            title="",
        )
        return
    _print_report(report)
    show = f"circuits show {circuit}"
    console().print(
        Text.assemble("With figures: ", (str(page), "bold"), "; on the circuit's page: ", (show, "bold"))
    )


def verify(
    seeds: Annotated[int, typer.Option(help="Sets of decoys for each model.")] = 10,
    first: Annotated[int, typer.Option(help="The first of them.")] = 0,
    models: Annotated[
        list[str] | None, typer.Option(help="A hand-made model, repeatable (default: all of them).")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Keep the results in docs/results/ground_truth.json.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take what an interrupted run left in out/ground_truth/ as done.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Prove on this machine that pruning returns circuits that are known: models compiled by hand, among decoys."""
    with clear_errors():
        from circuits.handmade.proof import EVERY, RESULTS
        from circuits.handmade.proof import verify as run

        if write and models and set(models) != set(EVERY):
            raise ValueError("write: a part of the models is not the proof; leave out --models.")
        if write:
            check_writable(RESULTS, name="write")
        err = console(stderr=True)
        report = run(seeds, first=first, models=models or EVERY, resume=resume, write=write, log=err.print)
    if as_json:
        answer(report, True, title="")
    else:
        _print_recovery(report)
        kept = f"Kept in {RESULTS}." if write else "Nothing was kept: --write does, from a checkout."
        console(stderr=True).print(kept, highlight=False)


def _print_report(report: Any) -> None:
    colours = {"pass": "green", "fail": "bold red"}
    rows = [
        (
            Text(entry.verdict, colours.get(entry.verdict, "dim")),
            entry.name,
            *(f"{number} {entry.unit}".strip() for number in entry.shown()),
            entry.meaning,
        )
        for entry in report.entries
    ]
    show_table(f"The circuit for {report.task}", ("", "item", "value", "baseline", "meaning"), rows)
    console().print(report.verdict, highlight=False)


def _print_recovery(report: dict[str, Any]) -> None:
    methods = list(report["methods"])
    rows = []
    for name, entry in report["per_model"].items():
        shares = [f"{entry['methods'][method]['precision']:.2f}" for method in methods]
        counts = (str(entry["n_nodes"]), str(entry["n_edges"]), f"{entry['recovered']} of {entry['total']}")
        rows.append((name, *counts, *shares))
    show_table("Share of true nodes found", ("model", "nodes", "edges", "exact", *methods), rows)
    console().print(
        f"{report['recovered']} of {report['total']} circuits recovered exactly, nodes and edges.",
        highlight=False,
    )
