"""How results are shown: tables for notebooks and pages, and the doors to the rooms that draw and write.

A result lies below the rooms that show it, and knows nothing of them: its methods here look the function up when
they are called. No other module imports a room above its own, not even inside a function.
"""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple


class Plotted:
    """What has a picture: `circuits.plots` knows which."""

    __slots__ = ()

    def plot(self, **options: Any) -> Any:
        """The picture of this as a Plotly figure; `circuits.plots.plot` says where its options are explained."""
        from circuits.plots import plot

        return plot(self, **options)

    def _ipython_display_(self) -> None:
        """In a notebook: the picture, and under it the table where there is one; elsewhere its text."""
        from circuits.progress import in_notebook

        if not in_notebook():
            print(repr(self))
            return
        from IPython.display import HTML, display

        display(self.plot())
        table = getattr(self, "_repr_html_", None)
        if table is not None:
            display(HTML(table()))


class PlottedAsGraph(Plotted):
    """What has a second picture, of the heads that it connects."""

    __slots__ = ()

    def plot_graph(self, **options: Any) -> Any:
        """Heads and the significant edges between them; see `circuits.plots.head_graph_figure`."""
        from circuits.plots import head_graph_figure

        return head_graph_figure(self, **options)


class Decompiled:
    """What can be written as code and in words: a circuit."""

    __slots__ = ()

    def to_python(self, model: Any, task: Any) -> str:
        """Source of a numpy function that computes the answer logits; see `circuits.decompile.to_python`.

        model: the SparseTransformer the circuit was found in; task: the Task it performs.
        """
        from circuits.decompile import to_python

        circuit: Any = self
        return to_python(model, circuit, task)

    def describe(self, model: Any, task: Any) -> str:
        """The circuit in words, node by node; see `circuits.decompile.describe`. Arguments as for `to_python`."""
        from circuits.decompile import describe

        circuit: Any = self
        return describe(model, circuit, task)


class Explored:
    """What has a page on which it is read, questioned and run: a circuit."""

    __slots__ = ()

    def explore(self, model: Any, task: Any, **options: Any) -> Any:
        """The explorer as a widget for Jupyter; see `circuits.explorer.circuit_view` for options and errors.

        model: the SparseTransformer the circuit was found in; task: the Task it performs.
        """
        from circuits.explorer import explore

        circuit: Any = self
        return explore(model, circuit, task, **options)

    def to_html(self, path: str | Path, model: Any, task: Any, **options: Any) -> Path:
        """Write the explorer as one HTML file that works offline; returns its path. Arguments as for `explore`."""
        from circuits.explorer import to_html

        circuit: Any = self
        return to_html(path, model, circuit, task, **options)


class Cell(NamedTuple):
    """A cell of an HTML table that does not look like the others. Nothing in it is read as markup."""

    text: str
    css_class: str = ""
    style: str = ""


def html_table(head: Sequence[str | Cell], rows: Iterable[Sequence[str | Cell]]) -> str:
    """An HTML table with a head; every text is escaped."""
    body = "".join(f"{_row('td', row)}\n" for row in rows)
    return f"<table>\n<thead>{_row('th', head)}</thead>\n<tbody>\n{body}</tbody>\n</table>"


def _row(tag: str, cells: Sequence[str | Cell]) -> str:
    inside = "".join(_cell(tag, cell if isinstance(cell, Cell) else Cell(cell)) for cell in cells)
    return f"<tr>{inside}</tr>"


def _cell(tag: str, cell: Cell) -> str:
    given = {"class": cell.css_class, "style": cell.style}
    attributes = "".join(f' {name}="{escape(value)}"' for name, value in given.items() if value)
    return f"<{tag}{attributes}>{escape(cell.text)}</{tag}>"
