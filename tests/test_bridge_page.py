"""The page about bridges says what the results files hold, and nothing else between its marks."""

import json
from pathlib import Path

import pytest

from docs.experiments import bridge_page
from docs.experiments.bridge_page import BEGIN, END, NAMES, markdown, write_bridge_page

COMMON = {
    "command": "python -m x",
    "seeds": [4],
    "machine": "a machine",
    "minutes": 3.2,
    "date": "2026-01-02",
}
LOCATION = {
    "location": "0.attn",
    "recovered_dense_to_sparse": 1.0321,
    "recovered_sparse_to_dense": 0.9412,
    "nmse_encode": 0.25,
    "nmse_decode": 0.5,
}
RUNS = {
    "bridges": {"locations": [LOCATION], "loss_dense": 1.7, "loss_sparse": 1.8},
    "steering": {
        "location": "0.attn",
        "channels": [3, 5],
        "p_foil_before": 0.012,
        "p_foil_after": 0.987,
        "strength": 1.5,
        "monotone": False,
        "control_change": 0.034,
        "direction_change": 0.056,
        "strengths": [0.0, 1.5],
        "random_channel_draws": [[0.0, 0.1]],
        "curves": {name: [0.0, 1.0] for name in ("steered", "sparse", "random_channel", "random_direction")},
    },
    "dilution": {
        "spearman": 0.912,
        "n_cells": 1,
        "dense_error_min": 0.0,
        "dense_error_max": 0.54,
        "adversarial_ratio": 6.54,
        "adversarial_ratio_deep": 3.21,
        "cells": [
            {
                "length": 3,
                "distractors": 0,
                "dense_error": 0.1,
                "sparse_error": 0.2,
                "circuit_error": 0.3,
                "depth_margin": 1.0,
            }
        ],
    },
}


@pytest.fixture
def docs(tmp_path):
    for folder in ("results", "explanation"):
        (tmp_path / folder).mkdir()
    for name in NAMES:
        report = {**COMMON, "runs": [{"seed": 4, **RUNS[name]}]}
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(report))
    return tmp_path


def test_tables_hold_the_numbers_and_how_they_came_about(docs):
    text = markdown(docs / "results")
    for number in (
        "1.032",
        "0.941",
        "1.700, 1.800",
        "0.987",
        "0.034",
        "0.056",
        "| no |",
        "0.912",
        "54.0%",
        "6.5",
        "3.2",
    ):
        assert number in text
    assert text.count("`python -m x` (seeds 4; 3 minutes on one core of: a machine; 2026-01-02)") == 3


def test_only_what_stands_between_the_marks_is_rewritten(docs, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        bridge_page, "figure_to_png", lambda figure, path, **how: drawn.append((figure, path))
    )
    page = docs / "explanation" / "bridges.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_bridge_page(docs)
    first = page.read_text()
    assert first == f"before\n{BEGIN}\n\n{markdown(docs / 'results')}\n\n{END}\nafter\n"
    assert write_bridge_page(docs).read_text() == first
    assert [path.name for _, path in drawn[:3]] == [f"bridges-{name}.png" for name in NAMES]
    assert all(figure.data for figure, _ in drawn)


def test_a_page_without_marks_is_refused(docs):
    page = docs / "explanation" / "bridges.md"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="bridges.md: expected '<!-- results of the bridge experiments"):
        write_bridge_page(docs)


def test_the_stored_page_has_its_marks():
    stored = Path(__file__).parent.parent / "docs" / "explanation" / "bridges.md"
    assert stored.read_text().count(BEGIN) == 1
    assert END in stored.read_text().partition(BEGIN)[2]
