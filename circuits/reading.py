"""Reading what others may have written: one kind of error, JSON in measure, checksums.

A file may be cut short, edited, damaged on a disk, or made to do harm. Every reader of this package looks before it
allocates or computes, and either gives what is in the file or raises `UnreadableError`.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

DEEPEST = 32
"""Objects and lists inside one another, at most."""
WIDEST = 64
"""Bits of a whole number, at most."""
CHECKSUM = "checksum"
"""The key under which a JSON file keeps the hash of all its other keys."""
DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What Python, torch and the format libraries raise at data that is not what it should be."""


class UnreadableError(ValueError):
    """A file does not hold what it was taken for; nothing of it was used."""


@contextmanager
def reading(path: str | Path, expected: str, *, name: str = "path", kind: str = "") -> Iterator[None]:
    """Inside, whatever goes wrong with a file's content is an UnreadableError that names the file.

    name: the argument that gave the file. expected: what it should be, in words; kind: "as a circuit" or the like.
    """
    try:
        yield
    except UnreadableError as error:
        if str(path) in str(error):
            raise
        said = f"({error}); expected {expected}."
    except DAMAGE as error:
        if type(error) is ValueError and str(path) in str(error):
            raise UnreadableError(str(error)) from None
        plain = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        said = f"({shortened(plain)}); expected {expected}."
    else:
        return
    raise UnreadableError(f"{name}: {path} cannot be read{kind} {said}")


def demand(holds: bool, what: str, expected: str) -> None:
    """Raise UnreadableError for `what` was found, where it does not hold."""
    if not holds:
        raise UnreadableError(f"{shortened(what)}; expected {expected}.")


def is_number(value: object) -> bool:
    """Whether a value is one: a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def shortened(text: str, longest: int = 400) -> str:
    """A text for a message, its middle left out where it is long."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} ... {text[-half:]}"


def parsed(text: str) -> Any:
    """What JSON text holds. Raises UnreadableError for what no file of ours has: see the constants, and `_unique`.

    Its objects take no more than some ten times the memory of the text.
    """
    _check_measure(text)
    try:
        data = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse, parse_int=_whole, parse_float=_number
        )
    except RecursionError:
        raise UnreadableError("JSON: lists inside lists without end; expected few.") from None
    except json.JSONDecodeError as error:
        raise UnreadableError(f"JSON: {error}.") from None
    _check_depth(data)
    return data


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same JSON types with their checksum."""
    return {**data, CHECKSUM: checksum_of(data)}


def unsealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data without its checksum. Raises UnreadableError where that is another; older files have none."""
    rest = {key: value for key, value in data.items() if key != CHECKSUM}
    if CHECKSUM in data:
        found = checksum_of(rest)
        demand(
            data[CHECKSUM] == found, f"checksum: got {data[CHECKSUM]!r}", f"{found}, or the file was changed"
        )
    return rest


def checksum_of(data: Mapping[str, Any]) -> str:
    """A hash of JSON types, whatever their order and spacing in a file: 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:32]


def _check_measure(text: str) -> None:
    """What Python's objects would take, by the marks that stand for one each."""
    strings = max(0, text.count('"') // 2 - text.count(":"))
    cost = 64 * text.count("[") + 240 * text.count("{") + 40 * text.count(",") + 64 * strings
    demand(
        cost <= 9 * len(text) + 2**20, f"JSON: {len(text)} characters would take {cost} bytes", "fewer parts"
    )


def _check_depth(data: Any) -> None:
    level, depth = [data], 0
    while level:
        level = [
            part
            for whole in level
            if isinstance(whole, dict | list)
            for part in (whole.values() if isinstance(whole, dict) else whole)
            if isinstance(part, dict | list)
        ]
        depth += 1
        demand(depth <= DEEPEST, f"JSON: more than {DEEPEST} lists or objects in one another", "fewer")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UnreadableError(f"JSON: the key {shortened(twice)!r} is there twice; expected it once.")
    return found


def _refuse(name: str) -> NoReturn:
    raise UnreadableError(f"JSON: got {name}; expected a number, or null.")


def _whole(digits: str) -> int:
    demand(len(digits) <= 20 and int(digits).bit_length() <= WIDEST, f"JSON: got {digits}", "at most 64 bits")
    return int(digits)


def _number(text: str) -> float:
    value = float(text)
    demand(math.isfinite(value), f"JSON: got {text}", "a number that a double holds")
    return value
