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

    def plot(self, *, title: str | None = None) -> Any:
        """The picture of this as a Plotly figure. title: above it, in place of the usual one."""
        return self._drawn(title=title)

    def _drawn(self, **options: Any) -> Any:
        """The picture; an option that is None is as it is by default."""
        from circuits.plots import plot

        return plot(self, **{name: value for name, value in options.items() if value is not None})

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

    def plot(self, *, rate: float = 0.05, title: str | None = None) -> Any:
        """z-scores of every pair as a Plotly figure; circles mark pairs significant at this false-discovery rate."""
        return self._drawn(rate=rate, title=title)

    def plot_graph(
        self,
        *,
        rate: float = 0.05,
        top: int = 60,
        all_heads: bool | None = None,
        title: str = "Heads that compose",
    ) -> Any:
        """Heads and the significant edges between them, at most `top`, as a Plotly figure.

        rate: false-discovery rate. all_heads: heads without an edge too (default: up to 64).
        """
        from circuits.plots import head_graph_figure

        return head_graph_figure(self, rate=rate, top=top, all_heads=all_heads, title=title)


class PlottedAsCircuit(Plotted):
    """What is drawn with the forward pass from left to right: a circuit."""

    __slots__ = ()

    def plot(
        self,
        *,
        title: str | None = None,
        orientation: str = "horizontal",
        d_head: int | None = None,
        model: Any = None,
        task: Any = None,
    ) -> Any:
        """The circuit as a Plotly figure: tokens in, a mark for each node, a line for each weight, logits out.

        orientation: "horizontal", or "vertical", from bottom to top. d_head: channels of a head, where the circuit does
        not know. model: the weights are held against this model's first. task: logits of its answers are there even
        where no weight leads to them; with both, a sentence about each node is under the pointer. What marks and lines
        mean, and errors: `circuits.plots.circuit_figure`.
        """
        return self._drawn(title=title, orientation=orientation, d_head=d_head, model=model, task=task)


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
