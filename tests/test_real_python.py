"""The page on real Python says what the results files hold, and no number of it was typed."""

import json
from pathlib import Path

import pytest
import torch

from docs.experiments.python_models import looked, opening_of, read_at
from docs.experiments.python_page import PAGE, marks, sections
from tasks import Batch

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"


@pytest.mark.parametrize("name", ["losses", "tasks", "mechanism"])
def test_the_page_holds_what_was_measured(name):
    begin, end = marks(name)
    text = (ROOT / PAGE).read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]
    assert text.strip() == sections(RESULTS)[name]


def test_another_number_gives_another_page(tmp_path):
    for name in ("python_loss", "python_tasks", "python_circuit"):
        report = json.loads((RESULTS / f"{name}.json").read_text())
        if name == "python_circuit":
            report["heads"]["L0H1"]["in_model"]["most"] = 1
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    changed, stored = sections(tmp_path), sections(RESULTS)
    assert changed["mechanism"] != stored["mechanism"]
    assert changed["losses"] == stored["losses"]


def test_looks_and_values_by_hand():
    clean = torch.tensor([[5, 1, 7, 9], [5, 2, 7, 9]])
    batch = Batch(
        clean=clean,
        corrupt=torch.tensor([[5, 2, 7, 9], [5, 1, 7, 9]]),
        answer=torch.tensor([3, 4]),
        foil=torch.tensor([4, 3]),
        position=torch.tensor([3, 2]),
    )
    assert opening_of(batch).tolist() == [1, 1]
    pattern = torch.zeros(2, 4, 4)
    pattern[0, 3] = torch.tensor([0.1, 0.6, 0.3, 0.0])
    pattern[1, 2] = torch.tensor([0.5, 0.2, 0.3, 0.0])
    assert looked(pattern, batch) == {"most": 1, "share": pytest.approx(0.4)}
    value = torch.tensor([[0.0, -2.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    assert read_at(value, batch) == {3: [-2.0, -2.0], 4: [1.0, 1.0]}
