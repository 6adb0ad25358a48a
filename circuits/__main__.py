"""The command line: every command of `circuits.commands`, in the order in which a user meets them."""

import typer

from circuits.commands.bridges import bridge, steer
from circuits.commands.extract import demo, prune, show
from circuits.commands.shared import Resumable
from circuits.commands.sweep import sweep
from circuits.commands.timing import bench
from circuits.commands.training import train
from circuits.commands.trust import trust, verify

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Train weight-sparse transformers, extract their circuits, check them, and look at them.

A first session:

    circuits demo                                  # everything once, into out/demo/

    circuits train --out out/mini.safetensors      # a weight-sparse model of mini-Python

    circuits prune out/mini.safetensors --task quotes --out out/quotes.json

    circuits show out/quotes.json                  # a table here, a picture in out/quotes.html

    circuits trust out/quotes.json                 # is it what the model uses?
""",
)
for command in (demo, train, prune, show, trust, verify, bridge, steer, sweep, bench):
    app.command(cls=Resumable if command in (train, bridge) else None)(command)


def main() -> None:
    """Entry point of the `circuits` command."""
    app()


if __name__ == "__main__":
    main()
