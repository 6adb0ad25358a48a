"""The page as one file: data, scripts and style, with nothing to fetch."""

import html
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from circuits.circuit.circuit import Circuit
from circuits.explorer.view import circuit_view
from circuits.files import json_text, write_text
from circuits.model.kinds import of_subjects
from circuits.model.subject import Subject
from tasks import Task

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""What the page may do: run its own scripts, and reach nothing."""
PAGE, WIDGET = "page.js", "widget.js"
"""The modules that the file and the notebook start from; what these import follows from them."""
IMPORT = re.compile(r'^import [^;]*? from "\./([^"]+)";\n', re.MULTILINE)


@of_subjects
def to_html(path: str | Path, model: Subject, circuit: Circuit, task: Task, **options: Any) -> Path:
    """Write the explorer of a circuit as one HTML file that opens from disk, offline; returns its path.

    options: those of `circuit_view`, which says what is refused. The same arguments give the same bytes.

    Examples:
        >>> found = circuits.load("quotes-handmade")
        >>> circuits.explorer.to_html("quotes.html", found.model, found.circuit, found.task, trust=found.report).name
        'quotes.html'
    """
    return write_text(path, page_html(circuit_view(model, circuit, task, **options)))


def page_html(view: dict[str, Any]) -> str:
    """The page of a view, as text."""
    title = html.escape(f"The circuit for {view['task']}")
    # A "<" inside a script could close it; JSON lets it be spelled otherwise.
    data = json_text(view).replace("<", "\\u003c")
    start = (
        'mount(document.getElementById("explorer"), JSON.parse(document.getElementById("view").textContent));'
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>body {{ margin: 0; }}\n{static('style.css')}</style>\n</head>\n"
        f'<body>\n<div id="explorer"></div>\n<script type="application/json" id="view">{data}</script>\n'
        f"<script>{code()}\n{start}</script>\n</body>\n</html>\n"
    )


def code(start: str = PAGE) -> str:
    """A module and all that it imports as one script, each after what it needs; only defaults stay exported."""
    parts = [IMPORT.sub("", static(name)) for name in modules(start)]
    return re.sub(r"^export (?!default)", "", "\n".join(parts), flags=re.MULTILINE)


def modules(start: str) -> list[str]:
    """The names of a module and of all that it imports, each after what it needs."""
    found: dict[str, None] = {}
    for name in IMPORT.findall(static(start)):
        found |= dict.fromkeys(modules(name))
    return [*found, start]


@cache
def static(name: str) -> str:
    """A file of the page, as it ships."""
    return files("circuits.explorer").joinpath("static", name).read_text(encoding="utf-8")
