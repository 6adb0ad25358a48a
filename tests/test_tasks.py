"""What holds for every task: labels agree with the rule, nothing simpler predicts them, splits hold."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from difflib import SequenceMatcher

import jaxtyping
import pytest
import torch
from torch import Tensor

from tasks import TASKS, Batch, Corpus, Task, load_task
from tasks.composition import CELLS, HELD_OUT, Composition, apply_ov, composition_corpus, foretold
from tasks.induction import induction_corpus
from tasks.mini_choices import FORMS, MiniChoice
from tasks.modular import Modular, modular_corpus
from tasks.names import names_corpus
from tasks.python import PythonChoice
from tasks.python_choices import CHOICES
from tasks.stdlib import REQUIRED, stdlib_files
from tasks.tokenizer import BPE

CASES = [
    ("quotes", {}),
    ("quotes", {"context_lines": 3}),
    ("brackets", {}),
    ("brackets", {"distractors": 2}),
    ("brackets", {"length": 4}),
    ("brackets", {"length": 24, "distractors": 1}),
    ("induction", {}),
    ("names", {}),
    ("modular", {}),
    ("composition", {}),
    ("composition", {"which": "held_out", "n_queries": 2}),
    ("copy", {}),
    ("reverse", {}),
    ("gender", {}),
    *((name, {}) for name in FORMS),
    *((name, {}) for name in CHOICES),
]


@pytest.fixture
def as_users_run_it() -> Iterator[None]:
    """Without the shape checks of the test run, which would speak up before the errors under test."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def task(request: pytest.FixtureRequest, small_bpe: BPE) -> Task:
    name, options = request.param
    if name in CHOICES:
        options = {"tokenizer": small_bpe}
    return load_task(name, **options)


@pytest.fixture(scope="module")
def small_bpe() -> BPE:
    """Trained on a part of the standard library, which takes a second and needs no cache."""
    files = stdlib_files()
    texts = [text for path, text in files.items() if path.startswith(("asyncio/", "email/", "unittest/"))]
    return BPE.train(texts, name="small-bpe", d_vocab=2048, required=REQUIRED)


@pytest.fixture(scope="module")
def batch(task: Task) -> Batch:
    return task.batch(500, split="train", seed=0)


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
        assert (
            _score_of_table(feature.tolist(), batch) < 0.62
        )  # 300 fair coins exceed it once in 10,000 times


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


def test_both_directions_are_as_common(batch: Batch) -> None:
    answers = Counter(batch.answer.tolist())
    if len(answers) == 2:
        assert 190 < answers[int(batch.answer[0])] < 310


