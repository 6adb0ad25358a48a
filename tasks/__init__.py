"""Synthetic tasks, training text and tokenizers; imports nothing from `circuits`."""

from collections.abc import Callable
from functools import partial
from typing import Any

from tasks.base import Batch, Corpus, Task
from tasks.brackets import Brackets
from tasks.composition import Composition, CompositionBatch
from tasks.corpus import CORPORA, load_corpus
from tasks.induction import Induction
from tasks.mini_choices import FORMS, MiniChoice
from tasks.modular import Modular
from tasks.names import Names
from tasks.ngrams import bigram_log_probs, trigram_loss
from tasks.python import PythonChoice
from tasks.python_choices import CHOICES
from tasks.quotes import Quotes
from tasks.tokenizer import Tokenizer

__all__ = [
    "CORPORA",
    "TASKS",
    "Batch",
    "CompositionBatch",
    "Corpus",
    "Task",
    "Tokenizer",
    "bigram_log_probs",
    "load_corpus",
    "load_task",
    "trigram_loss",
]

TASKS: dict[str, Callable[..., Task]] = {
    "quotes": Quotes,
    "brackets": Brackets,
    "induction": Induction,
    "names": Names,
    "modular": Modular,
    "composition": Composition,
    **{name: partial(MiniChoice, name=name) for name in FORMS},
    **{name: partial(PythonChoice, name=name) for name in CHOICES},
}
"""What makes each task from its options, by name."""


def load_task(name: str, **options: Any) -> Task:
    """The task called `name`, with `options` passed to its constructor; ValueError for an unknown name."""
    if name not in TASKS:
        raise ValueError(f"name must be one of {sorted(TASKS)}, got {name!r}")
    return TASKS[name](**options)
