"""The pages of notebooks on the site: outputs are shown, and what was changed since is not passed off as run."""

import importlib.util
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).parent.parent


@pytest.fixture
def pages(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "theme" / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RUN", tmp_path / "run")
    (tmp_path / "run").mkdir()
    return module


def written(path, source, outputs=()):
    cells = [new_markdown_cell("# A title"), new_code_cell(source, outputs=list(outputs))]
    nbformat.write(new_notebook(cells=cells), path)
    return path


def page(module, path):
    notebook, was_run = module.newest(path)
    text = "\n\n".join(part for cell in notebook.cells for part in module.parts(cell))
    places = module.re.sub(r"^(@output-\d+@)$", r"<p>\1</p>", text, flags=module.re.MULTILINE)
    return module.on_page_content(places), was_run


def test_outputs_are_shown(pages, tmp_path):
    stored = written(tmp_path / "1-a.ipynb", "1 + 1")
    shown = new_output("execute_result", data={"text/plain": "2 < 3"})
    written(pages.RUN / "1-a.ipynb", "1 + 1", [shown])
    text, was_run = page(pages, stored)
    assert was_run
    assert "2 &lt; 3" in text
    assert "@output" not in text


def test_a_notebook_that_was_changed_since_is_not_passed_off_as_run(pages, tmp_path):
    written(pages.RUN / "1-a.ipynb", "1 + 1", [new_output("stream", text="2")])
    text, was_run = page(pages, written(tmp_path / "1-a.ipynb", "1 + 2"))
    assert not was_run
    assert "1 + 2" in text
    assert "<pre" not in text


def test_pages_share_one_copy_of_plotly(pages):
    library = new_output(
        "display_data", data={"text/html": "<script>window.PlotlyConfig = 1;</script><script>x</script>"}
    )
    assert pages.as_html(library) == '<script src="plotly.js"></script>'
    figure = new_output("display_data", data={"text/html": "<div>figure</div>", "text/plain": ""})
    assert pages.as_html(figure) == '<div class="nb"><div>figure</div></div>'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m\n", "red"),
        ("10 %\r50 %\r100 %\n", "100 %"),
        ("<script>", "&lt;script&gt;"),
        ("\n\n", ""),
    ],
)
def test_text_is_as_a_terminal_would_leave_it(pages, text, shown):
    made = pages.plain(text)
    assert made == (f'<pre class="nb"><code>{shown}</code></pre>' if shown else "")


def test_every_notebook_has_a_place_on_the_site(pages):
    named = (ROOT / "docs" / "theme" / "mkdocs.yml").read_text(encoding="utf-8")
    places = [named.index(f"notebooks/{path.stem}.md") for path in pages.in_order(pages.STORED)]
    assert places == sorted(places)
