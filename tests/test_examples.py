"""Every public function has an example in its docstring, and the examples do what they say."""

import doctest
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import circuits
import tasks
from docs.experiments.imports import declared, modules

ROOT = Path(__file__).parent.parent
SLOW = {
    *("circuits.prune", "circuits.train", "circuits.fit_bridges", "circuits.kernels.turbo_decode"),
    *("circuits.pruning.rivals", "circuits.pruning.stability_card", "circuits.handmade.recover"),
    *("circuits.sweep.run_sweep", "circuits.composition.prune_compositions"),
}
"""They train, prune or compile."""
BROWSER = {"circuits.plots.figure_to_png", "circuits.bench.write_pages"}
"""They draw with the Chromium of the system."""


def rooms() -> list[str]:
    """The packages that name what is public, as the reference shows them."""
    known = modules(ROOT)
    packages = [name for name, path in known.items() if path.name == "__init__.py" and declared(path)]
    return [name for name in packages if name.count(".") < 2]


def functions() -> dict[str, Callable[..., Any]]:
    """Every public function by the first name that leads to it."""
    found: dict[str, Callable[..., Any]] = {}
    for room in rooms():
        loaded = importlib.import_module(room)
        for name in loaded.__all__:
            thing = getattr(loaded, name)
            if inspect.isfunction(inspect.unwrap(thing)) and thing not in found.values():
                found[f"{room}.{name}"] = thing
    return found


FUNCTIONS = functions()


def examples_of(doc: str | None) -> list[doctest.Example]:
    """The examples in a docstring, in the section that the reference shows."""
    _, _, shown = (doc or "").partition("\nExamples:\n")
    return doctest.DocTestParser().get_examples(inspect.cleandoc(shown))


def failures(doc: str | None, name: str) -> str:
    """What an example does that it does not say; nothing where it does what it says."""
    names = {"circuits": circuits, "tasks": tasks, "torch": torch}
    test = doctest.DocTest(examples_of(doc), names, name, None, None, None)
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    return "".join(said)


def marked() -> list[Any]:
    """The functions as cases, those that take long or need a browser marked so."""

    def case(name: str) -> Any:
        marks = [pytest.mark.slow] * (name in SLOW) + [pytest.mark.browser] * (name in BROWSER)
        return pytest.param(name, marks=marks)

    return [case(name) for name in FUNCTIONS]


@pytest.mark.parametrize("name", marked())
def test_an_example_does_what_it_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert failures(inspect.getdoc(FUNCTIONS[name]), name) == ""


def test_every_public_function_has_an_example():
    assert [name for name, thing in FUNCTIONS.items() if not examples_of(inspect.getdoc(thing))] == []


def test_examples_are_short():
    long = [name for name, f in FUNCTIONS.items() if len(examples_of(inspect.getdoc(f))) > 10]
    assert long == []
    assert set(FUNCTIONS) >= SLOW | BROWSER


def test_a_function_without_an_example_and_a_wrong_example_are_found():
    assert examples_of("Adds.\n\nNothing is shown.") == []
    assert examples_of("Adds.\n\n>>> 1 + 1\n2") == []  # no section: the reference would show a quotation
    assert failures("Adds.\n\nExamples:\n    >>> 1 + 1\n    2", "f") == ""
    assert "Got:\n    2" in failures("Adds.\n\nExamples:\n    >>> 1 + 1\n    3", "f")
    assert "ZeroDivisionError" in failures("Adds.\n\nExamples:\n    >>> 1 / 0", "f")


def test_all_rooms_are_looked_at():
    assert {"circuits", "circuits.plots", "circuits.heads", "circuits.composition", "tasks"} <= set(rooms())
    assert "circuits.plots.circuit_figure" in FUNCTIONS
    assert len(FUNCTIONS) > 140
