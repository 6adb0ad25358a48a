"""What the code is like to read and to start: sizes, circles of imports, public names, seconds until it answers.

    python -m docs.experiments.structure measure    -> docs/results/structure.json
    python -m docs.experiments.structure tree       -> the tree in README.md, docs/reference/tree.md and names.md

Times are ratios to what cannot be avoided, from fresh processes that take turns. Leave the machine alone meanwhile.
"""

import ast
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console

from circuits.files import write_results
from docs.experiments.imports import all_imports, cycles, declared, edges, modules
from docs.experiments.tree import write_pages

RESULTS = Path("docs/results/structure.json")
HEADLINES = (
    *("cycles", "function_median", "function_longest", "file_median", "file_longest", "public_names"),
    *("help_ratio", "import_ratio", "tests_over_code"),
)
LOADED = "import json, sys, circuits; circuits.prune; print(json.dumps(sorted(sys.modules)))"
"""Says what the first use of a function that needs nearly everything has loaded."""

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


class Function(NamedTuple):
    """A function or method, and how many lines it has, signature and docstring among them."""

    lines: int
    where: str


@app.command()
def measure(
    rounds: Annotated[
        int, typer.Option(help="Times that each command is started, after one that does not count.")
    ] = 3,
    results: Annotated[Path, typer.Option(help="File to write.")] = RESULTS,
) -> None:
    """Read the source, time the starts, and write the results file; under two minutes."""
    started = time.perf_counter()
    numbers = {**sizes(), **starts(rounds)}
    command = f"python -m docs.experiments.structure measure --rounds {rounds}"
    seconds = time.perf_counter() - started
    report = write_results(results, command=command, seeds=[], seconds=seconds, numbers=numbers)
    Console().print({key: report[key] for key in HEADLINES})


@app.command()
def tree() -> None:
    """Rewrite the tree in README.md and the two pages of docs/reference."""
    for path in write_pages():
        Console().print(f"{path}: written")


def sizes(root: Path = Path()) -> dict[str, Any]:
    """Everything that is read from the source: lengths, circles of imports, public names, tests over code."""
    known = modules(root)
    lengths = {path.relative_to(root).as_posix(): n_lines(path) for path in known.values()}
    functions = [one for path in known.values() for one in functions_of(path, root)]
    longest, longest_file = max(functions), max(lengths, key=lambda name: lengths[name])
    found = edges(all_imports(known), known)
    circles = cycles(found)
    names = {module: len(declared(path)) for module, path in known.items() if declared(path)}
    return {
        "files": len(lengths),
        "functions": len(functions),
        "lines": sum(lengths.values()),
        "function_median": statistics.median(one.lines for one in functions),
        "function_longest": longest.lines,
        "function_longest_name": longest.where,
        "file_median": statistics.median(lengths.values()),
        "file_longest": lengths[longest_file],
        "file_longest_name": longest_file,
        "cycles": len(circles),
        "files_in_cycles": sum(map(len, circles)),
        "files_in_cycles_with_doors": sum(map(len, cycles(found, doors=()))),
        "public_names": names.get("circuits", 0),
        "public_names_of_rooms": {module: n for module, n in names.items() if module != "circuits"},
        "tests_over_code": sum(map(n_lines, (root / "tests").glob("*.py"))) / sum(lengths.values()),
    }


def functions_of(path: Path, root: Path) -> list[Function]:
    """Every function and method of a file, also those inside others."""
    where = path.relative_to(root).as_posix()
    return [
        Function((node.end_lineno or node.lineno) - node.lineno + 1, f"{where}:{node.name}")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def n_lines(path: Path) -> int:
    """Lines of a file, blank ones and comments among them."""
    return len(path.read_text(encoding="utf-8").splitlines())


def starts(rounds: int, root: Path = Path()) -> dict[str, Any]:
    """Seconds of fresh processes: the help, the import and the first use, each over what it cannot do without."""
    loaded = subprocess.run(
        [sys.executable, "-c", LOADED], cwd=root, check=True, capture_output=True, text=True
    ).stdout
    needs = libraries(root) & set(json.loads(loaded))
    seconds = medians(
        {
            "help": ["-m", "circuits", "--help"],
            "typer_and_rich": ["-c", "import typer, rich"],
            "import": ["-c", "import circuits"],
            "transformer_lens": ["-c", "import transformer_lens"],
            "first_use": ["-c", "import circuits; circuits.prune"],
            "needs": ["-c", f"import {', '.join(sorted(needs))}"],
        },
        rounds=rounds,
        root=root,
    )
    return {
        "help_ratio": seconds["help"] / seconds["typer_and_rich"],
        "import_ratio": seconds["import"] / seconds["transformer_lens"],
        "first_use_ratio": seconds["first_use"] / seconds["needs"],
        "first_use_needs": sorted(needs),
        "start_seconds": seconds,
        "rounds": rounds,
    }


def libraries(root: Path) -> set[str]:
    """The libraries that the packages import themselves, the standard library aside."""
    known = modules(root)
    asked = {one.name.partition(".")[0] for one in all_imports(known)}
    return asked - set(sys.stdlib_module_names) - set(known)


def medians(commands: Mapping[str, Sequence[str]], *, rounds: int, root: Path = Path()) -> dict[str, float]:
    """Median seconds of each command of this Python, started in turn; a first round fills the caches."""
    if rounds < 1:
        raise ValueError(f"rounds: got {rounds}; expected at least 1.")
    taken = [{name: seconds_of(words, root) for name, words in commands.items()} for _ in range(rounds + 1)]
    return {name: statistics.median(one[name] for one in taken[1:]) for name in commands}


def seconds_of(words: Iterable[str], root: Path) -> float:
    """Seconds that one fresh process takes, start of the interpreter included. Raises when it fails."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=root, check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    app()