def test_splits_share_no_prompt(task: Task) -> None:
    seen: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        batch = task.batch(40, split=split, seed=0)
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


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nonsense", {}, r"task: got 'nonsense'; expected one of \['bracket.*\]"),
        ("quotes", {"context_lines": 4}, "context_lines must be 0 to 3 lines, got 4"),
        ("brackets", {"length": 65}, "length must be 1 to 64 elements or None, got 65"),
        ("brackets", {"distractors": -1}, "distractors must be 0 to 8 lines, got -1"),
        ("modular", {"modulus": 4}, "modulus must be 5 to 999, got 4"),
        ("composition", {"which": "some"}, "which must be 'seen', 'held_out' or 'all', got 'some'"),
        ("composition", {"n_queries": 9}, "n_queries must be 1 to 8, got 9"),
        ("composition", {"held_out": (("odd", "even"),)}, r"held_out must name cells of .*'odd', 'even'"),
        ("composition", {"held_out": CELLS}, "leave some that are 'seen'"),
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


def test_a_tokenizer_too_small_for_python_is_refused() -> None:
    bytes_only = BPE.train(["x = 1"], name="bytes", d_vocab=256)
    with pytest.raises(ValueError, match=r"tokenizer 'bytes' has single tokens for 0 of \d+ variable names"):
        PythonChoice(name="with_as", tokenizer=bytes_only)
    with pytest.raises(ValueError, match=r"name: got 'nonsense'; expected one of \['bracket_brace'"):
        PythonChoice(name="nonsense", tokenizer=bytes_only)


@pytest.mark.parametrize("name", CHOICES)
def test_python_pairs_differ_in_little(name: str, small_bpe: BPE) -> None:
    batch = load_task(name, tokenizer=small_bpe).batch(50, split="train", seed=0)
    for clean, corrupt in zip(batch.clean.tolist(), batch.corrupt.tolist(), strict=True):
        blocks = SequenceMatcher(None, clean, corrupt, autojunk=False).get_matching_blocks()
        assert len(clean) - sum(block.size for block in blocks) <= 6


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_mini_python_could_stand_in_its_text(name: str) -> None:
    """Every prompt, with what follows it, begins a line that the grammar writes."""
    shape = re.compile(
        r"""[a-z]{1,3}\ =\ (?: \[\d,\ \d\] | \[\d, | \(\d,\ \d\) | \d\ \+\ \d\n | \d\d\ 
        | (?P<q>['"])[a-z]{2,8}(?P=q)\n | \((?P<r>['"])[a-z]{1,4}(?P=r), | len\((?P<s>['"])[a-z]{1,4}(?P=s)\) )""",
        re.VERBOSE,
    )
    task = load_task(name)
    batch = task.batch(50, split="train", seed=0)
    for tokens in (batch.clean, batch.corrupt):
        for text in prompts(task, tokens, batch.position):
            assert shape.fullmatch(text + task.solve(text)), text + task.solve(text)


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match=r"name: got 'rhyme'; expected one of \['bracket_kind'"):
        MiniChoice(name="rhyme")


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOICES)
def test_python_choices_on_all_of_real_python(name: str) -> None:
    task = load_task(name)
    batch = task.batch(500, split="test", seed=0)
    test_solver_agrees_with_the_labels(task, batch)
    test_prompts_have_the_same_last_token_and_fit(task, batch)


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("induction", "k c q a x c q", "a"),
        ("names", "when ann and bob went to the shop , bob gave a book to", "ann"),
        ("modular", "50 + 8 =", "5"),
        ("composition", "ann o3 , bob o7 : other class ann =", "k2"),
        ("composition", "ann o3 , bob o7 : same use ann =", "u0"),
        ("composition", "ann o3 , bob o7 , cat o5 : odd antonym =", "o1"),
        ("composition", "ann o3 , bob o8 : other successor ann =", "o0"),
        ("brackets", "a = [[1]]\nb = [7, [1, 4, 2", "]]"),
        ("quotes", "a = 'x'\nb = \"yz", '"'),
    ],
)
def test_solvers_by_hand(name: str, text: str, answer: str) -> None:
    task = load_task(name)
    assert task.solve(text) == answer
    assert task.tokenizer.decode(task.tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("corpus", "task"),
    [
        (induction_corpus(n_train_lines=300, n_val_lines=100), load_task("induction")),
        (names_corpus(n_train_lines=300, n_val_lines=100), load_task("names")),
        (modular_corpus(n_train_lines=3000), load_task("modular")),
        (composition_corpus(n_train_lines=300, n_val_lines=100), load_task("composition")),
    ],
    ids=lambda value: value.name,
)
def test_corpora_of_the_toy_tasks(corpus: Corpus, task: Task) -> None:
    assert corpus.tokenizer == task.tokenizer
    assert corpus.name == task.name
    text = {
        split: corpus.tokenizer.decode(stream.tolist())
        for split, stream in (("train", corpus.train), ("val", corpus.val))
    }
    for split, other in (("train", "val"), ("val", "train"), ("test", "train"), ("test", "val")):
        batch = task.batch(50, split=split, seed=5)
        for prompt in prompts(task, batch.clean, batch.position):
            assert f"\n{prompt} " not in f"\n{text[other]}"
    starts = corpus.train_starts
    assert starts is not None
    lines = text["train"].splitlines()
    assert len(lines) == len(starts)
    assert corpus.windows(2, 40, split="val", generator=torch.Generator()).shape == (2, 40)


def test_every_sum_is_in_one_split() -> None:
    task = Modular(modulus=11)
    sums = [pair for split in ("train", "val", "test") for pair in task.sums[split]]
    assert sorted(sums) == [(a, b) for a in range(11) for b in range(11)]
    small = modular_corpus(modulus=11, n_train_lines=500)
    lines = set(small.tokenizer.decode(small.train.tolist()).splitlines())
    assert lines == {f"{a} + {b} = {(a + b) % 11}" for a, b in task.sums["train"]}


