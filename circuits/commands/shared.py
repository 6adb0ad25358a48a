"""What the commands share: their common options, clear errors, one way to answer."""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from circuits import files
from circuits.reading import reading

C = TypeVar("C")
Names = Callable[[dict[str, Any]], dict[str, Any]]

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")
]
Seed = Annotated[int, typer.Option(help="Same seed, same bits.")]
SeedOver = Annotated[int | None, typer.Option(help="Same seed, same bits (default: that of --config, or 0).")]
Force = Annotated[bool, typer.Option("--force", help="Write over files that are there already.")]
KeepMinutes = Annotated[float, typer.Option(help="Minutes between numbered checkpoints.")]
KeepSteps = Annotated[int | None, typer.Option(help="Keep one every so many steps as well.")]
KeepLast = Annotated[int, typer.Option(help="How many numbered checkpoints stay.")]


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


def load_model(path: Path, corpus: str | None = None) -> tuple[Any, Any]:
    """The model of a checkpoint, its tokenizer attached, and the text it was trained on.

    path: a file, or the name of a model that ships. Raises ValueError for a run that was interrupted: its model is
    denser than it is to be.
    """
    from circuits.model.checkpoint import load_checkpoint
    from circuits.training.saved import check_finished, with_corpus

    path = _shipped(path)
    saved = load_checkpoint(path)
    check_finished(path, saved)
    return with_corpus(path, saved, corpus)


def _shipped(path: Path) -> Path:
    """The file of a model that ships, where its name stands for it."""
    from circuits.zoo.shipped import FOLDER, MODEL, names

    return FOLDER / path / MODEL if str(path) in names() and not path.exists() else path


HF = "hf:"
"""What a folder of Hugging Face's is called by on the command line."""


OtherModel = Annotated[
    str | None,
    typer.Option(
        "--model", help="hf:FOLDER, a model and tokenizer that save_pretrained wrote; or a checkpoint."
    ),
]
OwnPairs = Annotated[
    str | None, typer.Option("--task", help="CSV file of the circuit's task, where it is one of your own.")
]


def sites_of(circuit: Any) -> list[str]:
    """Names of the sites that a circuit speaks of."""
    return list(dict.fromkeys(site.name for site in circuit.sites))


def load_subject(
    where: str, corpus: str | None = None, sites: Sequence[str] | None = None
) -> tuple[Any, Any]:
    """The model of a checkpoint and its text; of `hf:FOLDER` the wrapped model, and no text.

    sites: of a wrapped model, those whose nodes are looked at; None: whole heads and neurons.
    """
    if not where.startswith(HF):
        if sites:
            raise ValueError(
                "sites: a model of ours has all its sites; expected the option with hf:FOLDER alone."
            )
        return load_model(Path(where), corpus)
    if corpus is not None:
        raise ValueError(
            "corpus: a wrapped model is not known to be of any; expected none. Means are over the task."
        )
    from circuits.interop import load_hf

    chosen: Any = sites or ("attn_head", "mlp_neuron")
    return load_hf(where.removeprefix(HF), sites=chosen), None


def load_task_of(tokenizer: Any, task: str) -> Any:
    """A task by name, or out of a CSV file with the columns clean, corrupt, answer and foil."""
    from tasks import HFTokenizer, Tokenizer, from_pairs, load_task_for

    if not task.endswith(".csv"):
        return load_task_for(tokenizer, task)
    own = tokenizer if isinstance(tokenizer, Tokenizer) else HFTokenizer(tokenizer=tokenizer)
    return from_pairs(task, own)


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


def read_config(path: Path | None, old: Names = dict) -> dict[str, Any]:
    """The JSON object of a configuration file; an empty one without a file.

    old: what turns the names of older files into today's. Raises UnreadableError (a ValueError) for another kind.
    """
    if path is None:
        return {}
    with reading(path, "a file with one JSON object of settings", name="config"):
        return old(files.read_json(path, name="config", expected="a file with one JSON object"))


def configured(
    make: Callable[[Any], C],
    path: Path | None,
    given: Mapping[str, Any],
    *,
    base: Mapping[str, Any] | None = None,
    file: Mapping[str, Any] | None = None,
) -> C:
    """Settings: those of `base`, over them those of a configuration file, over these what the command line says.

    make: the settings' `from_json`. given: options of the command line; None was not said. file: what `read_config`
    read of the file, where that is known. An object inside the file (`model`) changes the keys that it has and leaves
    the others. Raises UnreadableError (a ValueError) for a file with keys or values that do not fit.
    """
    chosen = _over(base or {}, read_config(path) if file is None else file)
    if path is not None:
        with reading(path, "a file with one JSON object of settings", name="config"):
            make(chosen)
    return make(_over(chosen, {key: value for key, value in given.items() if value is not None}))


def _over(base: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping over another; where both hold a mapping, so in turn."""
    merged = dict(base)
    for key, value in upper.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = {**below, **value} if both else value  # type: ignore[dict-item]
    return merged


def check_free(*paths: Path, force: bool, name: str = "out") -> None:
    """Raise ValueError where a command would write over what took a while to make, unless it is told to."""
    for path in paths:
        if path.exists() and not force:
            raise ValueError(
                f"{name}: {path} is there already; expected a new file. Write over it with --force, or choose another "
                f"with --{name}."
            )


def say_replaced(*paths: Path) -> None:
    """Say, on standard error, which pages are written anew: they are made of files that stay."""
    for path in paths:
        if path.exists():
            console(stderr=True).print(f"{path} was there: written anew.", highlight=False, soft_wrap=True)


def check_apart(out: Path, *inputs: str | Path | None, name: str = "out") -> None:
    """Raise ValueError where a command would write over a file that it reads, forced or not. None: was not given."""
    for given in inputs:
        if given is not None and out.resolve() == Path(given).resolve():
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


class Beside(NamedTuple):
    """What of a run lies beside the file that it makes."""

    stopped: Path
    """Where Ctrl-C leaves it."""
    numbered: Any
    """Its `Numbered` checkpoints, in the folder OUT.checkpoints."""
    resume: Path | list[Path] | None
    """What it is to go on from: a file, or, for --resume alone, all that an earlier run left here."""


def beside(out: Path, keep: Any, resume: Path | None) -> Beside:
    """What belongs to `out`, the file that a run makes. keep: how often the run is kept on its way, and how long."""
    from circuits.training.numbered import Numbered

    stopped = out.with_suffix(".interrupted.safetensors")
    numbered = Numbered(out.with_suffix(".checkpoints"), keep)
    left = [path for path in (*numbered.files(), stopped) if path.exists()]
    return Beside(stopped, numbered, left if resume == Path(NEWEST) else resume)


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
    rows = [
        (key, f"{value:.4g}" if isinstance(value, float) else str(value)) for key, value in report.items()
    ]
    show_table(title, (), rows)


def show_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Print a table: within the width of a terminal; into a pipe as lines with a tab between cells.

    There the title goes to standard error, and no cell is cut or wrapped. head: empty for a table without one.
    """
    if not console().is_terminal:
        console(stderr=True).print(title, highlight=False, soft_wrap=True)
        for row in [head, *rows] if head else rows:
            sys.stdout.write("\t".join(" ".join(str(cell).split()) for cell in row) + "\n")
        return
    table = Table(*head, title=title, show_header=bool(head), box=box.SIMPLE_HEAD, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console().print(table)
