"""The house keeps its plan: which module may import which, where heavy libraries live, what is public.

Each rule is a function that returns what breaks it; it finds nothing here, and finds what a fake package does wrong.
"""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from docs.experiments.imports import (
    LEVELS,
    all_imports,
    clashes,
    cycles,
    declared,
    edges,
    foreign,
    homes_that_disagree,
    misplaced,
    modules,
    unlisted,
    upward,
)

ROOT = Path(__file__).parent.parent
KNOWN = modules(ROOT)
IMPORTS = all_imports(KNOWN)
EDGES = edges(IMPORTS, KNOWN)


def fake(root: Path, **files: str) -> dict[str, Path]:
    """A package of these files: `circuits__plots__page="import os"` is circuits/plots/page.py."""
    for name, text in files.items():
        parts = name.removesuffix("__").split("__") + ["__init__"] * name.endswith("__")
        path = root.joinpath(*parts).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return modules(root)


def fake_edges(root: Path, **files: str):
    known = fake(root, **files)
    return edges(all_imports(known), known)


def test_no_room_imports_from_a_higher_level():
    assert upward(EDGES) == []


@pytest.mark.parametrize(
    "text",
    [
        "from circuits.plots import figure",
        "import circuits.plots",
        "from circuits import plots",
        "from ..plots import figure",
        "class Circuit:\n    def plot(self):\n        from circuits.plots import figure",
        "def plot():\n    return importlib.import_module('circuits.plots')",
        "def plot(name):\n    return import_module(f'circuits.plots{name}')",
        "try:\n    import circuits.plots.page\nexcept ImportError:\n    pass",
    ],
)
def test_an_import_upwards_is_found_in_any_form(tmp_path, text):
    found = fake_edges(
        tmp_path, circuits__plots__="", circuits__plots__page="", circuits__circuit__masked=text
    )
    (line,) = {said.partition(", ")[0].replace(".page", "") for said in upward(found)}
    assert line.startswith("circuits.circuit.masked:")
    assert line.endswith(" imports circuits.plots")


def test_what_is_not_an_import_upwards(tmp_path):
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from circuits.plots import figure\n"
    down = "from circuits.circuit import masked\n"
    found = fake_edges(tmp_path, circuits__plots__=down, circuits__circuit__masked=text)
    assert [(one.importer, one.name) for one in found] == [("circuits.plots", "circuits.circuit.masked")]
    assert upward(found) == []


def test_a_room_does_not_use_the_front_door(tmp_path):
    found = fake_edges(tmp_path, circuits__="", circuits__bench__run="from circuits import prune")
    assert upward(found) == ["circuits.bench.run:1 imports circuits, which is above it"]


def test_the_door_upwards_is_open_inside_functions_only(tmp_path):
    lazy = "def plot():\n    from circuits.plots import figure\n    from circuits.bench import run"
    files = {"circuits__plots__": "", "circuits__bench__": ""}
    assert upward(fake_edges(tmp_path, circuits__views=lazy, **files)) == [
        "circuits.views:3 imports circuits.bench, which is above it"
    ]
    assert len(upward(fake_edges(tmp_path, circuits__views="import circuits.plots", **files))) == 1


def test_every_room_has_a_level_and_every_level_rooms():
    assert unlisted(KNOWN) == []
    assert len({name for level in LEVELS for name in level}) == sum(map(len, LEVELS))


def test_a_room_without_a_level_is_found_and_a_level_without_a_room(tmp_path):
    known = fake(tmp_path, circuits__="", circuits__attic__="", circuits__plots__="")
    assert unlisted(known, [{"__init__", "plots", "cellar"}]) == [
        "circuits/attic has no level: add it to LEVELS, beside what it may import",
        "LEVELS names cellar, which is not in circuits/",
    ]


def test_no_files_import_each_other_in_a_circle():
    assert cycles(EDGES) == []


