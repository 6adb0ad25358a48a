"""Text of one's own: found in files, read piece by piece, split without copies, tokenized once; and what is refused."""

import random
import shutil
from pathlib import Path

import pytest
import torch

from tasks import load_corpus, load_tokenizer
from tasks.duplicates import apart, fingerprints, overlap, repeats
from tasks.own_text import FEW, LeftOutWarning, split_names
from tasks.text_files import find_text, pieces
from tasks.tokenizer import BPE

WORDS = [
    a + b
    for a in ("ka", "lo", "mi", "nu", "re", "so", "ti")
    for b in ("ban", "den", "fil", "gos", "par", "vel")
]
SIZE = 300
"""Tokens of the BPE in these tests."""


def prose(seed: int, n_lines: int = 60) -> str:
    """Lines of made-up words, others for each seed."""
    rng = random.Random(seed)
    return "".join(" ".join(rng.choices(WORDS, k=9)) + "\n" for _ in range(n_lines))


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty files in two folders."""
    root = tmp_path / "text"
    for i in range(30):
        path = root / ("a", "b/c")[i % 2] / f"{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(prose(i))
    return root


def both(corpus) -> list[str]:
    return [corpus.tokenizer.decode(stream.tolist()) for stream in (corpus.train, corpus.val)]


def test_a_folder_is_split_by_file_and_every_file_is_in_one_part(folder):
    corpus = load_corpus(folder, d_vocab=SIZE)
    train, val = both(corpus)
    texts = [path.read_text() for path in folder.rglob("*.txt")]
    assert all((text in train) != (text in val) for text in texts)
    assert len(train) + len(val) == sum(map(len, texts))
    assert 0.03 < len(val) / len(train) < 0.12
    assert corpus.name == str(folder.resolve())
    assert corpus.tokenizer.d_vocab == SIZE


def test_one_file_gives_its_end_to_validation(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text(prose(0, 500))
    train, val = both(load_corpus(str(path), d_vocab=SIZE))
    assert train + val == path.read_text()
    assert train.endswith("\n")
    assert 0.02 < len(val) / len(train) < 0.1


def test_the_same_text_has_the_same_hash_wherever_it_lies(folder, tmp_path, cache):
    first = load_corpus(folder, d_vocab=SIZE)
    written = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    again = load_corpus(moved, d_vocab=SIZE)
    assert (again.fingerprint, again.tokenizer) == (first.fingerprint, first.tokenizer)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == written
    shutil.rmtree(cache)
    assert load_corpus(folder, d_vocab=SIZE).fingerprint == first.fingerprint
    (moved / "a/0.txt").write_text(prose(99))
    assert load_corpus(moved, d_vocab=SIZE).fingerprint != first.fingerprint


def test_a_planted_near_duplicate_never_stands_in_both_parts(folder):
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*.txt"))}
    val, _ = split_names(dict(sorted(sizes.items())))
    original = (folder / val[0]).read_text()
    lines = original.splitlines(keepends=True)
    lines[10:14] = ["something else\n"] * 4  # four lines of sixty are others
    copy = folder / "zz-copy.txt"
    copy.write_text("".join(lines))
    train, kept = both(load_corpus(folder, d_vocab=SIZE))
    assert not ("".join(lines) in train and original in kept)
    assert ("".join(lines) in train + kept) != (original in train + kept)
    shared = overlap([fingerprints([kept])], [fingerprints([train])])[0]
    assert shared < 0.1


def test_what_repeats_is_found_and_what_shares_a_few_lines_is_not():
    base, other = prose(0), prose(1)
    texts = [base, other, base.replace("ban", "ban", 1), base[: len(base) // 2] + other[: len(other) // 2]]
    texts += [prose(2) + base[:400], "  ".join(base.split(" "))]
    assert repeats([fingerprints([text]) for text in texts]).tolist() == [
        False,
        False,
        True,
        True,
        False,
        True,
    ]


def test_a_short_text_that_stands_in_a_long_one_is_no_validation():
    long = "".join(prose(i) for i in range(20))
    inside = long[3000:4500]
    keep_val, keep_train = apart([fingerprints([inside]), fingerprints([prose(77)])], [fingerprints([long])])
    assert keep_val.tolist() == [False, True]
    assert keep_train.tolist() == [True]


def test_few_files_have_none_for_validation_alone():
    assert split_names({str(i): 100 for i in range(FEW - 1)})[0] == []
    val, train = split_names({"huge": 10**6, **{str(i): 1000 for i in range(200)}})
    assert "huge" in train
    assert 30 <= len(val) <= 100


def test_pieces_are_the_text_and_end_where_lines_do(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(prose(3) + "é" * 500)
    parts = list(pieces(path, 200))
    assert "".join(parts) == path.read_text()
    assert len(parts) > 10
    assert all(part.endswith("\n") for part in parts[:-3])
    assert max(map(len, parts)) <= 400


def test_a_long_text_is_never_whole_in_memory(tmp_path, monkeypatch):
    path = tmp_path / "long.txt"
    path.write_text(prose(4, 4000))
    longest = []
    encode = BPE.encode_all

    def spied(self, texts):
        longest.append(sum(map(len, texts)))
        return encode(self, texts)

    monkeypatch.setattr(BPE, "encode_all", spied)
    monkeypatch.setattr("tasks.token_cache._BATCH", 4096)
    monkeypatch.setattr("tasks.own_text.PIECE", 4096)
    corpus = load_corpus(path, d_vocab=SIZE)
    assert max(longest) < 20_000 < path.stat().st_size
    assert "".join(both(corpus)) == path.read_text()


def test_a_tokenizer_may_be_given(folder, tmp_path):
    bpe = BPE.train([prose(5)], name="x", d_vocab=280)
    (tmp_path / "mine.json").write_text(bpe.model)
    corpus = load_corpus(folder, tokenizer=load_tokenizer(tmp_path / "mine.json"))
    assert corpus.tokenizer.name == "mine"
    assert corpus.tokenizer.d_vocab == 280
    assert "".join(both(corpus)) != ""
    with pytest.raises(ValueError, match="d_vocab: got 300 with a tokenizer of 280 tokens"):
        load_corpus(folder, tokenizer=bpe, d_vocab=300)


def test_a_tokenizer_that_loses_text_is_refused(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers

    lossy = Tokenizer(models.WordLevel({"[UNK]": 0, "kaban": 1}, unk_token="[UNK]"))
    lossy.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(
        ValueError, match="tokenizer: 'lossy' makes .* of .*; expected one that gives every text back"
    ):
        load_corpus(folder, tokenizer=BPE(name="lossy", model=lossy.to_str()))


def test_binary_and_foreign_files_are_left_out_of_a_folder_with_a_warning(folder):
    whole = load_corpus(folder, d_vocab=SIZE)
    (folder / "image.png").write_bytes(b"\x89PNG\0\0\0" * 100)
    (folder / "latin.txt").write_bytes("déjà vu".encode("latin-1"))
    (folder / ".git").mkdir()
    (folder / ".git/config").write_text("hidden")
    assert set(find_text(folder).left_out) == {"image.png", "latin.txt"}
    with pytest.warns(LeftOutWarning, match=r"2 files of .* left out, the first image.png \(binary"):
        assert load_corpus(folder, d_vocab=SIZE).fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\0\0\0" * 300, "is binary .it has zero bytes.*expected text in UTF-8. Convert it"),
        ("déjà vu".encode("latin-1") * 300, "in another encoding .invalid continuation byte: 0xe9"),
        ("déjà vu".encode("utf-16") * 300, "binary .* or in UTF-16"),
        (b"", "holds 0 bytes of text; expected at least 1000"),
        (b"short\n", "holds 6 bytes of text; expected at least 1000"),
        (
            b"ab\n" * 1000,
            r"texts yield only \d+ tokens of d_vocab=2048; give more text or ask for fewer .*--d-vocab",
        ),
    ],
)
def test_files_that_are_no_text_for_training(tmp_path, cache, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_corpus(path)
    assert not list(cache.glob("*"))


def test_folders_without_text(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(
        ValueError, match="holds no text: no file at all; expected at least one file in UTF-8"
    ):
        load_corpus(empty)
    (empty / "x.bin").write_bytes(b"\0" * 99)
    with pytest.raises(ValueError, match=r"holds no text: 1 files, the first \(x.bin\) binary"):
        load_corpus(empty)


def test_a_folder_of_copies_is_refused(tmp_path):
    for i in range(30):
        (tmp_path / "same").mkdir(exist_ok=True)
        (tmp_path / "same" / f"{i}.txt").write_text(prose(0))
    with pytest.raises(ValueError, match="of 30 files, those for validation stand in the others"):
        load_corpus(tmp_path / "same", d_vocab=SIZE)


@pytest.mark.parametrize("damage", [lambda data: data[:-300], lambda data: b"", lambda data: data[::-1]])
def test_damaged_tokens_are_made_anew(folder, cache, damage):
    first = load_corpus(folder, d_vocab=SIZE)
    (kept,) = cache.glob("*.tokens")
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    assert torch.equal(load_corpus(folder, d_vocab=SIZE).train, first.train)
    assert kept.read_bytes() == whole


def test_one_flipped_bit_is_found(folder, cache):
    first = load_corpus(folder, d_vocab=SIZE)
    (kept,) = cache.glob("*.tokens")
    data = bytearray(kept.read_bytes())
    data[100] ^= 1
    kept.write_bytes(data)
    assert load_corpus(folder, d_vocab=SIZE).fingerprint == first.fingerprint


def test_tokens_that_are_mapped_are_those_that_are_read(folder, monkeypatch):
    read = load_corpus(folder, d_vocab=SIZE)
    monkeypatch.setattr("tasks.token_cache.MAPPED", 0)
    mapped = load_corpus(folder, d_vocab=SIZE)
    assert mapped.fingerprint == read.fingerprint
    windows = mapped.windows(3, 9, split="train", generator=torch.Generator())
    assert windows.dtype == torch.int64


def test_options_that_a_named_corpus_does_not_have():
    with pytest.raises(ValueError, match="d_vocab: got 300 for the corpus 'mini', whose vocabulary is given"):
        load_corpus("mini", d_vocab=300)
    with pytest.raises(
        ValueError, match="tokenizer: got one, of the tokenizer 'x' .* that of the corpus 'mini'"
    ):
        load_corpus("mini", tokenizer=BPE.train([prose(5)], name="x", d_vocab=280))
    with pytest.raises(ValueError, match="tokenizer: got a CharTokenizer; expected a byte-level BPE"):
        load_corpus(__file__, tokenizer=load_corpus("mini").tokenizer)
