"""Training text by name: the mini-Python grammar, the standard library's source, the toy tasks' own."""

import random
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

from tasks.base import Corpus
from tasks.grammar import MAX_ELEMENTS, draw_lines
from tasks.stdlib import python_corpus
from tasks.tokenizer import CharTokenizer

__all__ = ["CORPORA", "Corpus", "load_corpus", "mini_corpus"]


def mini_corpus(
    seed: int = 0, *, n_train_lines: int = 90_000, n_val_lines: int = 6_000, max_elements: int = MAX_ELEMENTS
) -> Corpus:
    """Mini-Python, about 16 characters to a line; windows begin where a line does.

    `max_elements` is the greatest number of elements in a list. Train and val come from different streams.
    """
    tokenizer = CharTokenizer()
    newline = tokenizer.id("\n")
    streams, starts = {}, {}
    for split, n_lines in (("train", n_train_lines), ("val", n_val_lines)):
        rng = random.Random(f"mini/{split}/{seed}")
        text = "\n".join(draw_lines(rng, n_lines, max_elements=max_elements)) + "\n"
        stream = np.array(tokenizer.encode(text), dtype=np.int64)
        ends = np.flatnonzero(stream == newline)
        streams[split] = torch.from_numpy(stream)
        starts[split] = torch.from_numpy(np.concatenate([[0], ends[:-1] + 1]))
    return Corpus(
        name="mini",
        tokenizer=tokenizer,
        train=streams["train"],
        val=streams["val"],
        train_starts=starts["train"],
        val_starts=starts["val"],
    )


CORPORA: dict[str, Callable[[int], Corpus]] = {"mini": mini_corpus, "python": python_corpus}


@lru_cache(maxsize=4)
def load_corpus(name: str, seed: int = 0) -> Corpus:
    """The corpus called `name`, the same for the same seed; the last few are kept in memory.

    ValueError for an unknown name.
    """
    if name not in CORPORA:
        raise ValueError(f"name must be one of {sorted(CORPORA)}, got {name!r}")
    return CORPORA[name](seed)
