"""The commands that list what there is to work with: tasks and zoo."""

from typing import Annotated, Any

import typer

from circuits.commands.shared import AsJson, answer, clear_errors, show_table

LONGEST = 48
"""Characters of a prompt that are shown: its end, which decides."""


def tasks(
    python: Annotated[
        bool,
        typer.Option("--python", help="Those of real Python as well: the first time, text is tokenized."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the tasks: for each, a prompt, the right next token and the wrong one, and the corpus to train on."""
    with clear_errors():
        from tasks import TASKS
        from tasks.python_choices import CHOICES

        shown = [name for name in TASKS if python or name not in CHOICES]
        found = [_example(name) for name in shown]
    if as_json:
        answer({"tasks": found}, True, title="")
        return
    rows = [
        (row["task"], row["corpus"], _end(row["prompt"]), f"{row['answer']!r} not {row['foil']!r}")
        for row in found
    ]
    show_table(
        "Tasks, and the corpus that models of each are trained on", ("task", "corpus", "prompt", "next"), rows
    )
    if not python:
        typer.echo(
            f"{len(CHOICES)} more are of real Python (corpus python): circuits tasks --python", err=True
        )


def zoo(as_json: AsJson = False) -> None:
    """List the models that ship with the package: circuits.load(NAME) in Python, NAME for MODEL in commands."""
    with clear_errors():
        from circuits.zoo.shipped import catalogue, said_of

        found = catalogue()
    if as_json:
        answer({"models": found}, True, title="")
        return
    rows = [(row["name"], f"{row['kilobytes']:,} kB", row["about"], said_of(row)) for row in found]
    title = "Models that ship with the package; circuits.load(name) loads one"
    show_table(title, ("name", "size", "what it is", "does, and comes with"), rows)


def _example(name: str) -> dict[str, Any]:
    """A task's first test prompt, with what follows it, as text."""
    from tasks import load_task
    from tasks.python_choices import CHOICES

    task = load_task(name)
    batch = task.batch(1, split="test", seed=0)
    decode = task.tokenizer.decode
    end = int(batch.position[0]) + 1
    return {
        "task": name,
        "corpus": "python" if name in CHOICES else _corpus_of(task),
        "prompt": decode(batch.clean[0, :end].tolist()),
        "answer": decode([int(batch.answer[0])]),
        "foil": decode([int(batch.foil[0])]),
    }


def _corpus_of(task: Any) -> str:
    """The corpus whose tokenizer is the task's."""
    from tasks.corpus import CORPORA, MACHINE, load_corpus

    named = task.name if task.name in CORPORA else None
    if named:
        return str(named)
    fits = (name for name in CORPORA if name not in MACHINE and load_corpus(name).tokenizer == task.tokenizer)
    return next(fits, "your own")


def _end(prompt: str) -> str:
    """The end of a prompt, on one line."""
    text = repr(prompt)[1:-1]
    return text if len(text) <= LONGEST else f"...{text[3 - LONGEST :]}"
