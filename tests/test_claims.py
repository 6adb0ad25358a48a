"""What pages say of numbers is what the numbers allow."""

import json
from pathlib import Path

import pytest

from circuits.files import results_report
from docs.experiments import trust_page
from docs.experiments.claims import direction

RESULTS, PAGE = Path("docs/results"), Path("docs/explanation/trust.md")


def test_a_direction_is_said_only_where_the_interval_excludes_zero() -> None:
    assert direction("the loss", [1.0, 1.1, 0.9], [2.0, 2.1, 1.9]).startswith(
        "The loss rises (+1.0, 95 % interval"
    )
    assert direction("the loss", [2.0, 2.2, 1.9], [1.0, 1.1, 0.9]).startswith("The loss falls (-1.0")
    same = direction("the loss", [1.0, 2.0, 3.0], [2.0, 1.0, 3.5])
    assert same.startswith("No difference of the loss is shown (+0.2")
    assert "3 pairs" in same


@pytest.mark.parametrize(("before", "after"), [([1.0], [2.0]), ([1.0, 2.0], [1.0])])
def test_a_direction_needs_pairs(before: list[float], after: list[float]) -> None:
    with pytest.raises(ValueError, match="expected two pairs or more"):
        direction("the loss", before, after)


@pytest.mark.parametrize("name", [name for name in trust_page.TABLES if (RESULTS / f"{name}.json").exists()])
def test_the_page_says_what_the_results_file_says(name: str) -> None:
    """Remake with: python -m docs.experiments.trust_page."""
    report = json.loads((RESULTS / f"{name}.json").read_text())
    assert trust_page.TABLES[name](report) in PAGE.read_text()


def test_no_page_claims_that_circuits_shrink_with_width() -> None:
    """Unless the file shows it: the sentence is made from the interval."""
    report = json.loads((RESULTS / "frontier.json").read_text())
    shown = "The number of edges falls" in trust_page.frontier_verdict(report)
    text = (
        PAGE.read_text()
        + Path("README.md").read_text()
        + Path("notebooks/9-sizes-of-circuits.ipynb").read_text()
    )
    assert shown or not any(said in text for said in ("Circuits shrink with width", "Here the circuits do"))


def test_results_hold_all_that_their_bits_depend_on() -> None:
    report = results_report(command="x", seeds=[0], seconds=60.0, numbers={"n": 1})
    assert {"commit", "threads", "versions", "machine", "date", "minutes"} <= report.keys()
    assert report["threads"] >= 1
    assert report["versions"].keys() >= {"torch", "numpy", "numba", "transformer-lens"}
    assert "cores" in report["machine"]
