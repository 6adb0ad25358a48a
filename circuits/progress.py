"""A bar for what takes long: drawn by rich in a terminal, and as HTML in a notebook, which needs no widgets for it."""

import html
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

Show = Callable[[float | None, str], None]
"""Takes the fraction done (None: as before) and a line to end with."""
EVERY = 0.2
"""Seconds between two pictures of the bar in a notebook."""


def in_notebook() -> bool:
    """Whether this runs in the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


@contextmanager
def progress_bar(name: str, *, shown: bool) -> Iterator[Show]:
    """A bar, on standard error or in the notebook; yields the function that moves it."""
    if not shown:
        yield lambda completed, line: None
    elif in_notebook():
        bar = NotebookBar(name)
        yield bar.show
        bar.draw()
    else:
        yield from _in_terminal(name)


def _in_terminal(name: str) -> Iterator[Show]:
    columns = (
        TextColumn(name),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[line]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=1.0, line="")
        yield lambda completed, line: bar.update(task, completed=completed, line=line)


class NotebookBar:
    """A bar in the output of a cell, drawn anew in its place."""

    def __init__(self, name: str) -> None:
        from IPython.display import display

        self.name, self.done, self.line = name, 0.0, ""
        self.started = self.drawn = time.monotonic()
        self.handle: Any = display({"text/html": self._html()}, raw=True, display_id=True)

    def show(self, completed: float | None, line: str) -> None:
        """Keep how far it is, and draw it where the last picture is some time ago."""
        self.done, self.line = self.done if completed is None else completed, line
        if time.monotonic() - self.drawn >= EVERY:
            self.draw()

    def draw(self) -> None:
        """Draw it as it is now."""
        self.drawn = time.monotonic()
        self.handle.update(
            {"text/html": self._html(), "text/plain": f"{self.name} {self.done:.0%}"}, raw=True
        )

    def _html(self) -> str:
        seconds = time.monotonic() - self.started
        said = html.escape(f"{self.name} {self.done:.0%}  {self.line}  {seconds:.0f} s")
        bar = f'<progress value="{self.done:.4f}" max="1" style="width:16em"></progress>'
        return f'<div style="white-space:pre;font-family:monospace">{bar} {said}</div>'
