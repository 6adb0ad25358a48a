"""Statistics that several rooms share."""

import math
import statistics
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats
from torch import Tensor

Numbers = Sequence[int | float] | Float[Tensor, " n"]


LEAST = 1e-3
"""Nats below which there is nothing to take a share of: differences of that size are those of the prompts drawn."""


def share_of(part: float, whole: float, *, least: float = LEAST) -> float | None:
    """`part / whole`, where the whole is an amount (above `least`): a share of nothing, or of less, is None."""
    return part / whole if whole > least else None


def interval(values: Sequence[float]) -> list[float]:
    """95 % confidence interval of the mean (Student's t). A single value gives no width; a NaN, or no value, NaN."""
    if not values or any(math.isnan(value) for value in values):
        return [math.nan, math.nan]
    middle = sum(values) / len(values)
    if len(values) < 2:
        return [middle, middle]
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return [middle - half, middle + half]


def spearman(x: Numbers, y: Numbers) -> float:
    """Spearman's rank correlation, in [-1, 1]; values that are equal share their mean rank.

    NaN where either side is constant (or has fewer than two values): there is no order to agree with, which is not
    the same as finding no agreement; and where a value is NaN, which has no rank. Raises ValueError for sides of
    different lengths.
    """
    a, b = (np.asarray([float(value) for value in values]) for values in (x, y))
    if len(a) != len(b):
        raise ValueError(f"y: got {len(b)} values; expected {len(a)}, as many as x has.")
    if len(a) < 2 or np.isnan(a).any() or np.isnan(b).any() or _constant(a) or _constant(b):
        return float("nan")
    return float(stats.spearmanr(a, b).statistic)


def _constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())
