"""Batch: its checks, and the views it offers."""

from collections.abc import Iterator
from dataclasses import replace

import jaxtyping
import pytest
import torch

from tasks import load_corpus
from tasks.base import Batch, Pair, draw_pairs, encode_pairs, split_of
from tasks.tokenizer import CharTokenizer

GOOD = {
    "clean": torch.tensor([[1, 2, 0], [1, 3, 4]]),
    "corrupt": torch.tensor([[2, 2, 0], [1, 3, 5]]),
    "answer": torch.tensor([7, 8]),
    "foil": torch.tensor([8, 7]),
    "position": torch.tensor([1, 2]),
}


@pytest.fixture
def as_users_run_it() -> Iterator[None]:
    """Without the shape checks of the test run, which would speak up before the errors under test."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_tokens_and_targets_stacks_clean_over_corrupt() -> None:
    targets = Batch(**GOOD).tokens_and_targets()
    assert targets.tokens.tolist() == [[1, 2, 0], [1, 3, 4], [2, 2, 0], [1, 3, 5]]
    assert targets.answer.tolist() == [7, 8, 8, 7]
    assert targets.foil.tolist() == [8, 7, 7, 8]
    assert targets.position.tolist() == [1, 2, 1, 2]


def test_batches_and_corpora_are_equal_by_what_they_hold() -> None:
    assert Batch(**GOOD) == Batch(**{name: value.clone() for name, value in GOOD.items()})
    assert Batch(**GOOD) != Batch(**{**GOOD, "foil": torch.tensor([8, 6])})
    assert Batch(**GOOD) != Batch(**GOOD).rows(slice(1))
    assert Batch(**GOOD) != 5
    assert len({Batch(**GOOD), Batch(**GOOD)}) == 1
    mini = load_corpus("mini")
    again = replace(mini, train=mini.train.clone())
    assert again == mini
    assert len({again, mini}) == 1
    assert replace(mini, val=mini.val[:-1]) != mini
    assert replace(mini, name="other") != mini
    assert mini != 5


@pytest.mark.parametrize("indices", [torch.tensor([1]), [1], slice(1, 2)])
def test_rows(indices) -> None:
    chosen = Batch(**GOOD).rows(indices)
    assert len(chosen) == 1
    assert chosen.clean.tolist() == [[1, 3, 4]]
    assert chosen.answer.tolist() == [8]


def test_to_keeps_everything() -> None:
    moved = Batch(**GOOD).to("cpu")
    assert torch.equal(moved.clean, GOOD["clean"])
    assert len(moved) == 2


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clean": torch.zeros(2, dtype=torch.int64)}, r"clean must be \[batch, pos\].*got shape \(2,\)"),
        ({"corrupt": torch.tensor([[1, 2], [3, 4]])}, r"corrupt must have shape \(2, 3\).*got \(2, 2\)"),
        ({"answer": torch.tensor([7])}, r"answer must have shape \(2,\) to agree with clean, got \(1,\)"),
        ({"foil": torch.tensor([8.0, 7.0])}, r"foil must be int64, got torch.float32; convert it"),
        ({"position": torch.tensor([1, 3])}, r"position must lie in \[0, 3\).*got 1 to 3"),
        ({"position": torch.tensor([-1, 2])}, r"position must lie in \[0, 3\).*got -1 to 2"),
        ({"foil": torch.tensor([8, 8])}, "answer equals foil in 1 of 2 rows, first in row 1"),
        (
            {"position": torch.tensor([1, 1])},
            "clean and corrupt agree up to position in 1 of 2 rows, first in row 1",
        ),
    ],
)
def test_errors_of_batch(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batch(**GOOD | changes)


def test_unequal_lengths_are_refused() -> None:
    pair = Pair(clean="a = 'b", corrupt="a = 'bc", answer="'", foil='"', key="")
    with pytest.raises(ValueError, match=r"is 6 tokens and corrupt .* is 7; expected equal lengths"):
        encode_pairs([pair], CharTokenizer())


def test_too_few_prompts_is_an_error() -> None:
    with pytest.raises(ValueError, match="task 'empty' found only 0 of n=2 pairs for split 'val'"):
        draw_pairs(lambda rng: None, name="empty", n=2, split="val", seed=0)


def test_splits_are_eight_to_one_to_one() -> None:
    splits = [split_of(str(i)) for i in range(5000)]
    assert splits.count("train") / 5000 == pytest.approx(0.8, abs=0.02)
    assert splits.count("val") / 5000 == pytest.approx(0.1, abs=0.02)
