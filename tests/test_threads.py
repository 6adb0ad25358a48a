"""Small passes stay on one thread, where a busy neighbour on the other core cannot hold them up."""

import pytest
import torch

from circuits.model.compute import SMALL_PASS, threads_for
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer
from circuits.pruning import procedure
from circuits.pruning.procedure import prune
from circuits.zoo import load
from docs.experiments.speed import busy_neighbour, compared
from tasks import load_task

TINY = ModelConfig(d_vocab=7, n_layers=1, d_model=8, n_heads=2, d_head=4, n_ctx=4)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_small_passes_have_one_thread_and_large_ones_all(two_threads) -> None:
    model = SparseTransformer(TINY, seed=0)
    width = sum(model.widths.values())
    with threads_for(model, 100) as n:
        assert n == torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with threads_for(model, SMALL_PASS // width + 1) as n:
        assert n == 2
    assert torch.get_num_threads() == 2


def test_the_number_of_threads_is_put_back_after_an_error(two_threads) -> None:
    with pytest.raises(KeyError), threads_for(SparseTransformer(TINY, seed=0), 1):
        raise KeyError
    assert torch.get_num_threads() == 2


def test_pruning_the_model_that_ships_is_small(two_threads, monkeypatch) -> None:
    seen = []

    class Looking(procedure.Search):
        def __init__(self, *args: object) -> None:
            seen.append(torch.get_num_threads())
            raise KeyboardInterrupt

    monkeypatch.setattr(procedure, "Search", Looking)
    with pytest.raises(KeyboardInterrupt):
        prune(load("mini-python").model, load_task("quotes"), progress=False)
    assert seen == [1]
    assert torch.get_num_threads() == 2


def test_ratios_by_hand_and_a_neighbour_that_goes_away() -> None:
    numbers = compared([(4.0, 2.0), (6.0, 4.0), (9.0, 3.0)], [(0.0, 6.0), (0.0, 9.0), (0.0, 3.0)])
    assert numbers["busy_neighbour_ratio"] == 2.0
    assert numbers["first_over_second"] == 2.0
    assert numbers["prune_seconds"]["alone"] == {"median": 3.0, "least": 2.0, "most": 4.0}
    with busy_neighbour():
        pass
