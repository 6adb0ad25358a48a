"""Tokenizers: round trips, the digraph, printable tokens, and errors that say what to do."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.tokenizer import MINI_SYMBOLS, CharTokenizer, WordTokenizer

CHARS = CharTokenizer()
WORDS = WordTokenizer(name="sums", words=("\n", "+", "=", "1", "2", "30"))


@given(st.text(alphabet=sorted(set("".join(MINI_SYMBOLS)))))
def test_characters_round_trip(text: str) -> None:
    ids = CHARS.encode(text)
    assert CHARS.decode(ids) == text
    assert all(0 <= i < CHARS.d_vocab for i in ids)


@given(st.lists(st.sampled_from(WORDS.words)))
def test_words_round_trip(words: list[str]) -> None:
    ids = [WORDS.id(word) for word in words]
    assert WORDS.encode(WORDS.decode(ids)) == ids


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
        (lambda: WORDS.encode("1 + 7 ="), "text holds '7' as word 2.*6 words of 'sums'"),
        (lambda: WORDS.id("1 +"), "is 2 tokens of 'sums'"),
        (lambda: WordTokenizer(name="bad", words=("a b",)), "words must be distinct and"),
    ],
)
def test_errors_say_what_is_wrong(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        call()
