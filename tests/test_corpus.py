"""Training text: the grammar keeps its promises, real Python is cached whole, counting is done right."""

import math
import random
import re
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks import bigram_log_probs, load_corpus, trigram_loss
from tasks.base import Corpus
from tasks.corpus import mini_corpus
from tasks.grammar import MAX_LINE_TOKENS, draw_lines, n_tokens
from tasks.ngrams import trigram_probs
from tasks.stdlib import python_corpus, stdlib_files
from tasks.tokenizer import BPE, CharTokenizer

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
    with pytest.raises(
        ValueError, match=r"corpus: got 'nonsense'; expected one of \[.*'mini'.*\], or the path of a file"
    ):
        load_corpus("nonsense")


@pytest.fixture(scope="module")
def some_files() -> dict[str, str]:
    return {path: text for path, text in stdlib_files().items() if path.startswith(("json/", "email/"))}


def test_the_standard_library_without_its_tests() -> None:
    files = stdlib_files()
    assert {"ast.py", "json/decoder.py"} <= set(files)
    assert list(files) == sorted(files)
    folders = {part for path in files for part in path.split("/")[:-1]}
    assert not folders & {"site-packages", "test", "tests", "encodings", "pydoc_data"}
    assert sum(map(len, files.values())) > 5_000_000


def test_real_python_is_split_by_file_and_cached(some_files: dict[str, str], cache: Path) -> None:
    corpus = python_corpus(files=some_files, d_vocab=400)
    train, val = (corpus.tokenizer.decode(stream.tolist()) for stream in (corpus.train, corpus.val))
    assert len(train) + len(val) == sum(map(len, some_files.values()))
    assert all((text in train) != (text in val) for text in some_files.values() if len(text) > 500)
    assert corpus.windows(3, 50, split="val", generator=torch.Generator()).shape == (3, 50)
    written = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert sorted(path.suffix for path in written) == [".json", ".tokens"]
    again = python_corpus(1, files=some_files, d_vocab=400)
    assert torch.equal(again.train, corpus.train)
    assert again.tokenizer == corpus.tokenizer
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == written


def test_other_text_has_another_cache(some_files: dict[str, str], cache: Path) -> None:
    python_corpus(files=some_files, d_vocab=300)
    changed = some_files | {"json/tool.py": "import json\n"}
    corpus = python_corpus(files=changed, d_vocab=300)
    assert len(list(cache.iterdir())) == 4
    text = "".join(corpus.tokenizer.decode(stream.tolist()) for stream in (corpus.train, corpus.val))
    assert len(text) == sum(map(len, changed.values()))


