"""What holds for every task: labels agree with the rule, nothing simpler predicts them, splits hold."""

from collections import Counter, defaultdict
from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from torch import Tensor

from tasks import TASKS, Batch, Task, load_task

CASES = [
    ("quotes", {}),
    ("quotes", {"context_lines": 3}),
    ("brackets", {}),
    ("brackets", {"distractors": 2}),
    ("brackets", {"length": 4}),
    ("brackets", {"length": 64, "distractors": 1}),
]


@pytest.fixture
def as_users_run_it() -> Iterator[None]:
    """Without the shape checks of the test run, which would speak up before the errors under test."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def task(request: pytest.FixtureRequest) -> Task:
    name, options = request.param
    return load_task(name, **options)


@pytest.fixture(scope="module")
def batch(task: Task) -> Batch:
    return task.batch(1000, split="train", seed=0)


def prompts(task: Task, tokens: Tensor, position: Tensor) -> list[str]:
    rows = zip(tokens.tolist(), position.tolist(), strict=True)
    return [task.tokenizer.decode(row[: end + 1]) for row, end in rows]


def test_every_task_is_tested() -> None:
    assert {name for name, _ in CASES} == set(TASKS)


def test_solver_agrees_with_the_labels(task: Task, batch: Batch) -> None:
    for tokens, label in ((batch.clean, batch.answer), (batch.corrupt, batch.foil)):
        for text, right in zip(prompts(task, tokens, batch.position), label.tolist(), strict=True):
            assert task.tokenizer.id(task.solve(text)) == right, text


def test_no_shortcut_predicts_the_answer(batch: Batch) -> None:
    last = batch.clean.gather(1, batch.position[:, None])[:, 0]
    for feature in (last, batch.position, torch.zeros_like(last)):
        assert _score_of_table(feature.tolist(), batch) < 0.58


def _score_of_table(feature: list[int], batch: Batch) -> float:
    """Choose, between answer and foil, the one more often right after this value in the first half."""
    half = len(batch) // 2
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    answers, foils = batch.answer.tolist(), batch.foil.tolist()
    for value, answer in zip(feature[:half], answers[:half], strict=True):
        counts[value][answer] += 1
    scores = [
        0.5 + 0.5 * ((counts[v][a] > counts[v][f]) - (counts[v][a] < counts[v][f]))
        for v, a, f in zip(feature[half:], answers[half:], foils[half:], strict=True)
    ]
    return sum(scores) / len(scores)


def test_prompts_have_the_same_last_token_and_fit(task: Task, batch: Batch) -> None:
    end = batch.position[:, None]
    assert torch.equal(batch.clean.gather(1, end), batch.corrupt.gather(1, end))
    assert int(batch.position.max()) < task.n_ctx
    assert batch.clean.shape[1] == int(batch.position.max()) + 1


def test_both_directions_are_as_common(task: Task) -> None:
    batch = task.batch(1000, split="train", seed=1)
    answers = Counter(batch.answer.tolist())
    if len(answers) == 2:
        assert 400 < answers[int(batch.answer[0])] < 600


def test_splits_share_no_prompt(task: Task) -> None:
    seen: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        batch = task.batch(100, split=split, seed=0)
        seen[split] = {
            text for tokens in (batch.clean, batch.corrupt) for text in prompts(task, tokens, batch.position)
        }
    assert not seen["train"] & seen["val"]
    assert not seen["train"] & seen["test"]
    assert not seen["val"] & seen["test"]


def test_a_seed_fixes_the_batch(task: Task) -> None:
    one, two, other = (task.batch(20, split="test", seed=seed) for seed in (3, 3, 4))
    assert all(
        torch.equal(a, b) for a, b in zip(one.tokens_and_targets(), two.tokens_and_targets(), strict=True)
    )
    assert prompts(task, one.clean, one.position) != prompts(task, other.clean, other.position)


@pytest.mark.usefixtures("as_users_run_it")
def test_errors_of_batch(task: Task) -> None:
    with pytest.raises(ValueError, match=r"split must be one of \('train', 'val', 'test'\), got 'dev'"):
        task.batch(1, split="dev", seed=0)
    with pytest.raises(ValueError, match="n must be at least 1 pair, got 0"):
        task.batch(0, split="val", seed=0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nonsense", {}, r"name must be one of \['brackets'.*\], got 'nonsense'"),
        ("quotes", {"context_lines": 4}, "context_lines must be 0 to 3 lines, got 4"),
        ("brackets", {"length": 65}, "length must be 1 to 64 elements or None, got 65"),
        ("brackets", {"distractors": -1}, "distractors must be 0 to 8 lines, got -1"),
    ],
)
def test_errors_of_load_task(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_task(name, **options)


def test_distractors_are_closed_and_misleading() -> None:
    task = load_task("brackets", distractors=3)
    batch = task.batch(50, split="train", seed=0)
    for text in prompts(task, batch.clean, batch.position):
        *earlier, _ = text.split("\n")
        assert len(earlier) == 3
        assert all(line.count("[") == line.count("]") > 0 for line in earlier)
    quotes = load_task("quotes", context_lines=2).batch(50, split="train", seed=0)
    for text in prompts(task, quotes.clean, quotes.position):
        *earlier, last = text.split("\n")
        assert len(earlier) == 2
        assert set("".join(earlier)) & {"'", '"'}
        assert last.count("'") + last.count('"') == 1


def test_chosen_length_is_the_number_of_elements() -> None:
    task = load_task("brackets", length=17)
    batch = task.batch(50, split="val", seed=0)
    assert all(text.count(",") == 16 for text in prompts(task, batch.clean, batch.position))
