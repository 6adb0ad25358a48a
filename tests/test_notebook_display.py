"""What a notebook shows: pictures of results, figures that an export keeps, a bar that needs no widgets."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from circuits import load
from circuits.plots import shown
from circuits.plots.shown import Picture
from circuits.progress import in_notebook, progress_bar
from circuits.views import Plotted

ROOT = Path(__file__).parent.parent


@pytest.fixture
def cell(monkeypatch):
    """A cell of a notebook: the list of what is displayed in it."""
    import IPython.display

    out = []

    class Handle:
        def update(self, bundle, raw):
            out.append(bundle)

    def display(thing, raw=False, display_id=None):
        if hasattr(thing, "_ipython_display_"):
            thing._ipython_display_()
        else:
            out.append(thing if raw else {"text/html": thing._repr_html_()})
        return Handle()

    monkeypatch.setattr(IPython.display, "display", display)
    for module in ("circuits.progress", "circuits.plots.shown"):
        monkeypatch.setattr(sys.modules[module], "in_notebook", lambda: True)
    monkeypatch.setattr(shown, "_has_library", [])
    monkeypatch.setattr(shown.pio.renderers, "default", shown.UNASKED)
    return out


def test_tests_run_in_no_notebook():
    assert not in_notebook()


def test_a_figure_brings_its_library_once_and_then_its_data(cell):
    figure = load("mini-python").training.plot()
    assert isinstance(figure, Picture)
    figure._ipython_display_()
    figure._ipython_display_()
    library, first, second = cell
    assert len(library["text/html"]) > 10**6
    for bundle in (first, second):
        assert len(bundle["text/html"]) < 10**5
        assert "Plotly.newPlot" in bundle["text/html"]
        assert "application/vnd.plotly.v1+json" in bundle
        assert "http" not in bundle["text/html"]


def test_a_renderer_that_was_chosen_is_used(cell, monkeypatch):
    asked = []
    monkeypatch.setattr(shown.pio.renderers, "default", "json")
    monkeypatch.setattr(shown.go.Figure, "_ipython_display_", lambda figure: asked.append(figure))
    figure = Picture()
    figure._ipython_display_()
    assert asked == [figure]
    assert cell == []


class Result:
    """What is no subclass, since those are all drawn by `circuits.plots`."""

    _ipython_display_ = Plotted._ipython_display_

    def plot(self, **options):
        return Picture()

    def _repr_html_(self):
        return "<table></table>"


def test_a_result_shows_its_picture_and_its_table_below(cell):
    Result()._ipython_display_()
    *_, picture, table = cell
    assert "Plotly.newPlot" in picture["text/html"]
    assert table["text/html"] == "<table></table>"


def test_outside_a_notebook_a_result_is_its_text(capsys):
    training = load("mini-python").training
    training._ipython_display_()
    said = capsys.readouterr().out.strip()
    assert said == repr(training)
    assert said.startswith("Training(on 'mini', 2000 steps, seed 0: validation loss ")
    assert len(said) < 200


def test_the_bar_of_a_notebook_is_html(cell, monkeypatch):
    monkeypatch.setattr("circuits.progress.EVERY", 0.0)
    with progress_bar("train", shown=True) as show:
        show(0.25, "loss <1>")
        show(None, "loss 2")
    texts = [bundle["text/html"] for bundle in cell]
    assert 'value="0.2500"' in texts[1]
    assert "loss &lt;1&gt;" in texts[1]
    assert "loss 2" in texts[-1]
    assert 'value="0.2500"' in texts[-1]
    with progress_bar("train", shown=False) as show:
        show(0.5, "nothing")
    assert len(cell) == len(texts)


CELLS = (
    "import circuits\ntraining = circuits.load('mini-python').training\ntraining",
    "trained = circuits.train(circuits.TrainConfig.toy(steps=3, n_val=8))",
    "circuits.heads, circuits.plots, circuits.composition, circuits.explorer\ntraining.plot()",
)


@pytest.mark.slow
@pytest.mark.notebook
def test_an_export_to_html_keeps_the_figures(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nbformat.write(notebook, tmp_path / "n.ipynb")
    jupyter = shutil.which("jupyter", path=str(Path(sys.executable).parent))
    command = [jupyter, "nbconvert", "--to", "html", "--execute", "n.ipynb"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env={"PYTHONPATH": str(ROOT)})
    page = (tmp_path / "n.html").read_text()
    assert page.count('Plotly.newPlot("figure-') == 2
    assert "<progress" in page
    for warning in ("IProgress", "ipywidgets", "Warning"):
        assert f">{warning}" not in page