@pytest.mark.parametrize(
    ("first", "last"),
    [
        ("from circuits.b import f", "from circuits.c import f"),
        ("import circuits.b", "def f():\n    from circuits import c"),
        ("from . import b", "from .c import f"),
    ],
)
def test_a_circle_is_found_lazy_imports_included(tmp_path, first, last):
    found = fake_edges(tmp_path, circuits__a=first, circuits__b=last, circuits__c="import circuits.a")
    assert cycles(found) == [["circuits.a", "circuits.b", "circuits.c"]]


def test_a_package_that_re_exports_is_a_part_of_the_circle(tmp_path):
    """Who enters `circuits.a` for one module runs its `__init__`, and with it all that this imports."""
    files = {"circuits__a__": "from circuits.a.x import f", "circuits__a__x": "import circuits.b"}
    found = fake_edges(tmp_path, circuits__a__y="", circuits__b="from circuits.a.y import g", **files)
    assert cycles(found) == [["circuits.a", "circuits.a.x", "circuits.b"]]


def test_imports_for_types_and_through_the_door_close_no_circle(tmp_path):
    typed = "if TYPE_CHECKING:\n    from circuits.b import B\nelse:\n    B = None"
    files = {
        "circuits__a": typed,
        "circuits__b": "import circuits.a",
        "circuits__plots": "import circuits.views",
    }
    found = fake_edges(tmp_path, circuits__views="def plot():\n    import circuits.plots", **files)
    assert cycles(found) == []
    assert cycles(found, doors=()) == [["circuits.plots", "circuits.views"]]


def test_nothing_imports_what_lies_outside():
    assert foreign(IMPORTS) == []


def test_an_import_of_what_lies_outside_is_found(tmp_path):
    known = fake(
        tmp_path, tasks__a="def f():\n    import circuits", circuits__b="from docs.experiments import toy"
    )
    assert foreign(all_imports(known)) == [
        "circuits.b:1 imports docs.experiments.toy",
        "tasks.a:2 imports circuits",
    ]


def test_each_heavy_library_has_one_place():
    assert misplaced(IMPORTS) == []


def test_a_library_in_another_place_is_found(tmp_path):
    known = fake(
        tmp_path,
        circuits__plots__page="import plotly.graph_objects",
        circuits__heads__report="def f():\n    import plotly.graph_objects as go",
        circuits__kernels__cpu="import triton",
        circuits__kernels__triton__ops="import triton.language",
        circuits__pruning__search="from optuna import create_study",
        circuits__composition__paths="import networkx",
    )
    assert misplaced(all_imports(known)) == [
        "circuits.composition.paths:1 imports networkx; only circuits.circuit* may",
        "circuits.heads.report:2 imports plotly.graph_objects; only circuits.plots* may",
        "circuits.kernels.cpu:1 imports triton; only circuits.kernels.triton* may",
        "circuits.pruning.search:1 imports optuna.create_study; only circuits.pruning.tune may",
    ]


def test_no_name_is_both_public_and_a_module():
    assert clashes(KNOWN) == []


def test_a_function_named_as_a_module_is_found(tmp_path):
    files = {
        "circuits__prune": "def prune(): ...",
        "circuits__heads__": "",
        "circuits__a__b": "__all__ = ['b']",
    }
    known = fake(
        tmp_path, circuits__="from circuits.prune import prune\n__all__ = ['prune', 'other']", **files
    )
    assert clashes(known) == ["circuits.prune is both a public name and a module"]


def test_lazy_names_have_one_home():
    assert homes_that_disagree(KNOWN["circuits"]) == []


@pytest.mark.parametrize(
    ("homes", "public", "said"),
    [
        ({"a": ("f",), "b": ("g",)}, ["f", "g"], []),
        ({"b": ("f", "g")}, ["f", "g"], ["f: _HOMES says circuits.b, TYPE_CHECKING says circuits.a"]),
        ({"a": ("f",)}, ["f"], ["g: _HOMES says None, TYPE_CHECKING says circuits.b"]),
        (
            {"a": ("f",), "b": ("g",)},
            ["f", "g", "h"],
            ["h: _HOMES says None, TYPE_CHECKING says None"],
        ),
    ],
)
def test_a_name_with_two_homes_is_found(tmp_path, homes, public, said):
    typed = "if TYPE_CHECKING:\n    from circuits.a import f\n    from circuits.b import g\n"
    known = fake(tmp_path, circuits__=f"{typed}_HOMES = {homes}\n__all__ = {public}")
    assert homes_that_disagree(known["circuits"]) == said


