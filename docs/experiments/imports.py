"""Who imports whom, and what of it breaks the plan of the house. Read from source text; nothing is executed.

An import counts wherever it stands, also inside a function, and so does `import_module` of a text (of an f-string:
everything that begins as it does). Only `if TYPE_CHECKING:` is left out, which never runs. Importing a module from
outside its package also runs the `__init__` of that package, so that counts too.
"""

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx

PACKAGES = ("circuits", "tasks")
LEVELS: tuple[frozenset[str], ...] = (
    frozenset(
        {"files", "kernels", "model", "progress", "reading", "settings", "signals", "statistics", "views"}
    ),
    frozenset({"circuit"}),
    frozenset(
        {
            "training",
            "pruning",
            "trust",
            "bridges",
            "heads",
            "composition",
            "decompile",
            "handmade",
            "ranking",
        }
    ),
    frozenset({"plots"}),
    frozenset({"explorer", "interop", "sweep", "zoo", "bench"}),
    frozenset({"commands"}),
    frozenset({"__main__", "__init__"}),
)
"""The rooms of `circuits`, lowest first: a room may import from its own level and from lower ones."""
DOORS = frozenset(("circuits.views", f"circuits.{room}") for room in ("plots", "decompile", "explorer"))
"""The imports upwards that are allowed, inside functions only: behind `.plot()`, `.describe()` and the like."""
LIBRARIES = {
    "plotly": "circuits.plots*",
    "networkx": "circuits.circuit*",
    "triton": "circuits.kernels.triton*",
    "optuna": "circuits.pruning.tune",
    "tensorboard": "circuits.training.loggers",
    "wandb": "circuits.training.loggers",
}
"""Libraries that have one place, and the modules that may import them."""


class Import(NamedTuple):
    """One import: what is asked for, in dotted form, by whom, and whether only when a function is called."""

    importer: str
    name: str
    lazy: bool
    line: int


def modules(root: Path, packages: Sequence[str] = PACKAGES) -> dict[str, Path]:
    """Every module below `root` by its dotted name; a package goes by its own name, without `__init__`."""
    found = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def all_imports(known: Mapping[str, Path]) -> list[Import]:
    """Every import of every module, of libraries too."""
    return [one for module, path in known.items() for one in imports_of(module, path)]


