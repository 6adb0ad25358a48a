"""Every notebook runs from the top, on a CPU, and is stored without outputs."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_without_outputs_and_short(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert len(cells) <= 25
    assert sorted(cell.source.count("\n") + 1 for cell in cells)[len(cells) // 2] <= 5
    assert "SEED" in cells[0].source
    assert "assert" in cells[-1].source
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.notebook
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_from_the_top(path, tmp_path):
    work = tmp_path / "notebooks"
    work.mkdir()
    shutil.copytree(FOLDER.parent / "docs" / "results", tmp_path / "docs" / "results")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(work)}}).execute()