def test_public_names_are_few_and_each_resolves():
    import circuits

    assert len(circuits.__all__) <= 25
    assert [name for name in circuits.__all__ if not hasattr(circuits, name)] == []
    for module, path in KNOWN.items():
        loaded = importlib.import_module(module) if declared(path) else None
        assert [name for name in declared(path) if not hasattr(loaded, name)] == [], module
    with pytest.raises(AttributeError, match="module 'circuits' has no attribute 'pruned'; it offers"):
        circuits.pruned  # noqa: B018


def in_fresh_process(code: str, root: Path = ROOT) -> str:
    """Why this code fails in a new interpreter, started in `root`; empty when it does not."""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    return done.stderr[-2000:] if done.returncode else ""


HEAVY = "heavy = {'torch', 'transformer_lens', 'numba', 'plotly'} & set(__import__('sys').modules)\n"
HEAVY += "assert not heavy, sorted(heavy)"
HELP = "from typer.testing import CliRunner\nfrom circuits.__main__ import app\n"
HELP += "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"


@pytest.mark.parametrize("start", ["import circuits\n", HELP], ids=["import", "help"])
def test_nothing_heavy_is_loaded_before_something_is_used(start):
    assert in_fresh_process(start + HEAVY) == ""


def test_what_loads_torch_is_found():
    assert "AssertionError: ['torch'" in in_fresh_process("import circuits\ncircuits.task_score\n" + HEAVY)


STATE = """
import logging, os, random, sys, warnings
import numba, numpy, optuna, rich.style, scipy.optimize, scipy.stats, torch, transformer_lens, typer
import plotly.graph_objects, plotly.io, plotly.offline, plotly.subplots
sys.modules["triton"] = None

def state():
    return {
        "random": random.getstate(),
        "numpy.random": numpy.random.get_state()[1].tolist(),
        "torch.random": torch.random.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "plotly template": plotly.io.templates.default,
        "logging": logging.root.level,
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
    }

before = state()
"""
SAME = """
after = state()
assert before == after, "changed: " + ", ".join(name for name in before if before[name] != after[name])
"""


def test_import_changes_no_global_state_and_needs_no_triton():
    """A fresh interpreter: types, threads, generators, environment and filters are as the libraries leave them."""
    every = ", ".join(name for name in KNOWN if not name.startswith("circuits.kernels.triton"))
    assert in_fresh_process(f"{STATE}import {every}{SAME}") == ""


def test_an_import_that_changes_global_state_is_found(tmp_path):
    changes = (
        "import os, torch, random\ntorch.set_default_dtype(torch.float64)\nos.environ['MALLOC_'] = '1'\n"
    )
    fake(tmp_path, circuits__="", circuits__a=f"{changes}random.random()")
    said = in_fresh_process(f"{STATE}sys.path.insert(0, '.')\nimport circuits.a{SAME}", tmp_path)
    assert said.endswith("AssertionError: changed: random, dtype, environment\n")


def unhooked(tasks: Path, hooked: str) -> list[str]:
    """Modules of tasks that state shapes, which no test run would check."""
    stating = [path.stem for path in sorted(tasks.glob("*.py")) if "from jaxtyping" in path.read_text()]
    return [name for name in stating if f"tasks.{name}," not in hooked]


def test_every_module_that_states_shapes_is_checked(tmp_path):
    """Modules of tasks without tensors are left out of the check: they draw text by the thousand lines."""
    hooked = (ROOT / "pyproject.toml").read_text()
    assert unhooked(ROOT / "tasks", hooked) == []
    (tmp_path / "novel.py").write_text("from jaxtyping import Float")
    assert unhooked(tmp_path, hooked) == ["novel"]
