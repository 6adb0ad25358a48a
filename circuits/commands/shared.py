"""What the commands share: their common options, clear errors, one way to answer."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuits import files
from circuits.reading import reading

C = TypeVar("C")
Names = Callable[[dict[str, Any]], dict[str, Any]]

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")
]
Seed = Annotated[int, typer.Option(help="Same seed, same bits.")]


def console(*, stderr: bool = False) -> Console:
    """Where commands print: text as it is, since a task or a file may be called `[red]` or `:smile:`.

    What is to have a style is a `Text`.
    """
    return Console(stderr=stderr, markup=False, emoji=False)


OwnCorpus = Annotated[
    str | None,
    typer.Option(
        "--corpus",
        help="Where the model's text is now, a path or a name (default: where it was in training).",
    ),
]


def load_model(path: Path, corpus: str | None = None) -> tuple[Any, Any]:
    """The model of a checkpoint, its tokenizer attached, and the text it was trained on."""
    from circuits.training.saved import load_trained

    return load_trained(path, corpus=corpus)


def load_text(corpus: str, tokenizer: Path | None, d_vocab: int | None) -> Any:
    """Training text; tokenizer: a tokenizer.json, or a checkpoint, whose model's it is."""
    from tasks import load_corpus

    return load_corpus(
        corpus, tokenizer=None if tokenizer is None else _tokenizer(tokenizer), d_vocab=d_vocab
    )


def _tokenizer(path: Path) -> Any:
    from circuits.model.checkpoint import load_checkpoint
    from tasks import load_tokenizer

    if path.suffix != ".safetensors":
        return load_tokenizer(path)
    found = load_checkpoint(path).model.tokenizer
    if found is None:
        raise ValueError(
            f"tokenizer: {path} carries none, it is of an older version; expected a checkpoint that does, or a "
            "tokenizer.json."
        )
    return found


def configured(make: Callable[[Any], C], chosen: dict[str, Any], path: Path | None, old: Names = dict) -> C:
    """Settings of some values, and over them those of a configuration file, which holds one JSON object.

    make: the settings' `from_json`. old: what turns the names of older files into today's. Raises UnreadableError (a
    ValueError) for a file of another kind, or one with keys or values that do not fit.
    """
    if path is None:
        return make(chosen)
    with reading(path, "a file with one JSON object of settings", name="config"):
        data = files.read_json(path, name="config", expected="a file with one JSON object")
        return make({**chosen, **old(data)})


def check_apart(out: Path, *inputs: Path, name: str = "out") -> None:
    """Raise ValueError where a command would write over a file that it reads."""
    for given in inputs:
        if out.resolve() == given.resolve():
            raise ValueError(
                f"{name}: {out} is the file that is read; expected another. Choose one with --{name}."
            )


def report_path(circuit: Path) -> Path:
    """Where the trust report of a circuit's file is kept."""
    return circuit.with_suffix(".trust.json")


def report_beside(path: Path, circuit: Any) -> Any:
    """The trust report kept beside a circuit's file; None without one of this circuit."""
    from circuits.explorer.view import check_about
    from circuits.trust import TrustReport

    kept = report_path(path)
    if not kept.exists():
        return None
    try:
        report = TrustReport.load(kept)
        check_about(circuit, report)
    except ValueError as error:
        console(stderr=True).print(f"{kept} is left out. {error}", highlight=False, soft_wrap=True)
        return None
    return report


@contextmanager
def clear_errors() -> Iterator[None]:
    """Bad input: one clear line, status 2. Ctrl-C: the place to resume from, status 130; SIGTERM: 143."""
    try:
        yield
    except ValueError as error:
        said = Text.assemble(("error", "bold red"), f" {error}")
        console(stderr=True).print(said, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt as stop:
        console(stderr=True).print(str(stop) or "Interrupted.", highlight=False, soft_wrap=True)
        raise typer.Exit(128 + getattr(stop, "number", signal.SIGINT)) from None


def answer(report: dict[str, Any], as_json: bool, *, title: str) -> None:
    """Print a report: as JSON, or as a table of its keys and values."""
    if as_json:
        sys.stdout.write(files.json_text(report, indent=1) + "\n")
        return
    table = Table(title=title, show_header=False)
    for key, value in report.items():
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    console().print(table)