def test_held_out_cells_stay_out_of_training() -> None:
    text = composition_corpus(n_train_lines=1500, n_val_lines=100)
    lines = text.tokenizer.decode(text.train.tolist()).splitlines()
    asked = [query.split() for line in lines if ":" in line for query in line.split(" : ")[1].split(" , ")]
    assert {(qk, ov) for qk, ov, *_ in asked} == set(CELLS) - set(HELD_OUT)
    assert set(Composition(which="held_out").active) == set(HELD_OUT)
    assert set(Composition(which="all").active) == set(CELLS) == set(Composition().cells)
    # Each rule is still seen, in other company.
    assert {qk for qk, _, *_ in asked} == {"same", "other", "odd"}
    assert {ov for _, ov, *_ in asked} == {ov for _, ov in CELLS}


def test_what_is_foretold_follows_from_its_line() -> None:
    text = composition_corpus(n_train_lines=300, n_val_lines=50)
    generator = torch.Generator().manual_seed(0)
    tokens = text.windows(64, 28, split="train", generator=generator)
    recitals = 0
    for row, asked in zip(tokens.tolist(), foretold(tokens).tolist(), strict=True):
        words = [text.tokenizer.token(t) for t in row]
        for at in [i for i in range(27) if asked[i]]:
            line = " ".join(words[: at + 1]).rsplit("\n")[-1].split()
            if line[-1] == "=":
                assert words[at + 1] == Composition().solve(" ".join(line))
            else:
                recitals += 1
                assert words[at + 1] == line[line.index(line[-1]) + 1]
        assert all(asked[i] for i in range(28) if words[i] == "=")
    assert recitals > 100


def test_composition_scores_every_query() -> None:
    task = Composition(which="all", n_queries=3)
    batch = task.batch(100, split="val", seed=0)
    assert set(batch.scored.sum(1).tolist()) == {2, 3}
    assert torch.equal(batch.scored, batch.cell >= 0)
    assert torch.equal(batch.targets.gather(1, batch.position[:, None])[:, 0], batch.answer)
    for row in range(100):
        tokens = batch.clean[row].tolist()
        for place in batch.scored[row].nonzero().flatten().tolist():
            text = task.tokenizer.decode(tokens[: place + 1])
            assert task.tokenizer.id(task.solve(text)) == int(batch.targets[row, place])
            assert (
                tuple(text.split(" , ")[-1].split(" : ")[-1].split()[:2])
                == CELLS[int(batch.cell[row, place])]
            )
    assert set(batch.cell[batch.scored].tolist()) == set(range(len(CELLS)))
    chosen = batch.rows([3, 1]).to("cpu")
    assert torch.equal(chosen.cell, batch.cell[[3, 1]])
    assert torch.equal(chosen.targets, batch.targets[[3, 1]])


def test_no_query_of_a_prompt_was_answered_before() -> None:
    task = Composition(which="all", n_queries=4)
    batch = task.batch(100, split="val", seed=0)
    for text in prompts(task, batch.clean, batch.position):
        *earlier, last = text.split(" : ")[1].split(" , ")
        assert last.split()[:2] not in [query.split()[:2] for query in earlier]


def test_induction_is_not_a_matter_of_which_letters_occur() -> None:
    task = load_task("induction")
    batch = task.batch(300, split="train", seed=0)
    assert torch.equal(batch.clean.sort(dim=1).values, batch.corrupt.sort(dim=1).values)
    earlier = 0
    for text, answer, foil in zip(
        prompts(task, batch.clean, batch.position), batch.answer.tolist(), batch.foil.tolist(), strict=True
    ):
        letters = text.split()
        right, wrong = (task.tokenizer.decode([token]) for token in (answer, foil))
        assert letters.count(right) == letters.count(wrong) == 1
        earlier += letters.index(right) < letters.index(wrong)
    # Which of the two comes first must not give the answer away either.
    assert 0.3 < earlier / 300 < 0.7


def test_ov_rules_are_what_they_are_called() -> None:
    things = [f"o{i}" for i in range(9)]
    for thing in things:
        assert apply_ov("copy", thing) == thing
        assert apply_ov("antonym", apply_ov("antonym", thing)) == thing
    assert [t for t in things if apply_ov("antonym", t) == t] == ["o4"], (
        "only the middle one is its own antonym"
    )
    assert len({(apply_ov("class", thing), apply_ov("use", thing)) for thing in things}) == 9
    walk = [things[0]]
    while len(walk) < 9:
        walk.append(apply_ov("successor", walk[-1]))
    assert walk == things
