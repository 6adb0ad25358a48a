"""The command that says what this machine has, what is missing, and what brings it."""

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from circuits.commands.shared import AsJson, answer, clear_errors, console, show_table


class Finding(NamedTuple):
    """One line of the examination."""

    name: str
    found: str | None
    "What is there; None: nothing."
    needed: bool
    "Whether the package cannot do without."
    use: str
    "What it is for."
    remedy: str
    "What brings it."


PACKAGES = ("torch", "transformer-lens", "numpy", "numba", "plotly", "networkx", "safetensors", "tokenizers")
EXTRAS = {
    "notebooks": (("jupyterlab", "anywidget", "ipywidgets"), "notebooks, and the explorer in them"),
    "search": (("optuna",), "prune(search=)"),
    "sweep": (("pyarrow", "submitit"), "tables as parquet, sweeps on Slurm"),
    "ray": (("ray",), "sweeps on Ray"),
    "docs": (("mkdocs-material", "mkdocstrings"), "the documentation's site"),
}
"""Packages of each optional extra, and what it is for."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def doctor(as_json: AsJson = False) -> None:
    """What this machine has, what is missing, and what to install. Exit status 1 where something needed is missing."""
    with clear_errors():
        findings = [*_packages(), *_machine(), *_extras()]
    missing = [one for one in findings if one.found is None]
    if as_json:
        answer(_report(findings), True, title="")
    else:
        rows = [(one.name, one.found or ("MISSING" if one.needed else "none"), one.use) for one in findings]
        show_table("This machine", ("", "found", "for"), rows)
        for one in missing:
            console().print(f"{one.name}: {one.remedy}", highlight=False, soft_wrap=True)
    if any(one.needed for one in missing):
        from typer import Exit

        raise Exit(1)


def _report(findings: list[Finding]) -> dict[str, Any]:
    return {
        "healthy": not any(one.found is None and one.needed for one in findings),
        "findings": [one._asdict() for one in findings],
    }


def _packages() -> list[Finding]:
    own = Finding("sparse-circuits", _version("sparse-circuits"), True, "this package", "pip install -e .")
    python = Finding("python", platform.python_version(), True, "", "")
    others = [
        Finding(name, _version(name), True, "", f"pip install -c constraints.txt {name}") for name in PACKAGES
    ]
    return [own, python, *others]


def _machine() -> list[Finding]:
    compiler = next((name for name in ("gcc", "clang", "cc") if shutil.which(name)), None)
    browser = next((name for name in BROWSERS if shutil.which(name)), None)
    return [
        Finding("cores", str(len(_cores())), True, "", ""),
        Finding("threads", _threads(), True, "OMP_NUM_THREADS=1 where other work runs beside", ""),
        Finding(
            "numba compiles", _compiles(), True, "sparse products on the CPU", "pip install --force numba"
        ),
        Finding(
            "gpu",
            _gpu(),
            False,
            "Triton's kernels; all else runs on the CPU",
            "needs an NVIDIA GPU, and torch with CUDA; nothing else does without",
        ),
        Finding(
            "triton", _version("triton"), False, "sparse products on a GPU", "pip install triton (Linux)"
        ),
        Finding("c compiler", compiler, False, "Triton's kernels", "apt-get install gcc, or the like"),
        Finding(
            "chromium", browser, False, "tests that open a page", "apt-get install chromium, or the like"
        ),
    ]


def _extras() -> list[Finding]:
    found = []
    for extra, (packages, use) in EXTRAS.items():
        versions = {name: _version(name) for name in packages}
        lacking = [name for name, one in versions.items() if one is None]
        said = None if lacking else ", ".join(f"{name} {one}" for name, one in versions.items())
        remedy = f"pip install -c constraints.txt 'sparse-circuits[{extra}]'  (lacking: {', '.join(lacking)})"
        found.append(Finding(f"extra {extra}", said, False, use, remedy))
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cores() -> set[int]:
    """The cores that this process may use."""
    return os.sched_getaffinity(0) if sys.platform == "linux" else set(range(os.cpu_count() or 1))


def _threads() -> str:
    import torch

    said = os.environ.get("OMP_NUM_THREADS")
    return f"{torch.get_num_threads()}, OMP_NUM_THREADS {'not set' if said is None else said}"


def _compiles() -> str | None:
    """Whether numba makes machine code here: of a sum."""
    import numba

    try:
        return "yes" if numba.njit(lambda a, b: a + b)(2, 3) == 5 else None
    except (numba.core.errors.NumbaError, OSError):
        return None


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
