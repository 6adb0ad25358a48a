"""What numbers allow to be said: a direction only where the interval of a difference excludes zero."""

from collections.abc import Sequence

from circuits.statistics import interval


def direction(name: str, before: Sequence[float], after: Sequence[float], *, digits: int = 1) -> str:
    """A sentence about paired values: that they fall or rise, or that no difference is shown, with the 95 % interval.

    before, after: values of the same seeds (or other pairs), in the same order. Raises ValueError for fewer than two.
    """
    if len(before) != len(after) or len(before) < 2:
        raise ValueError(
            f"before, after: got {len(before)} and {len(after)} values; expected two pairs or more. Run more seeds."
        )
    differences = [float(b - a) for a, b in zip(before, after, strict=True)]
    low, high = interval(differences)
    mean = sum(differences) / len(differences)
    said = f"({mean:+.{digits}f}, 95 % interval {low:+.{digits}f} to {high:+.{digits}f}, {len(before)} pairs)"
    if low > 0:
        return f"{name.capitalize()} rises {said}."
    if high < 0:
        return f"{name.capitalize()} falls {said}."
    return f"No difference of {name} is shown {said}."
