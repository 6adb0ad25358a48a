"""The text that a model was trained on: what the model remembers of it, and how it is found again.

A model carries its tokenizer, and the name and hash of its text. Ids of another tokenizer mean nothing to it, and are
refused wherever text meets a model; means over its own text are taken over that text, or not at all.
"""

import warnings
from pathlib import Path
from typing import Any

from tasks import Corpus, TextId, load_corpus
from tasks.corpus import MACHINE
from tasks.tokenizer_files import check_same_tokenizer

MINI = "mini"
"""What models were trained on whose files say nothing of their text."""


class AnotherTextWarning(UserWarning):
    """The text is of the same name and kind as a model's own, and has other words: of another version of Python."""


def check_vocabulary(tokenizer: Any, d_vocab: int | None, *, name: str = "tokenizer") -> None:
    """Raise ValueError where a tokenizer, if there is one and it says so, has another number of tokens than a model."""
    size = getattr(tokenizer, "d_vocab", None)
    if isinstance(size, int) and size != d_vocab:
        raise ValueError(
            f"{name}: got {getattr(tokenizer, 'name', tokenizer)!r} of {size} tokens for a model of {d_vocab}; "
            "expected the one that the model was trained with."
        )


def check_corpus(model: Any, corpus: Corpus, *, name: str = "corpus") -> None:
    """Raise ValueError where the text is not in the tokens of a model: of any that has `tokenizer` and `d_vocab`."""
    check_vocabulary(corpus.tokenizer, model.d_vocab, name=name)
    check_same_tokenizer(
        model.tokenizer,
        corpus.tokenizer,
        name=name,
        got=f"the text {corpus.name!r}",
        expected="text in the model's tokens",
        do="Make it with the model's tokenizer: tasks.load_corpus(name or path, tokenizer=model.tokenizer).",
    )


def text_of(model: Any, corpus: str | Path | None = None, *, remembered: TextId | None = None) -> Corpus:
    """The text that a model was trained on, in its tokens.

    corpus: where it is now (a name for `tasks.load_corpus`, or a path), if not where it was. remembered: what is known
    of it (default: what the model itself remembers); a model that remembers nothing is taken for one of mini-Python.
    Raises ValueError where it is not found, or is another text. The source of Python and of its packages is
    another one on each machine: there it warns (AnotherTextWarning).
    """
    known = remembered or model.trained_on
    name = corpus or (known.name if known else MINI)
    try:
        found = load_corpus(name, tokenizer=model.tokenizer)
    except ValueError as error:
        raise ValueError(_not_found(str(name), known, error)) from None
    check_corpus(model, found)
    if known is None or not known.fingerprint or found.fingerprint == known.fingerprint:
        return found
    said = f"corpus: the text {str(name)!r} has hash {found.fingerprint}; expected {known.fingerprint}, the one that "
    if str(name) in MACHINE and known.name == name:
        warnings.warn(
            f"{said}the model was trained on. This Python, or its packages, are of other versions: means over the text "
            "are not quite those of the model's own.",
            AnotherTextWarning,
            stacklevel=2,
        )
        return found
    raise ValueError(
        f"{said}the model was trained on ({known.name!r}). It was changed, or is another: give the one as it was."
    )


def _not_found(name: str, known: TextId | None, error: ValueError) -> str:
    if known is None:
        return (
            f"corpus: the model does not say what text it was trained on, and it is not {name!r} ({error}); expected "
            "its text. Give it: corpus=."
        )
    return (
        f"corpus: the model's text {name!r} cannot be had ({error}); expected the one that it was trained on. Say "
        "where it is now: corpus= in Python, --corpus on the command line."
    )