def test_a_failed_write_leaves_nothing_behind(
    some_files: dict[str, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **arrays: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(BPE, "encode_all", fail)
        with pytest.raises(OSError, match="disk full"):
            python_corpus(files=some_files, d_vocab=300)
    assert [path.suffix for path in cache.iterdir()] == [".json"]
    assert len(python_corpus(files=some_files, d_vocab=300).train) > 1000


def test_one_file_cannot_be_split(cache: Path) -> None:
    with pytest.raises(
        ValueError, match=r"files must hold at least one for train and one for val, got \['a.py'\]"
    ):
        python_corpus(files={"a.py": "a = 1\n"})


@pytest.mark.slow
def test_all_of_real_python(cache: Path) -> None:
    corpus = python_corpus()
    started = time.perf_counter()
    assert torch.equal(python_corpus().val, corpus.val)
    assert time.perf_counter() - started < 1
    assert corpus.tokenizer.d_vocab == 2048
    assert len(corpus.train) > 2_000_000
    assert 0.02 < len(corpus.val) / len(corpus.train) < 0.1
    assert 2.5 < trigram_loss(corpus) < 4
    stream = corpus.val.long()  # it is kept in 16 bits
    bigram = bigram_log_probs(corpus)[stream[:-1], stream[1:]].mean().item()
    assert trigram_loss(corpus) < -bigram - 0.3


def test_trigram_probabilities_sum_to_one() -> None:
    rng = np.random.default_rng(0)
    train = np.minimum(rng.geometric(0.3, 3000) - 1, 11)
    for context in ([0, 0], [3, 1], [11, 10], [12, 0], [0, 12]):
        rows = [trigram_probs(train, np.array([*context, w]), 13)[0] for w in range(13)]
        assert sum(rows) == pytest.approx(1, abs=1e-12)
        assert min(rows) > 0


def test_trigram_agrees_with_counting_one_by_one() -> None:
    rng = random.Random(1)
    train = [rng.choice("aabbbcde") for _ in range(400)]
    tokens = [rng.choice("abcdef") for _ in range(60)]
    got = trigram_probs(*(np.array(["abcdef".index(c) for c in text]) for text in (train, tokens)), 6)
    trigrams = Counter(zip(train, train[1:], train[2:], strict=False))
    bigrams = Counter(gram[1:] for gram in trigrams)
    unigrams = Counter(gram[1:] for gram in bigrams)

    def prob(gram: tuple[str, ...]) -> float:
        if not gram:
            return 1 / 6
        counts = (unigrams, bigrams, trigrams)[len(gram) - 1]
        n = [sum(c == k for c in counts.values()) for k in range(5)]
        shrink = n[1] / (n[1] + 2 * n[2]) if n[1] else 0
        off = {0: 0.0}
        for k in (1, 2, 3):
            off[k] = min(max(k - (k + 1) * shrink * n[k + 1] / max(n[k], 1), 0.05), k - 0.05)
        same = [c for g, c in counts.items() if g[:-1] == gram[:-1]]
        lower = prob(gram[1:])
        if not same:
            return lower
        own = counts[gram] - off[min(counts[gram], 3)]
        return (own + sum(off[min(c, 3)] for c in same) * lower) / sum(same)

    expected = [prob(gram) for gram in zip(tokens, tokens[1:], tokens[2:], strict=False)]
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_trigram_finds_what_a_trigram_can_find(mini: Corpus) -> None:
    # Each pair of tokens fixes the next one here, and no single token does.
    stream = torch.tensor([0, 0, 1, 1] * 2000)
    periodic = Corpus(name="periodic", tokenizer=CharTokenizer(), train=stream, val=stream)
    assert trigram_loss(periodic) < 0.01
    bigram = bigram_log_probs(periodic)[0]
    assert bigram[0].item() == pytest.approx(math.log(0.5), abs=0.01)
    pairs = bigram_log_probs(mini)[mini.val[:-1], mini.val[1:]].mean().item()
    assert trigram_loss(mini) < -pairs


def test_bigram_rows_are_distributions(mini: Corpus) -> None:
    table = bigram_log_probs(mini, alpha=0.5)
    assert table.shape == (mini.tokenizer.d_vocab,) * 2
    torch.testing.assert_close(table.exp().sum(1), torch.ones(mini.tokenizer.d_vocab))
    after = mini.tokenizer.id("="), mini.tokenizer.id(" ")
    assert table[after].exp() > 0.99


def test_errors_of_counting(mini: Corpus) -> None:
    with pytest.raises(ValueError, match="alpha must be a positive number of counts, got 0"):
        bigram_log_probs(mini, alpha=0.0)
    with pytest.raises(ValueError, match="a trigram needs streams of at least 3 tokens, got 3 and 2"):
        trigram_probs(np.arange(3), np.arange(2), 5)


@pytest.mark.parametrize("suffix", [".tokens", ".json"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data[::-1]]
)
def test_a_damaged_cache_is_made_anew(some_files: dict[str, str], cache: Path, suffix: str, damage) -> None:
    first = python_corpus(files=some_files, d_vocab=300)
    (kept,) = (path for path in cache.iterdir() if path.suffix == suffix)
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    again = python_corpus(files=some_files, d_vocab=300)
    assert torch.equal(again.train, first.train)
    assert kept.stat().st_size == len(whole)
