"""Figures, tables and text in one HTML file that needs nothing else: no network, no fonts, no server."""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from circuits.files import write_text
from circuits.plots.style import MINUS, UNMEASURED
from circuits.views import Cell, html_table

__all__ = ["Html", "heading", "headline", "table", "write_page"]

# The page may run its own scripts and draw its own images, and can reach nothing: opening it asks no one.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:"
)

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1f2933; line-height: 1.55;
  font: 16px/1.55 Inter, system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 1.25rem; letter-spacing: -0.01em; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p { max-width: 44rem; margin: .75rem 0; }
.figure { width: 100%; margin: 1.25rem 0; }
.wide { overflow-x: auto; }
.pair { display: flex; flex-wrap: wrap; gap: 0 2rem; align-items: flex-start; }
.pair section { max-width: 100%; }
table { border-collapse: collapse; font-size: .8125rem; font-variant-numeric: tabular-nums; margin: .75rem 0; }
th, td { padding: .35rem .55rem; text-align: left; border-bottom: 1px solid #e4e8ee; white-space: nowrap; }
th { font-weight: 600; color: #52606d; border-bottom-color: #9aa3ad; }
td.prose { white-space: normal; min-width: 24rem; }
td.number { text-align: right; } th.number { text-align: right; }
.headline { display: grid; gap: .5rem; margin: 1.25rem 0;
  grid-template-columns: repeat(auto-fit, minmax(6.6rem, 1fr)); }
.headline div { background: #f3f5f8; border-radius: 6px; padding: .6rem .75rem; line-height: 1.3; }
.headline b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.headline span { font-size: .8rem; color: #52606d; }
@media print { main { max-width: none; padding: 0; } .figure, table { break-inside: avoid; } }
"""


CONFIG = (
    "{responsive: true, displaylogo: false, modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d']}"
)


PROSE = 60
"""Characters from which the text of a table cell may wrap."""


class Html(str):
    """Text that is markup already. A plain `str` block is escaped and set as a paragraph."""

    __slots__ = ()


Block: TypeAlias = go.Figure | Html | str


def write_page(path: str | Path, *, title: str, blocks: Iterable[Any]) -> Path:
    """Write one self-contained HTML file, in one step; returns its path.

    Blocks are figures, `Html` (from `table`, `heading`, `headline`) and plain text, each a paragraph.
    plotly.js is inlined once, and only when there is a figure. The same blocks give the same bytes.
    Raises ValueError for a block of another type.

    Examples:
        >>> figure = circuits.plots.pattern_figure(torch.eye(3)[None], ["a", "b", "c"])
        >>> circuits.plots.write_page("page.html", title="Heads", blocks=["Each looks at itself.", figure]).name
        'page.html'
    """
    parts: list[str] = []
    n_figures = 0
    for i, block in enumerate(blocks):
        if isinstance(block, go.Figure):
            parts.append(figure_html(block, f"figure-{n_figures}"))
            n_figures += 1
        elif isinstance(block, str):
            parts.append(block if isinstance(block, Html) else f"<p>{html.escape(block)}</p>")
        else:
            raise ValueError(
                f"blocks: number {i} is a {type(block).__name__}; expected a plotly Figure, Html or str. "
                "Turn rows into Html with circuits.plots.table(rows)."
            )
    script = f"<script>{get_plotlyjs()}</script>" if n_figures else ""
    return write_text(path, _document(title, script, "\n".join(parts)))


def _document(title: str, script: str, body: str) -> str:
    shown = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{shown}</title>\n<style>{STYLE}</style>\n{script}\n</head>\n"
        f"<body>\n<main>\n<h1>{shown}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def figure_html(figure: go.Figure, div: str, config: str = CONFIG) -> str:
    """A figure as markup for a page that has plotly.js: a box of its height, and the script that fills it."""
    # A "<" inside a script could close it; JSON lets it be spelled otherwise.
    data = figure.to_json().replace("<", "\\u003c")
    meta = figure.layout.meta if isinstance(figure.layout.meta, dict) else {}
    size = f"height:{figure.layout.height or 450}px;min-width:{meta.get('min_width', 0)}px"
    call = f'Plotly.newPlot("{div}", f.data, f.layout, {config});'
    return (
        f'<div class="wide"><div class="figure" id="{div}" style="{size}"></div></div>\n'
        f"<script>(function () {{ var f = {data}; {call} }})();</script>"
    )


def heading(text: str) -> Html:
    """A heading between blocks.

    Examples:
        >>> str(circuits.plots.heading("Nodes & edges"))
        '<h2>Nodes &amp; edges</h2>'
    """
    return Html(f"<h2>{html.escape(text)}</h2>")


def table(rows: Sequence[Mapping[str, Any]], formats: Mapping[str, str] | None = None) -> Html:
    """An HTML table: a row for each mapping, columns as keys first appear, numbers to the right.

    `formats` maps a column to the format of its numbers, such as "+.3f".

    Examples:
        >>> str(circuits.plots.table([{"node": "0.attn_v.3", "drop": 0.25}], {"drop": ".1f"})).count("<td")
        2
    """
    formats = formats or {}
    columns = list(dict.fromkeys(key for row in rows for key in row))
    is_number = {
        c: all(isinstance(row[c], int | float) and not isinstance(row[c], bool) for row in rows if c in row)
        for c in columns
    }
    head = [_cell(column, is_number[column]) for column in columns]
    body = [[_cell(row.get(c, ""), is_number[c], formats.get(c, "")) for c in columns] for row in rows]
    return Html(f'<div class="wide">{html_table(head, body)}</div>')


def _cell(value: Any, is_number: bool, form: str = "") -> Cell:
    is_prose = isinstance(value, str) and len(value) > PROSE
    return Cell(_shown(value, form), "number" if is_number else "prose" if is_prose else "")


def _shown(value: Any, form: str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if value != value:
        return UNMEASURED
    return format(value, form or ("," if isinstance(value, int) else ".4g")).replace("-", MINUS)


def headline(numbers: Mapping[str, str]) -> Html:
    """A row of large numbers, each under the word for it.

    Examples:
        >>> "21" in str(circuits.plots.headline({"nodes": "21"}))
        True
    """
    cards = "".join(
        f"<div><b>{html.escape(value)}</b><span>{html.escape(word)}</span></div>"
        for word, value in numbers.items()
    )
    return Html(f'<div class="headline">{cards}</div>')
