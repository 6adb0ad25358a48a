"""The pages that list what is there: the tree in README.md, every file with what it holds, every public name.

All three are read from the source, so a test can tell when one is out of date.
"""

import ast
from collections.abc import Mapping
from pathlib import Path

from circuits.files import write_text
from circuits.plots.markdown import write_between
from docs.experiments.imports import assigned, declared, modules

BEGIN, END = "<!-- the tree: begin -->", "<!-- the tree: end -->"
COMMAND = "python -m docs.experiments.structure tree"
TREE, NAMES = Path("docs/reference/tree.md"), Path("docs/reference/names.md")
TOP = {
    "pyproject.toml": "Ranges of versions, and the settings of every tool",
    "constraints.txt": "One version of each dependency: a set known to work together",
    "Makefile": "`make demo`, `make test`, `make test-all`, `make lint`, `make types`, `make notebooks`, `make site`",
    ".ci": "What runs on a clean checkout",
    "circuits": "",
    "tasks": "",
    "notebooks": "Tutorials, run from the top by the tests",
    "tests": "One file a module; warnings are errors, and shapes are checked in every run",
    "docs": "The site: how-to, explanation, reference, log; results, and the experiments that remake them",
}
"""Top-level entries in the order of the page, with what they hold; packages say so themselves."""


def write_pages(root: Path = Path()) -> list[Path]:
    """Write the tree between its marks in README.md, and both pages of docs/reference; returns the three paths.

    Raises ValueError when README.md lacks the marks.
    """
    readme = root / "README.md"
    write_between(readme, BEGIN, END, short_tree(root))
    return [readme, write_text(root / TREE, full_tree(root)), write_text(root / NAMES, names_page(root))]


def short_tree(root: Path) -> str:
    """One line a top-level entry and a room, as an indented block."""
    rows = []
    for name, said in TOP.items():
        path = root / name
        rows.append((f"{name}/" if path.is_dir() else name, said or sentence(path / "__init__.py")))
        if name == "circuits":
            rows += [(f"  {entry.name}/", sentence(entry / "__init__.py")) for entry in packages(path)]
            rows += [(f"  {entry.name}", sentence(entry)) for entry in files(path)]
    return _block(rows)


def full_tree(root: Path) -> str:
    """The page with every file of both packages and of the experiments, and the line that it begins with."""
    parts = [
        "# Every file",
        f"Written by `{COMMAND}` from the first line of each file; [names.md](names.md) lists what is public.",
    ]
    for top in ("circuits", "tasks", "docs/experiments"):
        parts += [f"## {top}/", _block(_rows(root / top, ""))]
    return "\n\n".join(parts) + "\n"


def names_page(root: Path) -> str:
    """The page with every public name, package by package, each with the first line of its docstring."""
    known = modules(root)
    parts = [
        "# Public names",
        f"Written by `{COMMAND}`. A name is public when the `__all__` of its package lists it. Those of `circuits` "
        "itself are what most work needs; the others are imported from their package.",
    ]
    for module, path in known.items():
        if names := declared(path):
            lines = [f"- `{name}`: {summary(module, name, known)}" for name in names]
            parts += [f"## {module}", sentence(path), "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def summary(module: str, name: str, known: Mapping[str, Path]) -> str:
    """The first line of what documents a public name, found by following imports to where it is defined.

    Raises ValueError for a name that is not defined there, or that nothing documents.
    """
    body = ast.parse(known[module].read_text(encoding="utf-8")).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name and ast.get_docstring(node):
            return _first_line(ast.get_docstring(node) or "")
        if name in assigned(node) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            return _first_line(str(after.value.value))
    for origin in ast.walk(ast.Module(body, [])):
        if isinstance(origin, ast.ImportFrom) and origin.module and origin.module in known:
            for alias in origin.names:
                if name == (alias.asname or alias.name):
                    return summary(origin.module, alias.name, known)
    raise ValueError(
        f"{module}.{name}: expected a definition with a docstring; give it one, or correct __all__."
    )


def sentence(path: Path) -> str:
    """The first line of a file's docstring, without its full stop. Raises ValueError for a file without one."""
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not said:
        raise ValueError(f"{path}: expected a docstring that says what the file holds; got none.")
    return _first_line(said)


def packages(folder: Path) -> list[Path]:
    """The packages inside a folder."""
    return sorted(path.parent for path in folder.glob("*/__init__.py"))


def files(folder: Path) -> list[Path]:
    """The modules inside a folder, without its `__init__`."""
    return sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")


def _rows(folder: Path, indent: str) -> list[tuple[str, str]]:
    rows = [(f"{indent}{path.name}", sentence(path)) for path in files(folder)]
    for package in packages(folder):
        rows.append((f"{indent}{package.name}/", sentence(package / "__init__.py")))
        rows += _rows(package, f"{indent}  ")
    return rows


def _block(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"    {name:<{width}}{said}" for name, said in rows)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].removesuffix(".")
