"""Names that nobody knows, and the nearest of those that are known."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def unknown(argument: str, got: Any, known: Iterable[str]) -> str:
    """What to say of an argument that names none of `known`: all of them, and the nearest."""
    names = sorted(known)
    return f"{argument}: got {got!r}; expected one of {names}.{nearest(got, names)}"


def nearest(got: Any, known: Iterable[str]) -> str:
    """A question, with a space before it, where a known name is near to what was given; else nothing."""
    found = get_close_matches(str(got), list(known), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""
