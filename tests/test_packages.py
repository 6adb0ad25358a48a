"""The source of installed packages: which files, in which part, and that nothing stands in both."""

import re
import time
import tomllib
from pathlib import Path

import pytest

from tasks import load_corpus, trigram_loss
from tasks.duplicates import fingerprints, overlap
from tasks.packages import (
    HELD_OUT,
    ROOTS,
    Source,
    is_program,
    package_sources,
    packages_corpus,
    split_sources,
)
from tasks.text_files import pieces
from tasks.tokenizer import BPE

FEW = ("rich", "typer")
"""Small ones, with all that they need."""
BYTES = BPE.train(["def f(x):\n    return x\n"] * 3, name="bytes", d_vocab=257)


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return package_sources(FEW)


def test_the_packages_are_those_that_this_one_brings():
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    names = {re.split(r"[^\w.-]", need)[0] for need in project["dependencies"]}
    assert set(ROOTS) == names


def test_sources_are_in_order_and_what_they_need_is_among_them(sources):
    assert sources == sorted(sources) == package_sources(FEW[::-1])
    assert {"rich", "pygments", "markdown-it-py", "typer"} <= {s.package for s in sources}
    assert not any({"test", "tests"} & set(Path(s.name).parts) for s in sources)
    assert all(s.path.suffix == ".py" and s.digest for s in sources)


def test_no_package_is_in_both_parts_and_hardly_a_line(sources):
    train, val = split_sources(sources)
    assert {s.package for s in val} <= HELD_OUT
    assert not {s.package for s in train} & HELD_OUT
    prints = [[fingerprints(pieces(s.path)) for s in part] for part in (val, train)]
    assert overlap(*prints).max() < 0.5
    assert overlap(*prints).mean() < 0.1


def test_a_planted_near_duplicate_is_found_whichever_part_it_is_in(sources, tmp_path):
    train, val = split_sources(sources)
    for original, others in ((val[20], "typer"), (train[20], "typer"), (train[20], "rich")):
        text = original.path.read_text()
        lines = text.splitlines(keepends=True)
        copy = tmp_path / f"{others}-{original.path.name}"
        copy.write_text("# A copy.\n" + "".join(line for i, line in enumerate(lines) if i % 20))
        planted = Source(others, f"{others}/copy.py", copy, "x")
        again_train, again_val = split_sources(sorted([*sources, planted]))
        together = [*again_train, *again_val]
        assert (planted in together) != (original in together)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("def f(x):\n    return x\n" * 20, True),
        ("x = 1\n", False),
        ("# This file was automatically generated from a.py\n" + "x = 1\n" * 99, False),
        ("x = 1\n" * 99 + "# DO NOT EDIT\n", True),
        ("x = '" + "a" * 1001 + "'\n" + "y = 1\n" * 99, False),
        ("x = '" + "a" * 150 + "'\n", False),
        (("x = '" + "a" * 150 + "'\n") * 9, False),
        ("", False),
    ],
)
def test_tables_stubs_and_generated_files_are_no_programs(text, kept):
    assert is_program(text) is kept


@pytest.mark.slow
def test_the_same_environment_gives_the_same_text(sources, cache):
    first = packages_corpus(sources=sources, tokenizer=BYTES)
    (kept,) = cache.glob("packages-*.tokens")
    made = kept.stat().st_mtime_ns
    assert packages_corpus(sources=sources, tokenizer=BYTES).fingerprint == first.fingerprint
    assert kept.stat().st_mtime_ns == made
    kept.write_bytes(kept.read_bytes()[:1000])
    assert packages_corpus(sources=sources, tokenizer=BYTES).fingerprint == first.fingerprint
    fewer = packages_corpus(sources=sources[:-1], tokenizer=BYTES)
    assert fewer.fingerprint != first.fingerprint


def test_one_part_alone_is_refused(sources):
    for held_out in (True, False):
        some = [s for s in sources if (s.package in HELD_OUT) == held_out]
        with pytest.raises(ValueError, match="sources: got files of .*; expected some of .*'networkx'"):
            split_sources(some)


@pytest.mark.slow
def test_all_packages():
    corpus = load_corpus("packages")
    started = time.perf_counter()
    assert packages_corpus().fingerprint == corpus.fingerprint
    assert time.perf_counter() - started < 10
    assert corpus.tokenizer == load_corpus("python").tokenizer
    assert len(corpus.train) > 20_000_000
    assert 0.03 < len(corpus.val) / len(corpus.train) < 0.15
    assert 2 < trigram_loss(corpus) < 4
