"""The text that a model was trained on: what the model remembers of it, and how it is found again.

A model carries its tokenizer, and the name and hash of its text. Ids of another tokenizer mean nothing to it, and are
refused wherever text meets a model; means over its own text are taken over that text, or not at all.
"""

import warnings
from pathlib import Path
from typing import Any

from circuits.reading import UnreadableError
from circuits.settings import check_kind
from tasks import Corpus, Task, TextId, load_corpus
from tasks.corpus import CORPORA, MACHINE
from tasks.own_text import recall_corpus
from tasks.tokenizer_files import TokenizerMismatchError, check_same_tokenizer

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


def check_corpus(model: Any, corpus: Corpus, task: Task | None = None, *, name: str = "corpus") -> None:
    """Raise ValueError where the text is not in the tokens of a model: of any that has `tokenizer` and `d_vocab`.

    task: what it is asked, which knows its tokenizer where the model does not.
    """
    check_kind(name, corpus, Corpus, "Make one: tasks.load_corpus(name or path).")
    check_vocabulary(corpus.tokenizer, model.d_vocab, name=name)
    if task is not None:
        check_same_tokenizer(
            task.tokenizer,
            corpus.tokenizer,
            name=name,
            got=f"the text {corpus.name!r}",
            expected=f"text in the tokens of the task {task.name!r}",
            do="Give the text that the model was trained on.",
        )
    check_same_tokenizer(
        model.tokenizer,
        corpus.tokenizer,
        name=name,
        got=f"the text {corpus.name!r}",
        expected="text in the model's tokens",
        do="Make it with the model's tokenizer: tasks.load_corpus(name or path, tokenizer=model.tokenizer).",
    )


def text_of(
    model: Any, corpus: Corpus | str | Path | None = None, *, remembered: TextId | None = None
) -> Corpus:
    """The text that a model was trained on, in its tokens.

    corpus: the text itself, or where it is now: a name for `tasks.load_corpus`, or a path. None: it is found by its
    name, or, text of your own, by its hash among what is kept of texts (`tasks.own_text.recall_corpus`). remembered:
    what is known of it (default: what the model itself remembers); a model that remembers nothing is taken for one of
    mini-Python. Raises UnreadableError (a ValueError) where it is not found, or is another text. The source of Python
    and of its packages is another one on each machine: there it warns (AnotherTextWarning).
    """
    known = remembered or model.trained_on
    found = corpus if isinstance(corpus, Corpus) else _found(model, corpus, known)
    check_corpus(model, found)
    if known is None or not known.fingerprint or found.fingerprint == known.fingerprint:
        return found
    said = (
        f"corpus: the text {found.name!r} has hash {found.fingerprint}; expected {known.fingerprint}, the one that the "
        "model was trained on"
    )
    if found.name in MACHINE and known.name == found.name:
        warnings.warn(
            f"{said}. This Python, or its packages, are of other versions: means over the text are not quite those of "
            "the model's own.",
            AnotherTextWarning,
            stacklevel=2,
        )
        return found
    raise UnreadableError(f"{said} ({known.name!r}). It was changed, or is another: give the one as it was.")


def _found(model: Any, where: str | Path | None, known: TextId | None) -> Corpus:
    name = where or (known.name if known else MINI)
    try:
        if where is None and known is not None and known.name not in CORPORA:
            return recall_corpus(known, model.tokenizer)  # never by a path that a file names
        return load_corpus(name, tokenizer=model.tokenizer)
    except TokenizerMismatchError as error:
        raise UnreadableError(f"corpus: the text {str(name)!r} is none of the model's. {error}") from None
    except ValueError as error:
        raise UnreadableError(
            f"corpus: the model's text cannot be had from {str(name)!r} ({error}); expected the one "
            "that it was trained on. Say where it is: corpus= in Python, --corpus on the command line."
        ) from None
