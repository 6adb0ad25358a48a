"""A page of the site for each notebook: its cells, and what they gave where this very notebook has been run.

`make notebooks` keeps what it ran under out/notebooks. A notebook that was not run since it was changed comes as it is
stored, without outputs, and says so. mkdocs calls the functions `on_...` by their names.
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.structure.files import File
from plotly.offline import get_plotlyjs

ROOT = Path(__file__).parent.parent.parent
STORED, RUN = ROOT / "notebooks", ROOT / "out" / "notebooks"
NOT_RUN = '!!! note "Not run"\n    These are the cells alone: `make notebooks`, then `make site`, shows what they give.'
WIDE = "---\nhide: [toc]\n---\n"
"""Pictures need the room of the table of contents."""
LIBRARY = "window.PlotlyConfig"
"""What marks the output in which a notebook gets plotly.js; pages share one copy of it."""
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
"""Colours and cursors of a terminal."""
PLACE = re.compile(r"<p>@output-(\d+)@</p>")

_outputs: list[str] = []
"""HTML of the outputs of all pages, each put in the place of its number once Markdown has been made HTML."""


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each notebook, a list of them, and the copy of plotly.js that they share."""
    _outputs.clear()
    titles = []
    for path in in_order(STORED):
        notebook, was_run = newest(path)
        text = "\n\n".join(part for cell in notebook.cells for part in parts(cell))
        note = "" if was_run else f"\n\n{NOT_RUN}"
        title, _, rest = text.partition("\n")
        titles.append(f"[{title.removeprefix('# ')}]({path.stem}.md)")
        content = f"{WIDE}{title}{note}\n{rest}\n"
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=content))
    listed = "\n".join(f"1. {title}" for title in titles)
    index = files.get_file_from_path("notebooks/index.md")
    content = index.content_string
    files.remove(index)
    files.append(File.generated(config, index.src_uri, content=f"{content}\n{listed}\n"))
    files.append(File.generated(config, "notebooks/plotly.js", content=get_plotlyjs()))
    return files


def on_page_content(page_html: str, **_: Any) -> str:
    """The outputs themselves, which are HTML already and none of Markdown's business."""
    return PLACE.sub(lambda place: _outputs[int(place[1])], page_html)


def in_order(folder: Path) -> list[Path]:
    """The notebooks of a folder by their number."""
    return sorted(folder.glob("*.ipynb"), key=lambda path: int(path.stem.split("-")[0]))


def newest(path: Path) -> tuple[Any, bool]:
    """The notebook with what it gave, where its cells are those that were run, else as it is stored; and which."""
    stored, run = nbformat.read(path, as_version=4), RUN / path.name
    if run.exists():
        executed = nbformat.read(run, as_version=4)
        if [cell.source for cell in executed.cells] == [cell.source for cell in stored.cells]:
            return executed, True
    return stored, False


def parts(cell: Any) -> Iterator[str]:
    """A cell in Markdown, then a place for each of its outputs."""
    if cell.cell_type == "markdown":
        yield cell.source
        return
    yield f"```python\n{cell.source}\n```"
    for output in cell.get("outputs", []):
        shown = as_html(output)
        if shown:
            _outputs.append(shown)
            yield f"@output-{len(_outputs) - 1}@"


def as_html(output: Any) -> str:
    """One output: what it is as HTML, or its text."""
    if output.output_type in ("stream", "error"):
        return plain(output.get("text") or "\n".join(output.get("traceback", [])))
    data = output.data
    if "text/html" in data:
        own = data["text/html"]
        return '<script src="plotly.js"></script>' if LIBRARY in own[:200] else f'<div class="nb">{own}</div>'
    if "image/png" in data:
        return f'<img src="data:image/png;base64,{data["image/png"]}">'
    return plain(data.get("text/plain", ""))


def plain(text: str) -> str:
    """Text as it would stand in a terminal; of a line that was written over, what stayed."""
    lines = [line.rpartition("\r")[2] for line in ESCAPES.sub("", text).rstrip().split("\n")]
    shown = "\n".join(lines).strip("\n")
    return f'<pre class="nb"><code>{html.escape(shown)}</code></pre>' if shown else ""
