"""Statistics that several rooms share."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats
from torch import Tensor

Numbers = Sequence[int | float] | Float[Tensor, " n"]


def spearman(x: Numbers, y: Numbers) -> float:
    """Spearman's rank correlation, in [-1, 1]; values that are equal share their mean rank.

    NaN where either side is constant (or has fewer than two values): there is no order to agree with, which is not
    the same as finding no agreement. Raises ValueError for sides of different lengths.
    """
    a, b = (np.asarray([float(value) for value in values]) for values in (x, y))
    if len(a) != len(b):
        raise ValueError(f"y: got {len(b)} values; expected {len(a)}, as many as x has.")
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(stats.spearmanr(a, b).statistic)
