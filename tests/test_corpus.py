"""Training text: the grammar keeps its promises, windows begin where they should, a seed fixes everything."""

import random
import re
from collections import Counter

import pytest
import torch

from tasks import load_corpus
from tasks.base import Corpus
from tasks.corpus import mini_corpus
from tasks.grammar import MAX_LINE_TOKENS, draw_lines, n_tokens
from tasks.tokenizer import CharTokenizer

LINES = draw_lines(random.Random(0), 20_000)
STRING = re.compile(r"""[a-z]{1,3} = (?:'[a-z0-9 ]{1,8}'|"[a-z0-9 ]{1,8}")""")
FLAT = re.compile(r"[a-z]{1,3} = \[\d{1,2}(, \d{1,2})*\]")
NESTED = re.compile(r"[a-z]{1,3} = \[(\d{1,2}, )*\[\d{1,2}(, \d{1,2})*\]\]")


@pytest.fixture(scope="module")
def mini() -> Corpus:
    return mini_corpus(n_train_lines=3000, n_val_lines=300)


def test_every_line_is_python() -> None:
    for line in LINES[:3000]:
        compile(re.sub(r"\b(as|if|in|is|or|for|and|not|def|del|try)\b", "v", line), "line", "exec")


def test_strings_and_lists_are_each_a_third_of_the_lines() -> None:
    kinds = Counter(
        "string"
        if STRING.fullmatch(line)
        else "flat"
        if FLAT.fullmatch(line)
        else "nested"
        if NESTED.fullmatch(line)
        else "other"
        for line in LINES
    )
    share = {kind: count / len(LINES) for kind, count in kinds.items()}
    assert share["string"] > 1 / 3
    assert share["flat"] + share["nested"] > 1 / 3
    assert abs(share["flat"] - share["nested"]) < 0.02
    assert share["other"] > 0.25


def test_length_of_a_list_says_nothing_about_its_depth() -> None:
    counts = Counter((line.count(","), "]]" in line) for line in LINES if "[" in line)
    for commas in range(6):
        assert 0.45 < counts[commas, True] / (counts[commas, True] + counts[commas, False]) < 0.55


def test_no_line_is_longer_than_stated() -> None:
    tokenizer = CharTokenizer()
    lengths = [len(tokenizer.encode(line)) for line in LINES]
    assert lengths == [n_tokens(line) for line in LINES]
    assert max(lengths) + 1 <= MAX_LINE_TOKENS


def test_windows_begin_where_a_line_does(mini: Corpus) -> None:
    windows = mini.windows(200, 64, split="train", generator=torch.Generator().manual_seed(0))
    assert windows.shape == (200, 64)
    text = mini.tokenizer.decode(mini.train.tolist())
    for row in windows.tolist():
        window = mini.tokenizer.decode(row)
        assert window.split(" = ")[0].isalpha()
        assert text.startswith(window) or f"\n{window}" in text


def test_a_window_holds_two_to_five_lines(mini: Corpus) -> None:
    windows = mini.windows(500, 64, split="val", generator=torch.Generator().manual_seed(0))
    newlines = (windows == mini.tokenizer.id("\n")).sum(1).float()
    assert 2 < newlines.mean() < 5


def test_a_seed_fixes_the_corpus_and_its_windows(mini: Corpus) -> None:
    again = mini_corpus(n_train_lines=3000, n_val_lines=300)
    other = mini_corpus(1, n_train_lines=3000, n_val_lines=300)
    assert torch.equal(mini.train, again.train)
    assert torch.equal(mini.val, again.val)
    assert not torch.equal(mini.val[:500], other.val[:500])
    assert not torch.equal(mini.train[:500], mini.val[:500])
    one, two = (
        mini.windows(5, 32, split="train", generator=torch.Generator().manual_seed(7)) for _ in range(2)
    )
    assert torch.equal(one, two)


def test_longer_lists_on_request() -> None:
    corpus = mini_corpus(n_train_lines=500, n_val_lines=50, max_elements=40)
    lines = corpus.tokenizer.decode(corpus.train.tolist()).splitlines()
    assert max(line.count(",") for line in lines if "[" in line) > 30


def test_a_whole_stream_is_a_window() -> None:
    stream = torch.arange(7)
    corpus = Corpus(
        name="tiny", tokenizer=CharTokenizer(), train=stream, val=stream, train_starts=torch.tensor([0, 5])
    )
    for split in ("train", "val"):
        window = corpus.windows(2, 7, split=split, generator=torch.Generator())
        assert torch.equal(window, stream.expand(2, 7))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 1, "length": 8, "split": "test"}, "split must be 'train' or 'val', got 'test'"),
        ({"n": 0, "length": 8, "split": "val"}, "windows needs n >= 1"),
        (
            {"n": 1, "length": 10**9, "split": "val"},
            r"1 <= length <= \d+, the tokens in 'val' of 'mini'; got",
        ),
    ],
)
def test_errors_of_windows(mini: Corpus, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mini.windows(**arguments, generator=torch.Generator())


def test_unknown_corpus() -> None:
    with pytest.raises(ValueError, match=r"name must be one of \[.*'mini'.*\], got 'nonsense'"):
        load_corpus("nonsense")
