"""Every notebook runs from the top, on a CPU, and is stored without outputs."""

import shutil
from pathlib import Path

import nbformat
import pytest
from names_used import missing
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
KEPT = FOLDER.parent / "out" / "notebooks"
"""Where a run is kept with its outputs: the site shows them."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_without_outputs_and_short(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert len(cells) <= 25
    assert sorted(cell.source.count("\n") + 1 for cell in cells)[len(cells) // 2] <= 5
    assert "SEED" in cells[0].source
    assert "assert" in cells[-1].source
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_names_exist(path):
    """Without a run: every cell compiles, and what it takes from the project is there."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert missing("\n".join(cell.source for cell in cells)) == []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from circuits.plots import circuit_figure, nothing_figure", ["circuits.plots.nothing_figure"]),
        ("from circuits.dilution import attack", ["circuits.dilution.attack"]),
        ("from docs.experiments.toy import quotes, apples", ["docs.experiments.toy.apples"]),
        ("import circuits\ncircuits.prune(model)\ncircuits.pruned(model)", ["circuits.pruned"]),
        ("import circuits.trust, numpy.nothing", []),
        ("import circuits.topk", ["circuits.topk"]),
        ("import circuits\ncircuits.load('a').training\ncircuits.lode('a').training", ["circuits.lode"]),
        ("from tasks import load_task\ntask = load_task('quotes').nothing", []),
    ],
)
def test_a_name_that_does_not_exist_is_found(source, names):
    assert missing(source) == names


def test_a_cell_that_does_not_compile_is_found():
    with pytest.raises(SyntaxError):
        missing("from circuits import")


@pytest.mark.notebook
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_from_the_top(path, tmp_path):
    work = tmp_path / "notebooks"
    work.mkdir()
    shutil.copytree(FOLDER.parent / "docs" / "results", tmp_path / "docs" / "results")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(work)}}).execute()
    KEPT.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, KEPT / path.name)
