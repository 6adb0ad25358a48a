"""The Makefile's three ways to run tests run every test, and none twice."""

import re
from itertools import product
from pathlib import Path

import pytest

MAKEFILE = (Path(__file__).parent.parent / "Makefile").read_text()
MARKS = ("slow", "browser", "notebook")
CHOSEN = [a or b for a, b in re.findall(r"-m pytest [^\n]*-m (?:\"([^\"]+)\"|(\S+))", MAKEFILE)]


def picked(chosen: list[str], marks: set[str]) -> int:
    """By how many of the expressions a test with these marks is run."""
    return sum(eval(expression, {}, {mark: mark in marks for mark in MARKS}) for expression in chosen)


@pytest.mark.parametrize("has", list(product((False, True), repeat=len(MARKS))))
def test_each_test_is_run_once(has):
    assert picked(CHOSEN, {mark for mark, there in zip(MARKS, has, strict=True) if there}) == 1


def test_one_that_is_run_twice_or_never_is_found():
    once_too_often = ["not notebook and not slow", "slow", "notebook"]
    assert picked(once_too_often, {"slow", "notebook"}) == 2
    assert picked(["not notebook and not slow", "slow and not notebook"], {"notebook"}) == 0
    assert len(CHOSEN) == 3
