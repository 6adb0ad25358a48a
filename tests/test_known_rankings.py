"""The experiment on known circuits: its truth is one, its swaps are what they say, its AUROC is by hand."""

import json

import pytest
import torch

from circuits.model.sites import Site
from docs.experiments.rankings import (
    FUNCTIONS,
    PAGE,
    RESULTS,
    SEEDS,
    Known,
    auroc,
    expected,
    shares_right,
    swapped,
    table,
    trained,
)
from tasks import Task


@pytest.mark.parametrize("name", FUNCTIONS)
def test_pairs_and_swaps_follow_the_algorithm(name):
    for task in (Known(function=name, seed=seed) for seed in SEEDS):
        assert isinstance(task, Task)
        assert len(set(task.heads)) == (1 if name == "first" else 2)
        batch = task.batch(20, split="train", seed=0)
        for clean, corrupt, answer, foil in zip(
            batch.clean, batch.corrupt, batch.answer, batch.foil, strict=True
        ):
            assert int((clean != corrupt).sum()) == 1
            for prompt, right in ((clean, answer), (corrupt, foil)):
                assert task.solve(" ".join(f"w{i}" for i in prompt.tolist())) == f"w{int(right)}"
        base, other = batch.clean, batch.clean.roll(1, 0)
        a, b = (base[:, place].clone() for place in task.places)
        a = other[:, task.places[0]]
        assert torch.equal(expected(task, task.heads[0], base, other), FUNCTIONS[name](a, b))
        free = next((i, j) for i in range(2) for j in range(4) if (i, j) not in task.heads)
        assert torch.equal(expected(task, free, base, other), task.answers(base))


def test_a_swap_replaces_one_head_and_a_model_is_held_to_all_of_them():
    task = Known(function="sum", seed=0)
    subject = trained(task, 2, batch_size=4)
    base = task.prompts(5, torch.Generator().manual_seed(3))
    other = base.flip(0)
    with torch.no_grad():
        plain = subject(base)[:, -1]
        torch.testing.assert_close(swapped(subject, (0, 1), base, base), plain)
        found = swapped(subject, (1, 2), base, other)
    assert not torch.allclose(found, plain, atol=1e-5)
    assert set(shares_right(subject, task, n=8)) == {
        "plain",
        *(f"L{i}H{j}" for i in range(2) for j in range(4)),
    }


def test_auroc_by_hand():
    scores = {
        Site(0, "attn_head"): torch.tensor([3.0, 1.0, 2.0]),
        Site(1, "attn_head"): torch.tensor([1.0, 0.0]),
    }
    assert auroc(scores, [(0, 0), (1, 0)]) == pytest.approx((3 + 1.5) / 6)


def test_the_page_holds_what_was_measured():
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    assert table(report) in page
    report["auroc"]["gates"] = 0.5
    assert table(report) not in page
