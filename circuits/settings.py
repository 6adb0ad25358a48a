"""Settings: frozen, each field checked by its annotation when made, JSON in and out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from tasks.near import nearest

S = TypeVar("S", bound="Settings")


class Within(NamedTuple):
    """Bounds of a number, as part of its annotation."""

    said: str
    """In words, after "expected"."""
    least: int | float = -math.inf
    """The number is at least this ..."""
    most: int | float = math.inf
    """... and at most this."""
    above: int | float = -math.inf
    """And it is above this."""

    def holds(self, value: int | float) -> bool:
        """Whether a number lies within."""
        return self.least <= value <= self.most and value > self.above


class Said(NamedTuple):
    """An annotation in words, after "expected"."""

    said: str

    def holds(self, value: Any) -> bool:
        """Nothing more is asked of the value."""
        return True


Count = Annotated[int, Within("a whole number of at least 1", least=1)]
Prompts = Annotated[int, Within("a whole number of at least 1, and at most 16,384", least=1, most=2**14)]
Whole = Annotated[int, Within("a whole number of at least 0", least=0)]
Seed = Annotated[int, Within("a whole number from 0 to 2**32 - 1", least=0, most=2**32 - 1)]
Positive = Annotated[float, Within("a positive number", above=0)]
Amount = Annotated[float, Within("a number of at least 0", least=0)]
Density = Annotated[float, Within("a density in (0, 1]", above=0, most=1)]
Fraction = Annotated[float, Within("a fraction in [0, 1]", least=0, most=1)]
Decay = Annotated[float, Within("a number in [0, 1)", least=0, most=math.nextafter(1, 0))]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a procedure. Every field is checked when it is made, and holds plain Python types afterwards."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, checked(field.name, getattr(self, field.name), field.type))

    def __new__(cls, *_: Any, **values: Any) -> Any:
        """Raises TypeError for a setting that there is none of, with the nearest that there is."""
        names = [field.name for field in fields(cls)] if is_dataclass(cls) else list(values)
        for name in values.keys() - set(names):
            near = nearest(name, names)
            raise TypeError(f"{cls.__name__}: got a setting {name!r}; expected some of {names}.{near}")
        return super().__new__(cls)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls: type[S], data: Any) -> S:
        """The inverse of `to_json`. Raises ValueError on an unknown or missing key, or a value that does not fit."""
        return cls(**fitted(cls, data))


def checked(name: str, value: Any, kind: Any) -> Any:
    """A value as its annotation asks for it, for the argument called `name`. Raises ValueError where it is another.

    Scalars of numpy and torch become plain numbers, and lists become tuples where tuples are asked for. A truth value
    is no number, a float is no int, an int will do for a float, and no number is infinite or NaN.
    """
    try:
        return _fitted(_plain(value), kind)
    except _UnfitError:
        raise ValueError(
            f"{name}: got {value!r}; expected {_said(kind)}.{nearest(value, _options(kind))}"
        ) from None


def fitted(config_class: type, data: Any) -> dict[str, Any]:
    """The fields of a dataclass out of JSON. Raises ValueError on a key or a value that does not fit."""
    kinds = {field.name: field.type for field in fields(config_class)}
    return {name: checked(name, value, kinds[name]) for name, value in check_keys(config_class, data).items()}


def require(config: Any, name: str, holds: bool, expected: str) -> None:
    """Raise the ValueError of a setting that is not what it must be beside others."""
    if not holds:
        raise ValueError(f"{name}: got {getattr(config, name)!r}; expected {expected}.")


def check_keys(config_class: type, data: Any) -> dict[str, Any]:
    """Pass `data` on when its keys fit the dataclass. Raises ValueError naming the ones that do not."""
    name = config_class.__name__
    if not isinstance(data, Mapping):
        raise ValueError(f"{name}: got {data!r}; expected a JSON object with its fields.")
    known = fields(config_class)
    names = [field.name for field in known]
    unknown = sorted(map(str, set(data) - set(names)))
    if unknown:
        raise ValueError(
            f"{name}: unknown key {unknown}; expected keys out of {names}.{nearest(unknown[0], names)}"
        )
    needed = [f.name for f in known if f.default is MISSING and f.default_factory is MISSING]
    missing = [field for field in needed if field not in data]
    if missing:
        raise ValueError(f"{name}: no key {missing}; expected one for each field without a default.")
    return dict(data)


def check_kind(name: str, value: Any, kind: type, do: str) -> None:
    """Raise ValueError where an argument is no instance of a class; do: the sentence that says how to get one."""
    if not isinstance(value, kind):
        got = repr(value) if isinstance(value, str | int | float | Path) else f"a {type(value).__name__}"
        raise ValueError(f"{name}: got {got}; expected a {kind.__name__}. {do}")


def check_config(config: Any, kind: type[Settings]) -> None:
    """`check_kind` for settings."""
    own = kind.__name__
    check_kind("config", config, kind, f"Make one: circuits.{own}(...), or {own}.from_json(data).")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], above: str = "") -> list[str]:
    """Where two settings in JSON differ, key by key: "model.n_ctx: 40 and 64"."""
    found: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        was, now = old.get(key), new.get(key)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            found += differences(was, now, f"{above}{key}.")
        elif was != now:
            found.append(f"{above}{key}: {was!r} and {now!r}")
    return found


class _UnfitError(Exception):
    """A value is not what its annotation asks for."""


def _plain(value: Any) -> Any:
    """Arrays and tensors of any library as numbers, or lists of them."""
    return value.tolist() if hasattr(value, "tolist") else value


def _fitted(value: Any, kind: Any) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _within(_fitted(value, parts[0]), parts[1:])
    if origin in (Union, UnionType):
        return _first(value, parts)
    if origin is Literal:
        return _first_equal(value, parts)
    if origin is tuple:
        return _items(value, parts)
    if origin is not None and issubclass(origin, Mapping):
        _must(isinstance(value, Mapping))
        return {key: _plain(item) for key, item in value.items()}
    return _simple(value, kind)


def _simple(value: Any, kind: Any) -> Any:
    if kind is Any:
        return value
    if kind in (None, NoneType):
        _must(value is None)
    elif kind is float:
        _must(isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value))
    elif kind is int:
        _must(isinstance(value, int) and not isinstance(value, bool))
    elif is_dataclass(kind) and isinstance(value, Mapping):
        return kind.from_json(value)  # type: ignore[union-attr]
    elif issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return kind(*_items(value, tuple(kind.__annotations__.values())))
    else:
        _must(isinstance(value, kind))
    return value


def _within(value: Any, bounds: Sequence[Within | Said]) -> Any:
    _must(all(bound.holds(value) for bound in bounds))
    return value


def _first(value: Any, kinds: Sequence[Any]) -> Any:
    """As the first of some kinds that it fits."""
    for kind in kinds:
        try:
            return _fitted(value, kind)
        except _UnfitError:
            continue
    raise _UnfitError


def _first_equal(value: Any, options: Sequence[Any]) -> Any:
    # The types, too: 1 and True are equal.
    found = [option for option in options if type(option) is type(value) and option == value]
    _must(bool(found))
    return found[0]


def _items(value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    _must(isinstance(value, list | tuple))
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    _must(len(value) == len(kinds))
    return tuple(_fitted(_plain(item), kind) for item, kind in zip(value, kinds, strict=True))


def _must(holds: bool) -> None:
    if not holds:
        raise _UnfitError


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False


def _options(kind: Any) -> list[str]:
    """The texts that an annotation allows, where it lists them."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return [option for option in parts if isinstance(option, str)]
    return [option for part in parts for option in _options(part)]


def _said(kind: Any) -> str:
    """An annotation in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return str(parts[1].said)
    if origin in (Union, UnionType):
        return ", or ".join(_said(part) for part in parts)
    if origin is Literal:
        return f"one of {parts}"
    if origin is tuple and parts[1:] == (Ellipsis,):
        return f"a list, each of it {_said(parts[0])}"
    if origin is tuple:
        return f"{len(parts)} values: {', '.join(_said(part) for part in parts)}"
    if origin is not None:
        return "a dictionary"
    named: dict[Any, str] = {None: "None", NoneType: "None", int: "a whole number", float: "a finite number"}
    named |= {bool: "True or False", str: "a text"}
    return named.get(kind) or f"a {kind.__name__}"
