"""Synthetic tasks, training text and tokenizers; imports nothing from `circuits`."""

from collections.abc import Callable
from typing import Any

from tasks.base import Batch, Corpus, Task
from tasks.brackets import Brackets
from tasks.corpus import load_corpus
from tasks.ngrams import bigram_log_probs, trigram_loss
from tasks.quotes import Quotes
from tasks.tokenizer import Tokenizer

__all__ = [
    "TASKS",
    "Batch",
    "Corpus",
    "Task",
    "Tokenizer",
    "bigram_log_probs",
    "load_corpus",
    "load_task",
    "trigram_loss",
]

TASKS: dict[str, Callable[..., Task]] = {"quotes": Quotes, "brackets": Brackets}


def load_task(name: str, **options: Any) -> Task:
    """The task called `name`, with `options` passed to its constructor; ValueError for an unknown name."""
    if name not in TASKS:
        raise ValueError(f"name must be one of {sorted(TASKS)}, got {name!r}")
    return TASKS[name](**options)
