"""Training text by name: the mini-Python grammar, the standard library's source, the toy tasks' own."""

import random
from collections.abc import Callable
from functools import lru_cache

from tasks.base import Corpus, corpus_of_lines
from tasks.composition import composition_corpus
from tasks.grammar import MAX_ELEMENTS, draw_lines
from tasks.induction import induction_corpus
from tasks.modular import modular_corpus
from tasks.names import names_corpus
from tasks.stdlib import python_corpus
from tasks.tokenizer import CharTokenizer
from tasks.transduction import transduction_corpus

__all__ = ["CORPORA", "Corpus", "load_corpus", "mini_corpus"]


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
    "induction": induction_corpus,
    "names": names_corpus,
    "modular": modular_corpus,
    "composition": composition_corpus,
    **{name: transduction_corpus(name) for name in ("copy", "reverse", "translate")},
}
"""What makes each training text from a seed, by name."""


@lru_cache(maxsize=4)
def load_corpus(name: str, seed: int = 0) -> Corpus:
    """The corpus called `name`, the same for the same seed; the last few are kept in memory.

    ValueError for an unknown name.
    """
    if name not in CORPORA:
        raise ValueError(f"name must be one of {sorted(CORPORA)}, got {name!r}")
    return CORPORA[name](seed)
