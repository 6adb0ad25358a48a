"""Figures and pages: data in, a plotly Figure or one self-contained HTML file out. Nothing is shown.

A new picture is one new file here. What its `__all__` names can be imported from `circuits.plots`; a function with
`@plot.register` draws things of the type of its first argument.
"""

from functools import singledispatch
from importlib import import_module
from pkgutil import walk_packages
from typing import Any


@singledispatch
def plot(thing: Any, **options: Any) -> Any:
    """The picture of a result (a circuit, a report, a run, a model, ...) as a plotly Figure.

    options: those of the function that draws its type, which `help(plot.dispatch(type(thing)))` shows. Raises
    TypeError for a type without a picture.

    Examples:
        >>> figure = circuits.plots.plot(circuits.load("quotes-128").report, title="Trust")
        >>> type(figure).__name__
        'Picture'
    """
    known = sorted(kind.__name__ for kind in plot.registry if kind is not object)
    raise TypeError(
        f"thing: got a {type(thing).__name__}; expected one of {', '.join(known)}. What a results file holds is drawn "
        "by a function of its own: see dir(circuits.plots)."
    )


def _public_names() -> dict[str, Any]:
    """What the `__all__` of every module in this folder and below it names; importing them registers their types."""
    modules = [import_module(found.name) for found in walk_packages(__path__, f"{__name__}.")]
    return {name: getattr(module, name) for module in modules for name in getattr(module, "__all__", ())}


def __getattr__(name: str) -> Any:
    """Say what there is; type checkers learn from it that names are found when this package is imported."""
    raise AttributeError(
        f"module 'circuits.plots' has no attribute {name!r}; it offers {', '.join(__all__)}."
    )


__all__ = ["plot"]
_FOUND = _public_names()
__all__ += sorted(_FOUND)
globals().update(_FOUND)
