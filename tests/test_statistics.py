"""Statistics: by hand, and against their definitions written out."""

import math

import numpy as np
import pytest
import torch

from circuits.composition import benjamini_hochberg
from circuits.statistics import spearman
from circuits.trust.yardsticks import _binomial_tail
from docs.experiments.heads import interval


def ranks(values):
    return np.array([sum(u < v for u in values) + sum(u == v for u in values) / 2 for v in values])


def test_spearman_by_hand():
    assert spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486833)
    assert spearman(torch.tensor([1.0, 2, 3]), [3, 2, 1]) == pytest.approx(-1)


def test_spearman_is_pearson_of_ranks_with_ties_at_their_mean():
    generator = np.random.default_rng(0)
    for _ in range(20):
        x, y = generator.integers(0, 6, (2, 12)).tolist()
        expected = np.corrcoef(ranks(x), ranks(y))[0, 1]
        assert spearman(x, y) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("x", "y"), [([1, 1], [1, 2]), ([1, 2, 3], [4, 4, 4]), ([1], [2]), ([], [])])
def test_where_a_side_is_constant_there_is_no_correlation(x, y):
    assert math.isnan(spearman(x, y))


def test_sides_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="y: got 3 values; expected 2, as many as x has"):
        spearman([1, 2], [1, 2, 3])


def test_q_values_are_the_smallest_rate_at_which_a_test_is_among_the_significant():
    p = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).square()
    expected = [
        min(min(1.0, float(other) * len(p) / int((p <= other).sum())) for other in p if other >= one)
        for one in p
    ]
    torch.testing.assert_close(
        benjamini_hochberg(p), torch.tensor(expected, dtype=p.dtype), atol=1e-9, rtol=0
    )


def test_binomial_tail_is_the_sum_of_its_terms():
    for k, n, p in ((0, 5, 0.3), (3, 7, 0.5), (80, 128, 0.6), (128, 128, 0.6)):
        expected = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))
        assert _binomial_tail(k, n, p) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("n", "t"), [(2, 12.7062), (3, 4.3027), (11, 2.2281), (31, 2.0423)])
def test_intervals_take_the_quantile_of_their_own_size(n, t):
    values = [float(i) for i in range(n)]
    low, high = interval(values)
    assert (high - low) / 2 == pytest.approx(t * np.std(values, ddof=1) / n**0.5, rel=1e-4)
