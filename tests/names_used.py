"""The names of the project that a piece of code asks for, and whether they are there. The code is not run."""

import ast
import importlib
from collections.abc import Iterator

PACKAGES = ("circuits", "tasks", "docs")


def missing(source: str) -> list[str]:
    """Dotted names of the project that the code imports, or takes from `circuits`, and that do not exist."""
    return [name for name in asked_for(source) if not exists(name)]


def asked_for(source: str) -> Iterator[str]:
    """Names that are imported, and what is taken from a package by its full name, such as `circuits.prune`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and _is_dotted(node):
            names = [ast.unparse(node)]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in PACKAGES)


def _is_dotted(node: ast.expr) -> bool:
    """Whether it is names and dots alone: attributes of what a call returns are known when it has run."""
    return isinstance(node, ast.Name) or (isinstance(node, ast.Attribute) and _is_dotted(node.value))


def exists(name: str) -> bool:
    """Whether a dotted name can be reached: a module, or attributes of one."""
    first, *rest = name.split(".")
    reached = importlib.import_module(first)
    for depth, part in enumerate(rest, start=2):
        if not hasattr(reached, part):
            try:
                importlib.import_module(".".join(name.split(".")[:depth]))
            except ImportError:
                return False
        reached = getattr(reached, part)
    return True
