"""The command line: train, prune and show, and the demo that does all three.

Heavy modules are imported inside the commands, so that `circuits --help` answers at once.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Train weight-sparse transformers, extract their circuits, and look at them.

A first session:

    circuits demo                                  # everything once, into out/demo/

    circuits train --out out/mini.safetensors      # a weight-sparse model of mini-Python

    circuits prune out/mini.safetensors --task quotes --out out/quotes.json

    circuits show out/quotes.json                  # a table here, a picture in out/quotes.html
""",
)
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")
]
Seed = Annotated[int, typer.Option(help="Same seed, same bits.")]


@app.command()
def demo(
    task: Annotated[str, typer.Option(help="quotes or brackets.")] = "quotes",
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for report.json, circuit.json, circuit.html.")] = Path(
        "out/demo"
    ),
    as_json: AsJson = False,
) -> None:
    """Train on mini-Python, extract one circuit, write a report, the circuit and a page with its picture."""
    with _clear_errors():
        from circuits.demo import run_demo

        report = run_demo(task=task, seed=seed, out=out)
    _answer(report, as_json, title=f"The circuit for {task}")
    if not as_json:
        Console().print(f"Open [bold]{out / 'circuit.html'}[/bold] in a browser to look at the circuit.")


@app.command()
def train(
    corpus: Annotated[
        str, typer.Option(help="mini (characters) or python (the standard library, BPE).")
    ] = "mini",
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")] = Path("out/model.safetensors"),
    minutes: Annotated[
        float | None, typer.Option(help="Stop by the clock (then bits are not repeatable).")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    density: Annotated[float | None, typer.Option(help="Final density, in (0, 1].")] = None,
    recipe: Annotated[str, typer.Option(help="toy, paper or dense.")] = "toy",
    config: Annotated[Path | None, typer.Option(help="JSON with any fields of TrainConfig.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Checkpoint of an interrupted run of the same config.")
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train a weight-sparse transformer and save it. Ctrl-C leaves a checkpoint that --resume takes up."""
    with _clear_errors():
        from circuits.train import TrainConfig
        from circuits.train import train as run

        presets: dict[str, Callable[..., TrainConfig]] = {
            "toy": TrainConfig.python if corpus == "python" else TrainConfig.toy,
            "paper": TrainConfig.paper,
            "dense": TrainConfig.dense,
        }
        if recipe not in presets:
            raise ValueError(f"recipe: got {recipe!r}; expected one of {sorted(presets)}.")
        chosen = {"steps": steps, "minutes": minutes, "density": density}
        changes: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
        if config is not None:
            changes |= _read_json(config)
        settings = TrainConfig.from_json({**presets[recipe](corpus=corpus, seed=seed).to_json(), **changes})
        result = run(settings, checkpoint=out.with_suffix(".interrupted.safetensors"), resume=resume)
        result.save(out)
    report = {
        "model": str(out),
        "val_loss": result.val_loss,
        "density": result.model.density(),
        "n_nonzero": result.model.n_nonzero(),
        "steps": result.history[-1]["step"],
        "seconds": result.seconds,
    }
    _answer(report, as_json, title=f"Trained on {corpus}")


@app.command()
def prune(
    model: Annotated[Path, typer.Argument(help="Checkpoint that `circuits train` wrote.")],
    task: Annotated[
        str, typer.Option(help="A task of the model's corpus, such as quotes or brackets.")
    ] = "quotes",
    out: Annotated[Path | None, typer.Option(help="Circuit to write (default: out/TASK.json).")] = None,
    target_loss: Annotated[float, typer.Option(help="Task loss that the circuit may reach, in nats.")] = 0.15,
    config: Annotated[Path | None, typer.Option(help="JSON with any fields of PruneConfig.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Find the smallest circuit that still solves a task, and save it."""
    out = out or Path("out") / f"{task}.json"
    with _clear_errors():
        from circuits.prune import PruneConfig
        from circuits.prune import prune as run
        from tasks import load_task

        found, corpus = _load_model(model)
        changes = _read_json(config) if config else {}
        settings = PruneConfig.from_json({"target_loss": target_loss, "seed": seed, **changes})
        circuit = run(found, load_task(task), settings, corpus=corpus)
        circuit.save(out)
    _answer({"circuit": str(out), **circuit.summary()}, as_json, title=f"The circuit for {task}")


@app.command()
def show(
    circuit: Annotated[Path, typer.Argument(help="Circuit that `circuits prune` wrote.")],
    page: Annotated[
        Path | None, typer.Option(help="HTML page to write (default: beside the circuit).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a circuit and write a page with its picture, to be opened in any browser, offline."""
    page = page or circuit.with_suffix(".html")
    with _clear_errors():
        from circuits.circuit import Circuit
        from circuits.plots import demo_page, pruning_figure

        found = Circuit.load(circuit)
        history = found.metrics.get("history")
        demo_page(page, found, found.summary(), [pruning_figure(history)] if history else [])
    _answer({"page": str(page), **found.summary()}, as_json, title=f"The circuit for {found.task}")
    if not as_json:
        _print_nodes(found)


@app.command()
def bridge(
    dense: Annotated[Path, typer.Argument(help="Checkpoint of the dense model.")],
    sparse: Annotated[
        Path | None,
        typer.Argument(help="Checkpoint of the sparse model; none: train one beside the bridges."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Bridges to write.")] = Path("out/bridges.safetensors"),
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    config: Annotated[Path | None, typer.Option(help="JSON with any fields of BridgeConfig.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Fit bridges between a dense and a sparse model, and write a page with what they are worth."""
    with _clear_errors():
        from circuits.bridge import BridgeConfig
        from circuits.experiments.bridge_files import bridge_files

        changes = _read_json(config) if config else {}
        settings = BridgeConfig.from_json({"seed": seed, **changes})
        report = bridge_files(dense, sparse, out, config=settings, steps=steps)
    _answer(report, as_json, title="Bridges")


@app.command()
def steer(
    bridges: Annotated[Path, typer.Argument(help="Bridges that `circuits bridge` wrote.")],
    dense: Annotated[Path, typer.Argument(help="Checkpoint of the dense model.")],
    sparse: Annotated[Path, typer.Argument(help="Checkpoint of the sparse model.")],
    location: Annotated[str, typer.Option(help="embed, or a layer's attn or mlp, such as 1.attn.")],
    channel: Annotated[
        list[int] | None,
        typer.Option(help="Sparse channel to move, repeatable; none: the one that moves most."),
    ] = None,
    task: Annotated[str, typer.Option(help="Task whose prompts are steered.")] = "quotes",
    out: Annotated[Path, typer.Option(help="Curves to write.")] = Path("out/steering.json"),
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Move channels of the sparse model, carry the move across a bridge, and sweep its strength."""
    with _clear_errors():
        from circuits.experiments.bridge_files import steer_files

        report = steer_files(
            bridges, dense, sparse, out, task=task, location=location, channels=channel or (), seed=seed
        )
    _answer(report, as_json, title=f"Steering {task}")


@app.command()
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Few sizes and rounds: does it work?")] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Keep the results in docs/ and rewrite docs/benchmarks.md.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Time the sparse operations against plain PyTorch; no ratio without parity."""
    with _clear_errors():
        from circuits.bench import BenchConfig, cells, run_bench, write_pages
        from circuits.bench.table import COLUMNS

        if quick and write:
            raise ValueError("write: quick numbers are too rough to keep; leave out --quick.")
        err = Console(stderr=True)
        config = BenchConfig.quick() if quick else BenchConfig()
        report = run_bench(config, log=lambda row: err.print(f"{row.name} {row.d_model} {row.density:.4g}"))
        report = write_pages(report) if write else report
    if as_json:
        _answer(report, as_json, title="Benchmark")
        return
    table = Table(*COLUMNS, title="Benchmark: medians, quartiles in brackets")
    for row in report["rows"]:
        table.add_row(*cells(row))
    Console().print(table)


def main() -> None:
    """Entry point of the `circuits` command."""
    app()


def _load_model(path: Path) -> tuple[Any, Any]:
    from circuits.checkpoint import load_checkpoint
    from tasks import load_corpus

    saved = load_checkpoint(path)
    corpus = load_corpus(saved.meta.get("train", {}).get("corpus", "mini"))
    saved.model.tokenizer = corpus.tokenizer
    return saved.model, corpus


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"config: cannot read {path} ({error}); expected a file with one JSON object."
        ) from None


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Bad input: one clear line, status 2. Ctrl-C: the place to resume from, status 130."""
    try:
        yield
    except ValueError as error:
        Console(stderr=True).print(f"[bold red]error[/bold red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt as stop:
        Console(stderr=True).print(str(stop) or "Interrupted.", highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None


def _answer(report: dict[str, Any], as_json: bool, *, title: str) -> None:
    if as_json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
        return
    table = Table(title=title, show_header=False)
    for key, value in report.items():
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)


def _print_nodes(circuit: Any) -> None:
    table = Table("layer", "site", "index", "mean", "effect (nats)", title="Nodes")
    for node in circuit.nodes:
        facts = circuit.facts[node]
        table.add_row(
            str(node.layer), node.site, str(node.index), f"{facts.mean:+.3f}", f"{facts.effect:+.3f}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
