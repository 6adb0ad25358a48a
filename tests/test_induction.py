"""A small dense model trained on repeated letters: its induction heads, found in three ways."""

import pytest
import torch

from circuits.model.transformer import SparseTransformer
from docs.experiments.decoys import induction_model
from docs.experiments.induction import (
    MODEL,
    accuracy,
    compare_ways,
    paths_agree,
    repeated_letters,
    train_induction,
)


def test_letters_repeat_where_it_says_so():
    tokens, again = repeated_letters(50, torch.Generator().manual_seed(0))
    for row, said in zip(tokens.tolist(), again.tolist(), strict=True):
        length = said.index(True)
        assert 4 <= length <= 20
        assert all(row[i] == row[i - length] for i in range(length, MODEL.n_ctx))
        assert said == [i >= length for i in range(MODEL.n_ctx)]
    assert len({said.index(True) for said in again.tolist()}) > 10


def test_an_untrained_model_has_no_induction_heads():
    ways = compare_ways(SparseTransformer(MODEL, seed=0).eval())
    assert ways["induction_heads_by_patterns"] == []
    assert not ways["heads_agree"]


def test_the_three_ways_agree_on_the_hand_made_model():
    ways = compare_ways(induction_model())
    assert ways["induction_heads_by_weights"] == ways["induction_heads_by_patterns"] == ["L1H0"]
    assert ways["pair_by_weights"] == ways["pair_by_patching"] == "L0H0 -> L1H0.K"
    assert ways["previous_by_weights"] == ways["previous_by_patterns"] == "L0H0"
    assert paths_agree(ways)
    assert not paths_agree({**ways, "pair_by_patching": "L0H0 -> L1H0.Q"})
    assert not paths_agree({**ways, "pair_by_patching": "L0H1 -> L1H0.K"})


@pytest.mark.slow
def test_training_makes_induction_heads_that_all_three_ways_find():
    model = train_induction(0, steps=500)
    assert accuracy(model) > 0.8
    ways = compare_ways(model)
    assert ways["heads_agree"]
    assert paths_agree(ways)
    assert ways["rank_correlation"] > 0
