"""The page and the widget on which a circuit is read, questioned and run: offline, in plain JavaScript."""

from typing import TYPE_CHECKING, Any

from circuits.explorer.page import to_html
from circuits.explorer.view import circuit_view

if TYPE_CHECKING:
    from circuits.explorer.widget import explore

__all__ = ["circuit_view", "explore", "to_html"]


def __getattr__(name: str) -> Any:
    """`explore`, which alone needs anywidget."""
    if name != "explore":
        raise AttributeError(
            f"module 'circuits.explorer' has no attribute {name!r}; it offers {', '.join(__all__)}."
        )
    try:
        from circuits.explorer.widget import explore
    except ModuleNotFoundError as missing:
        raise ValueError(
            f"explore: the package {missing.name!r} is missing; expected anywidget. Install it with "
            "`pip install sparse-circuits[notebooks]`, or write a file with circuit.to_html(path, model, task)."
        ) from None
    return explore