def imports_of(module: str, path: Path) -> list[Import]:
    """Every import of one file. `from a import b` asks for `a.b`; a name that ends in `*` for all that begin so."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return [
        Import(module, name, lazy, getattr(node, "lineno", 0))
        for node, lazy in _running(ast.parse(path.read_text(encoding="utf-8")), lazy=False)
        for name in _asked_for(node, package)
    ]


def edges(imports: Iterable[Import], known: Collection[str]) -> list[Import]:
    """The imports between known modules, each with the module that it loads as its `name`."""
    return [
        one._replace(name=target)
        for one in imports
        for target in _loaded(one, known)
        if target != one.importer
    ]


def cycles(found: Iterable[Import], doors: Collection[tuple[str, str]] = DOORS) -> list[list[str]]:
    """Modules that import each other in a circle, lazily or not: each strongly connected part, largest first."""
    graph = nx.DiGraph((one.importer, one.name) for one in found if not _through(one, doors))
    parts = [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]
    return sorted(parts, key=lambda part: (-len(part), part))


def upward(
    found: Iterable[Import],
    levels: Sequence[Collection[str]] = LEVELS,
    doors: Collection[tuple[str, str]] = DOORS,
) -> list[str]:
    """Imports of a room on a higher level, those of the doors excepted where they stand inside a function."""
    height = {name: level for level, names in enumerate(levels) for name in names}
    return [
        f"{one.importer}:{one.line} imports {one.name}, which is above it"
        for one in found
        if one.importer.startswith("circuits") and one.name.startswith("circuits")
        if height.get(room(one.name), 0) > height.get(room(one.importer), 0)
        if not (one.lazy and _through(one, doors))
    ]


def foreign(imports: Iterable[Import]) -> list[str]:
    """Imports of what lies outside: `circuits` from `tasks`, and `docs`, `tests` or `notebooks` from either."""
    outside = {
        "circuits": {"docs", "tests", "notebooks"},
        "tasks": {"circuits", "docs", "tests", "notebooks"},
    }
    return [
        f"{one.importer}:{one.line} imports {one.name}"
        for one in imports
        if one.name.partition(".")[0] in outside[one.importer.partition(".")[0]]
    ]


def misplaced(imports: Iterable[Import], libraries: Mapping[str, str] = LIBRARIES) -> list[str]:
    """Imports of a library outside the one place that it has."""
    return [
        f"{one.importer}:{one.line} imports {one.name}; only {libraries[library]} may"
        for one in imports
        if (library := one.name.partition(".")[0]) in libraries
        and not fnmatch(one.importer, libraries[library])
    ]


def unlisted(known: Iterable[str], levels: Sequence[Collection[str]] = LEVELS) -> list[str]:
    """Rooms without a level, and levels that name a room which is neither there nor planned."""
    there = {room(name) for name in known if name.split(".")[0] == "circuits"}
    listed = {name for names in levels for name in names}
    new = [
        f"circuits/{name} has no level: add it to LEVELS, beside what it may import"
        for name in there - listed
    ]
    gone = [f"LEVELS names {name}, which is not in circuits/" for name in listed - there]
    return sorted(new) + sorted(gone)


def clashes(known: Mapping[str, Path]) -> list[str]:
    """Public names of a package that are also a module of it: the one hides the other."""
    return [
        f"{module}.{name} is both a public name and a module"
        for module, path in known.items()
        if path.name == "__init__.py"
        for name in declared(path)
        if f"{module}.{name}" in known
    ]


def homes_that_disagree(path: Path, package: str = "circuits") -> list[str]:
    """Names that `_HOMES` of a lazy package places elsewhere than its imports under TYPE_CHECKING, or only one has."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    homes = next(_literal(node, "_HOMES") for node in tree.body if _literal(node, "_HOMES") is not None)
    placed = {name: f"{package}.{home}" for home, names in homes.items() for name in names}
    typed = {
        alias.name: node.module
        for block in tree.body
        if _is_type_checking(block)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    everywhere = {*placed, *typed, *declared(path)}
    return [
        f"{name}: _HOMES says {placed.get(name)}, TYPE_CHECKING says {typed.get(name)}"
        for name in sorted(everywhere)
        if placed.get(name) is None or placed.get(name) != typed.get(name)
    ]


def declared(path: Path) -> list[str]:
    """The names in a module's `__all__`; none where it has no list of them."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if (names := _literal(node, "__all__")) is not None:
            return list(names)
    return []


def assigned(node: ast.stmt) -> set[str]:
    """The names that a statement gives a value to, perhaps under a condition."""
    if isinstance(node, ast.If):
        return {name for inner in (*node.body, *node.orelse) for name in assigned(inner)}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return (
        {node.target.id} if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else set()
    )


def room(module: str) -> str:
    """The room of a module of `circuits`; `__init__` for the package itself."""
    return next(iter(module.split(".")[1:]), "__init__")


def _running(node: ast.AST, *, lazy: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Every node that can run, and whether it does so only when a function is called."""
    yield node, lazy
    inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    children = getattr(node, "orelse", []) if _is_type_checking(node) else ast.iter_child_nodes(node)
    for child in children:
        yield from _running(child, lazy=inside)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _asked_for(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        return [f"{base}.{alias.name}" for alias in node.names]
    if (
        isinstance(node, ast.Call)
        and node.args
        and ast.unparse(node.func).endswith(("import_module", "__import__"))
    ):
        return _spelled(node.args[0])
    return []


def _spelled(name: ast.expr) -> list[str]:
    first = name.values[0] if isinstance(name, ast.JoinedStr) and name.values else name
    if not isinstance(first, ast.Constant) or not isinstance(first.value, str):
        return []
    return [first.value if first is name else f"{first.value}*"]


def _loaded(one: Import, known: Collection[str]) -> set[str]:
    """The known modules that run because of one import: its targets, and packages that are entered on the way."""
    if one.name.endswith("*"):
        targets = {name for name in known if name.startswith(one.name[:-1])}
    else:
        targets = {next((name for name in _prefixes(one.name) if name in known), "")} - {""}
    entered = {package for target in targets for package in _prefixes(target)[1:]}
    return targets | {
        name for name in entered if name in known and not f"{one.importer}.".startswith(f"{name}.")
    }


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _through(one: Import, doors: Collection[tuple[str, str]]) -> bool:
    return any(one.importer == a and f"{one.name}.".startswith(f"{b}.") for a, b in doors)


def _literal(node: ast.stmt, name: str) -> Any:
    """The value of a top-level assignment to `name` that is written out; None for anything else."""
    value = getattr(node, "value", None)
    return ast.literal_eval(value) if value is not None and name in assigned(node) else None
