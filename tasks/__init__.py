"""Synthetic tasks, training text and tokenizers; imports nothing from `circuits`."""

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from inspect import Parameter, signature
from typing import Any

from tasks.base import Batch, Corpus, Task, TextId
from tasks.brackets import Brackets
from tasks.composition import Composition, CompositionBatch
from tasks.corpus import CORPORA, load_corpus
from tasks.hf import HFTokenizer
from tasks.induction import Induction
from tasks.mini_choices import FORMS, MiniChoice
from tasks.modular import Modular
from tasks.names import Names
from tasks.near import unknown
from tasks.ngrams import bigram_log_probs, trigram_loss
from tasks.pairs import PairsTask, from_pairs
from tasks.public import PUBLIC, public_task
from tasks.python import PythonChoice
from tasks.python_choices import CHOICES
from tasks.quotes import Quotes
from tasks.tokenizer import BPE, Tokenizer
from tasks.tokenizer_files import load_tokenizer, tokenizer_hash
from tasks.transduction import Gender, Transduction

__all__ = [
    "CORPORA",
    "PUBLIC",
    "TASKS",
    "Batch",
    "CompositionBatch",
    "Corpus",
    "HFTokenizer",
    "PairsTask",
    "Task",
    "TextId",
    "Tokenizer",
    "bigram_log_probs",
    "from_pairs",
    "load_corpus",
    "load_task",
    "load_task_for",
    "load_tokenizer",
    "other_prompts",
    "public_task",
    "task_options",
    "tokenizer_hash",
    "trigram_loss",
]

TASKS: dict[str, Callable[..., Task]] = {
    "quotes": Quotes,
    "brackets": Brackets,
    "induction": Induction,
    "names": Names,
    "modular": Modular,
    "composition": Composition,
    "copy": partial(Transduction, name="copy"),
    "reverse": partial(Transduction, name="reverse"),
    "gender": Gender,
    **{name: partial(MiniChoice, name=name) for name in FORMS},
    **{name: partial(PythonChoice, name=name) for name in CHOICES},
}
"""What makes each task from its options, by name."""


OTHER_PROMPTS: dict[str, dict[str, dict[str, Any]]] = {
    "quotes": {"an earlier line": {"context_lines": 1}, "two earlier lines": {"context_lines": 2}},
    "brackets": {"longer": {"length": 9}, "an earlier list": {"distractors": 1}},
}
"""Options under which a task's prompts are others than by default, in words, by task."""


def load_task(name: str, **options: Any) -> Task:
    """The task called `name`, with `options` passed to its constructor; ValueError for an unknown name or option.

    Options may be what JSON makes of them: lists where the task holds tuples.

    Examples:
        >>> task = tasks.load_task("quotes")
        >>> batch = task.batch(2, split="test", seed=0)
        >>> task.solve(task.tokenizer.decode(batch.clean[0, : batch.lengths[0]].tolist()))
        '"'
    """
    if name in PUBLIC:
        raise ValueError(
            f"name: {name!r} is made of a tokenizer's words; use load_task_for(tokenizer, {name!r})."
        )
    if name not in TASKS:
        raise ValueError(unknown("task", name, TASKS))
    _check_options(name, options)
    return TASKS[name](**_with_tuples(options))


def _check_options(name: str, options: dict[str, Any]) -> None:
    known = signature(TASKS[name]).parameters
    takes_any = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in known.values())
    for option in () if takes_any else options.keys() - known.keys():
        raise ValueError(unknown(f"option of {name!r}", option, known))


def load_task_for(tokenizer: Any, name: str, **options: Any) -> Task:
    """`load_task` for a model with this tokenizer: choices in real Python, and public tasks, are made of its tokens.

    All others have tokenizers of their own, and so has a choice where this one is no BPE: whether they fit the model
    is for whoever asks the model.

    Examples:
        >>> tasks.load_task_for(circuits.load("quotes-128").model.tokenizer, "quotes").name
        'quotes'
    """
    if name in PUBLIC:
        return public_task(name, tokenizer, **options)
    chosen = {"tokenizer": tokenizer} if name in CHOICES and isinstance(tokenizer, BPE) else {}
    return load_task(name, **{**chosen, **options})


def other_prompts(task: Task) -> dict[str, Task]:
    """The same task on other kinds of prompts, in words: earlier lines that mislead, longer lists. Empty where none is.

    They keep the task's tokenizer; of a kind whose options the task already has, none is made.

    Examples:
        >>> list(tasks.other_prompts(tasks.load_task("quotes")))
        ['an earlier line', 'two earlier lines']
    """
    options = task_options(task)
    if options is None:
        return {}
    kinds = OTHER_PROMPTS.get(task.name, {}).items()
    return {
        name: load_task_for(task.tokenizer, task.name, **{**options, **more})
        for name, more in kinds
        if not more.keys() & options
    }


def task_options(task: Task) -> dict[str, Any] | None:
    """The options with which `load_task(task.name, **options)` makes this very task again, as JSON types.

    What is at its default is left out, and so is the BPE of a choice in real Python, which is its model's: see
    `load_task_for`. None for a task that `load_task` does not make, such as one of your own.

    Examples:
        >>> tasks.task_options(tasks.load_task("brackets", length=2))
        {'length': 2}
    """
    if task.name in PUBLIC and isinstance(task, PairsTask):
        return {} if public_task(task.name, task.tokenizer) == task else None
    if task.name not in TASKS or not is_dataclass(task):
        return None
    plain = load_task_for(task.tokenizer, task.name)
    given = {f.name: getattr(task, f.name) for f in fields(task)}
    options = {name: value for name, value in given.items() if value != getattr(plain, name, task)}
    try:
        options = json.loads(json.dumps(options))
        return options if load_task_for(task.tokenizer, task.name, **options) == task else None
    except (TypeError, ValueError):  # an option that JSON does not hold, or that is none of this task's
        return None


def _with_tuples(value: Any) -> Any:
    """JSON's lists as the tuples that frozen tasks hold."""
    if isinstance(value, dict):
        return {key: _with_tuples(part) for key, part in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
