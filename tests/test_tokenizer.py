"""Tokenizers: round trips, the digraph, printable tokens, and errors that say what to do."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.tokenizer import BPE, MINI_SYMBOLS, CharTokenizer, WordTokenizer

CHARS = CharTokenizer()
WORDS = WordTokenizer(name="sums", words=("\n", "+", "=", "1", "2", "30"))
SOURCE = ["def double(x):\n    return [[x], x]\n", "for item in items:\n    print('item', item)\n"]
BYTES = BPE.train(SOURCE * 3, name="bytes", d_vocab=290, required=("]]",))


@given(st.text(alphabet=sorted(set("".join(MINI_SYMBOLS)))))
def test_characters_round_trip(text: str) -> None:
    ids = CHARS.encode(text)
    assert CHARS.decode(ids) == text
    assert all(0 <= i < CHARS.d_vocab for i in ids)


@given(st.lists(st.sampled_from(WORDS.words)))
def test_words_round_trip(words: list[str]) -> None:
    ids = [WORDS.id(word) for word in words]
    assert WORDS.encode(WORDS.decode(ids)) == ids


@given(st.text())
def test_bytes_round_trip(text: str) -> None:
    assert BYTES.decode(BYTES.encode(text)) == text
    assert BYTES.encode_all([text, "x"]) == [BYTES.encode(text), BYTES.encode("x")]


def test_bpe_is_the_same_every_time() -> None:
    again = BPE.train(SOURCE * 3, name="bytes", d_vocab=290, required=("]]",))
    assert again == BYTES
    assert again.d_vocab == 290
    assert "model" not in repr(again)


def test_newlines_and_required_tokens_stand_alone() -> None:
    pieces = [BYTES.token(i) for i in BYTES.encode("y[[z]]\n    return [[x]]]\n\n")]
    assert pieces.count("]]") == 2
    assert pieces.count("⏎") == 3
    assert "···" in pieces
    assert BYTES.token(BYTES.id("]]")) == "]]"


def test_bytes_are_printable() -> None:
    shown = [BYTES.token(i) for i in range(BYTES.d_vocab)]
    assert all(text.isprintable() for text in shown)
    assert len(set(shown)) == BYTES.d_vocab
    assert [BYTES.token(i) for i in BYTES.encode("é\t\a")] == [r"\xc3", r"\xa9", "⇥", r"\x07"]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("]", ["]"]),
        ("]]", ["]]"]),
        ("]]]", ["]]", "]"]),
        ("] ]", ["]", "·", "]"]),
        ("[[1]]\n", ["[", "[", "1", "]]", "⏎"]),
    ],
)
def test_two_closing_brackets_are_one_token(text: str, tokens: list[str]) -> None:
    assert [CHARS.token(i) for i in CHARS.encode(text)] == tokens


def test_every_symbol_has_its_own_id() -> None:
    assert [CHARS.id(symbol) for symbol in MINI_SYMBOLS] == list(range(CHARS.d_vocab))
    assert len({CHARS.token(i) for i in range(CHARS.d_vocab)}) == CHARS.d_vocab


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CHARS.encode("ab\n'c?'"), r"text holds '\?' at index 5.*alphabet of 'mini-char': .*abc"),
        (
            lambda: CHARS.id("ab"),
            r"token_text 'ab' is 2 tokens of 'mini-char', \['a', 'b'\]; expected exactly one",
        ),
        (lambda: CHARS.id(""), "is 0 tokens"),
        (lambda: CHARS.decode([0, 99]), "id 99 is outside the 50 ids of 'mini-char'"),
        (lambda: CHARS.token(-1), "id -1 is outside"),
        (lambda: CharTokenizer(symbols=("a", "a")), "symbols must be distinct, non-empty strings"),
        (lambda: BYTES.id("x y"), "expected exactly one"),
        (lambda: BYTES.decode([290]), "id 290 is outside the 290 ids of 'bytes'"),
        (lambda: BPE.train(SOURCE, name="", d_vocab=256, required=["]]"]), "d_vocab must be at least 257"),
        (lambda: BPE.train(SOURCE, name="", d_vocab=9999), "texts yield only [0-9]+ tokens of d_vocab=9999"),
        (lambda: WORDS.encode("1 + 7 ="), "text holds '7' as word 2.*6 words of 'sums'"),
        (lambda: WORDS.id("1 +"), "is 2 tokens of 'sums'"),
        (lambda: WordTokenizer(name="bad", words=("a b",)), "words must be distinct and"),
    ],
)
def test_errors_say_what_is_wrong(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        call()
