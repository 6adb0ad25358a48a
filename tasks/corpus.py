"""Training text by name, or by its path: the mini-Python grammar, real Python, the toy tasks' own, and yours."""

import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from tasks.base import Corpus, corpus_of_lines
from tasks.composition import composition_corpus
from tasks.grammar import MAX_ELEMENTS, draw_lines
from tasks.induction import induction_corpus
from tasks.modular import modular_corpus
from tasks.names import names_corpus
from tasks.near import nearest
from tasks.own_text import own_corpus
from tasks.packages import packages_corpus
from tasks.stdlib import python_corpus
from tasks.tokenizer import BPE, CharTokenizer, Tokenizer
from tasks.tokenizer_files import check_same_tokenizer
from tasks.transduction import transduction_corpus

__all__ = ["CORPORA", "MACHINE", "Corpus", "load_corpus", "mini_corpus"]


def mini_corpus(
    seed: int = 0, *, n_train_lines: int = 90_000, n_val_lines: int = 6_000, max_elements: int = MAX_ELEMENTS
) -> Corpus:
    """Mini-Python, about 16 characters to a line; windows begin where a line does.

    `max_elements` is the greatest number of elements in a list. Train and val come from different streams.
    """
    train, val = (
        draw_lines(random.Random(f"mini/{split}/{seed}"), n_lines, max_elements=max_elements)
        for split, n_lines in (("train", n_train_lines), ("val", n_val_lines))
    )
    return corpus_of_lines("mini", CharTokenizer(), train, val)


CORPORA: dict[str, Callable[[int], Corpus]] = {
    "mini": mini_corpus,
    "python": python_corpus,
    "packages": packages_corpus,
    "induction": induction_corpus,
    "names": names_corpus,
    "modular": modular_corpus,
    "composition": composition_corpus,
    **{name: transduction_corpus(name) for name in ("copy", "reverse", "translate")},
}
"""What makes each training text from a seed, by name."""


MACHINE = frozenset({"python", "packages"})
"""Corpora whose text is what this machine has installed: on another it is another version of it."""


def load_corpus(
    name: str | Path, seed: int = 0, *, tokenizer: Tokenizer | None = None, d_vocab: int | None = None
) -> Corpus:
    """The corpus called `name`, the same for the same seed, or the text of the file or folder at that path.

    The last few that have names are kept in memory; a path is read anew each time. A folder that is called what a
    corpus is called goes by "./mini". tokenizer, d_vocab: for "python", "packages" and paths, which otherwise have a
    byte-level BPE of 2,048 tokens, trained on them; see `tasks.own_text.own_corpus`, also for the errors.
    ValueError for an unknown name where there is no such path, and for options that a corpus does not have.

    Examples:
        >>> corpus = tasks.load_corpus("induction")
        >>> corpus.tokenizer.decode(corpus.train[:4].tolist())
        'i n o h'
    """
    if str(name) in CORPORA:
        return _by_name(str(name), seed, tokenizer, d_vocab)
    if not Path(name).exists():
        raise ValueError(
            f"corpus: got {str(name)!r}; expected one of {sorted(CORPORA)}, or the path of a file or folder: there is "
            f"none of that name.{nearest(name, CORPORA)}"
        )
    return own_corpus(name, tokenizer=_bpe(tokenizer), d_vocab=d_vocab)


def _by_name(name: str, seed: int, tokenizer: Tokenizer | None, d_vocab: int | None) -> Corpus:
    if d_vocab is not None:
        raise ValueError(
            f"d_vocab: got {d_vocab} for the corpus {name!r}, whose vocabulary is given; expected None. It is for text "
            "of your own."
        )
    if name in MACHINE and tokenizer is not None:
        return _retokenized(name, _bpe(tokenizer))
    corpus = _made(name, seed)
    check_same_tokenizer(
        corpus.tokenizer,
        tokenizer,
        name="tokenizer",
        got="one",
        expected=f"that of the corpus {name!r}",
        do="The toy corpora have tokenizers of their own: leave it out, or give text of another kind.",
    )
    return corpus


@lru_cache(maxsize=4)
def _made(name: str, seed: int) -> Corpus:
    return CORPORA[name](seed)


@lru_cache(maxsize=2)
def _retokenized(name: str, tokenizer: BPE | None) -> Corpus:
    return (python_corpus if name == "python" else packages_corpus)(tokenizer=tokenizer)


def _bpe(tokenizer: Tokenizer | None) -> BPE | None:
    if tokenizer is None or isinstance(tokenizer, BPE):
        return tokenizer
    raise ValueError(
        f"tokenizer: got a {type(tokenizer).__name__}; expected a byte-level BPE for text of any kind, as "
        "`tasks.load_tokenizer(path)` gives one."
    )
