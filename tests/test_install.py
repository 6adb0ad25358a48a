"""What is pinned is what is asked for, on every Python; without a network (`make resolve` asks the package index)."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
PYTHONS = [f"3.{n}" for n in range(30) if f"3.{n}" in SpecifierSet(PROJECT["requires-python"])]

TRITON_OF_TORCH = {"2.13.0": "3.7.1"}
"""The triton that the plain index's build of each torch requires, exactly. CPU builds require none, so that a
machine which has one never sees a wrong pair. From `Requires-Dist: triton` in the metadata of torch's wheel."""


def applies(requirement: Requirement, python: str) -> bool:
    """Whether a requirement's marker holds on Linux with this Python."""
    linux = {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
    }
    environment = (
        default_environment() | linux | {"python_version": python, "python_full_version": f"{python}.0"}
    )
    return requirement.marker is None or requirement.marker.evaluate(environment)


def pins(constraints: str, python: str) -> dict[str, str]:
    """The version of each pinned package; raises for a line that is not one exact, unrepeated pin."""
    found: dict[str, str] = {}
    for line in constraints.splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        (pin,) = requirement.specifier
        assert pin.operator == "==", line
        assert "*" not in pin.version, line
        if applies(requirement, python):
            assert name not in found, f"{line}: pinned twice for Python {python}"
            found[name] = pin.version
    return found


def requirements(project: dict, python: str) -> Iterator[Requirement]:
    """What the project and all its extras ask for on this Python, apart from the extras that name each other."""
    lines = chain(project["dependencies"], *project["optional-dependencies"].values())
    for requirement in map(Requirement, lines):
        if requirement.name == project["name"]:
            assert requirement.extras <= project["optional-dependencies"].keys()
        elif applies(requirement, python):
            yield requirement


def complaints(project: dict, constraints: str, python: str) -> list[str]:
    """What would keep the pins from being installed on this Python, as far as that shows without an index."""
    pinned, found = pins(constraints, python), []
    for requirement in requirements(project, python):
        version = pinned.get(canonicalize_name(requirement.name))
        if version is None:
            found.append(f"{requirement.name}: no pin")
        elif not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement}: pinned to {version}")
    torch, triton = pinned.get("torch"), pinned.get("triton")
    if TRITON_OF_TORCH.get(torch) != triton:
        found.append(f"torch {torch} requires triton {TRITON_OF_TORCH.get(torch)}; pinned to {triton}")
    return found


def changed(line: str, to: str) -> str:
    """The constraints with one line changed, which must be there."""
    assert f"\n{line}\n" in CONSTRAINTS
    return CONSTRAINTS.replace(f"\n{line}\n", f"\n{to}\n")


@pytest.mark.parametrize("python", PYTHONS)
def test_every_range_has_a_pin_inside_it(python):
    assert complaints(PROJECT, CONSTRAINTS, python) == []


def test_a_triton_that_torch_does_not_take_is_reported():
    bad = changed("triton==3.7.1", "triton==3.9.0")
    assert complaints(PROJECT, bad, "3.13") == ["torch 2.13.0 requires triton 3.7.1; pinned to 3.9.0"]


def test_a_missing_pin_and_one_out_of_range_are_reported():
    only_old = changed("scipy==1.17.1", "scipy==1.17.1; python_version < '3.14'")
    assert complaints(PROJECT, only_old, "3.13") == []
    assert complaints(PROJECT, only_old, "3.14") == ["scipy: no pin"]
    assert complaints(PROJECT, changed("scipy==1.17.1", "scipy==1.3"), "3.14") == [
        "scipy>=1.13: pinned to 1.3"
    ]


def test_lines_that_are_no_pins_are_refused():
    with pytest.raises(InvalidRequirement):
        pins("scipy==1.17.1; python_versoin < '3.14'", "3.14")
    with pytest.raises(AssertionError, match="pinned twice for Python 3.14"):
        pins("scipy==1.17.1\nscipy==1.3; python_version > '3.13'", "3.14")


def test_the_readme_names_the_pythons_that_are_supported():
    prefix = "Programming Language :: Python :: "
    tried = [text.removeprefix(prefix) for text in PROJECT["classifiers"] if text.startswith(prefix)]
    readme = (ROOT / "README.md").read_text()
    assert tried == PYTHONS[: len(tried)]
    assert f"Python {tried[0]} to {tried[-1]}" in readme
    assert all(f"on {python} all" in readme for python in PYTHONS[len(tried) :])


@pytest.mark.parametrize("unsolvable", [None, PYTHONS[0], PYTHONS[-1]])
def test_resolve_asks_for_every_python_and_fails_if_one_does(unsolvable, tmp_path):
    calls = tmp_path / "calls"
    for tool in ("python", "uv"):
        fake = f'#!/bin/sh\necho "$@" >> {calls}\ncase "$*" in *"--python-version {unsolvable}"*) exit 1;; esac\n'
        (tmp_path / tool).write_text(fake)
        (tmp_path / tool).chmod(0o755)
    run = subprocess.run(
        [ROOT / ".ci" / "resolve", tmp_path], capture_output=True, text=True, env=dict(os.environ)
    )
    assert run.returncode == (unsolvable is not None), run.stderr
    assert run.stdout.count("DOES NOT RESOLVE") == (unsolvable is not None)
    asked = calls.read_text()
    assert "pip install" in asked
    assert all(f"--python-version {python} " in asked for python in PYTHONS)


@pytest.mark.parametrize("name", ["tasks.py", "tasks/__init__.py"])
def test_a_file_called_tasks_that_comes_first_is_named(tmp_path: Path, name: str) -> None:
    other = tmp_path / name
    other.parent.mkdir(exist_ok=True)
    other.write_text("")
    for code, fails in (("import circuits", True), ("import sys; sys.path.pop(0); import circuits", False)):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip
        assert (f"ImportError: tasks: found {other}; expected {ROOT}" in done.stderr) == fails, done.stderr
        assert bool(done.returncode) == fails


def test_the_lock_has_a_hash_for_every_file_and_the_versions_that_are_pinned():
    """`.ci/lock` writes it; a pin that was changed since then is found here."""
    lock = (ROOT / ".ci" / "lock.txt").read_text().replace("\\\n", " ")
    lines = [line for line in lock.splitlines() if line and not line.startswith("#")]
    pinned = pins(CONSTRAINTS, "3.13")
    for line in lines:
        requirement = Requirement(line.partition(" --hash")[0])
        assert "--hash=sha256:" in line, requirement
        (version,) = requirement.specifier
        # What CUDA builds and other systems bring along is not pinned.
        name = canonicalize_name(requirement.name)
        assert version.version == pinned.get(name, version.version), requirement
    locked = {canonicalize_name(Requirement(line.partition(" --hash")[0]).name) for line in lines}
    asked = {canonicalize_name(requirement.name) for requirement in requirements(PROJECT, "3.13")}
    assert asked - {"ray"} <= locked, "ray is no part of the development environment"
