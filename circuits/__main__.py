"""The command line: every command of `circuits.commands`, in the order in which a user meets them."""

from typing import Annotated

import typer

from circuits.commands.bridges import bridge, steer
from circuits.commands.doctor import doctor
from circuits.commands.extract import demo, prune, show
from circuits.commands.listing import tasks, zoo
from circuits.commands.shared import Resumable
from circuits.commands.sweep import sweep
from circuits.commands.timing import bench
from circuits.commands.training import train
from circuits.commands.trust import trust, verify

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Train weight-sparse transformers, extract their circuits, check them, and look at them.

A first session:

    circuits demo                              # all of it, into out/demo/

    circuits train --out out/mini.safetensors  # a model of mini-Python

    circuits prune out/mini.safetensors --task quotes --out out/quotes.json

    circuits show out/quotes.json              # and out/quotes.html

    circuits trust out/quotes.json             # does the model use it?

`circuits tasks` lists what there is to train and prune on, `circuits doctor` what this machine lacks.
`--install-completion` has the shell complete commands and options.
""",
)
for command in (demo, tasks, zoo, train, prune, show, trust, verify, bridge, steer, sweep, bench, doctor):
    app.command(cls=Resumable if command in (train, bridge) else None)(command)


def _version(asked: bool) -> bool:
    if asked:
        from importlib.metadata import version

        typer.echo(f"circuits {version('sparse-circuits')}")
        raise typer.Exit
    return asked


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version, and stop.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `circuits` command."""
    app()


if __name__ == "__main__":
    main()
