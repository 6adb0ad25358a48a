"""The page and the widget on which a circuit is read, questioned and run: offline, in plain JavaScript."""

from circuits.explorer.page import to_html
from circuits.explorer.view import circuit_view

__all__ = ["circuit_view", "to_html"]
