"""The projection: exactly k survive, units keep their minimum inside the budget, the schedule hits its ends."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.training.projection import budget, density_at, project_topk, topk_mask


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_exactly_k_survive_and_projection_is_idempotent(rows, columns, data):
    k = data.draw(st.integers(1, rows * columns))
    weight = torch.randint(-3, 4, (rows, columns), generator=torch.Generator().manual_seed(k)).float()
    mask = topk_mask(weight, k)
    assert int(mask.sum()) == k
    dropped = weight[~mask].abs()
    assert dropped.numel() == 0 or dropped.max() <= weight[mask].abs().min()
    project_topk(weight, k)
    once = weight.clone()
    project_topk(weight, k)
    assert torch.equal(weight, once)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 10), st.integers(2, 10), st.integers(0, 1), st.data())
def test_units_keep_their_minimum_inside_the_budget(rows, columns, axis, data):
    units = (rows, columns)[axis]
    j = data.draw(st.integers(1, (rows, columns)[1 - axis]))
    k = data.draw(st.integers(j * units, rows * columns))
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(j * k))
    mask = topk_mask(weight, k, min_alive=j, unit_axis=axis)
    assert int(mask.sum()) == k
    assert int(mask.sum(1 - axis).min()) >= j


def test_by_hand():
    weight = torch.tensor([[9.0, 8.0, 7.0], [1.0, -2.0, 0.5]])
    assert topk_mask(weight, 3).tolist() == [[True, True, True], [False, False, False]]
    alive = topk_mask(weight, 3, min_alive=1, unit_axis=0)
    assert alive.tolist() == [[True, True, False], [False, True, False]]


def test_errors_say_what_to_do():
    with pytest.raises(
        ValueError, match=r"2 weights for each of 4 units need 8 nonzeros, but the budget .* is 7"
    ):
        topk_mask(torch.randn(5, 4), 7, min_alive=2, unit_axis=1)
    with pytest.raises(ValueError, match="k: got 0; expected 1 to 20"):
        topk_mask(torch.randn(5, 4), 0)


@pytest.mark.parametrize("shape", ["linear", "exponential"])
def test_schedule(shape):
    at = [density_at(p, 0.02, shape=shape) for p in (0.0, 0.01, 0.25, 0.5, 1.0)]
    assert at[0] == at[1] == 1
    assert at[3] == at[4] == pytest.approx(0.02)
    middle = density_at((0.01 + 0.5) / 2, 0.02, shape=shape)
    assert middle == pytest.approx(0.51 if shape == "linear" else 0.02**0.5)


def test_budget_never_reaches_zero():
    assert budget(10, 0.01) == 1
    assert budget(1000, 0.0156) == 15
