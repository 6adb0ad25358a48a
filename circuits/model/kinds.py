"""One check of a model, with one sentence, for everything that is given one: is it ours, or a subject at least?"""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from circuits.model.subject import Subject
from circuits.model.transformer import SparseTransformer

P = ParamSpec("P")
R = TypeVar("R")
CHECKED: dict[str, Callable[[Any, str], None]] = {}
"""Every function whose model is checked, by module and name, and how."""
WRAP = "TransformerBridge.boot_transformers(name, hf_model=..., tokenizer=...)"
"""What makes TransformerLens's wrapper of a Hugging Face model."""


def of_ours(function: Callable[P, R]) -> Callable[P, R]:
    """Check first that the argument `model` is a SparseTransformer."""
    return _checking(function, check_ours)


def of_subjects(function: Callable[P, R]) -> Callable[P, R]:
    """Check first that the argument `model` is a subject: a SparseTransformer, or a wrapped model as one."""
    return _checking(function, check_subject)


def check_ours(model: Any, analysis: str) -> None:
    """Raise ValueError for anything but a SparseTransformer, with what to do instead."""
    if not isinstance(model, SparseTransformer):
        raise ValueError(
            f"model: got a {type(model).__name__}; {analysis} expected a SparseTransformer, since it reads weights or "
            f"options that only ours has. {_instead(model)}"
        )


def check_subject(model: Any, analysis: str) -> None:
    """Raise ValueError for what has no named activations that can be masked, with what to do instead."""
    if not isinstance(model, SparseTransformer | Subject):
        raise ValueError(
            f"model: got a {type(model).__name__}; {analysis} expected a SparseTransformer or a LensSubject. "
            f"{_as_subject(model)}"
        )


def _checking(function: Callable[P, R], check: Callable[[Any, str], None]) -> Callable[P, R]:
    place = list(inspect.signature(function).parameters).index("model")
    name = function.__name__

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if len(args) > place or "model" in kwargs:
            check(args[place] if len(args) > place else kwargs["model"], name)
        return function(*args, **kwargs)

    CHECKED[f"{function.__module__}.{name}"] = check
    return checked


def _instead(model: Any) -> str:
    """What to give in its place where weights are read."""
    if not _is_bridge(model) and not isinstance(model, Subject):
        return _as_subject(model)
    return (
        "Of a wrapped model: prune, run_masked, mean_values and rank take a LensSubject; head_report, "
        "composition_scores and fit_bridges (its dense side) the TransformerBridge itself."
    )


def _as_subject(model: Any) -> str:
    """How it becomes a subject."""
    if isinstance(model, str | Path):
        return f"Load it: circuits.load_checkpoint({str(model)!r}).model."
    if isinstance(getattr(model, "model", None), SparseTransformer):  # what training, or loading, gave
        return f"Pass its model: {type(model).__name__.lower()}.model."
    if _is_bridge(model):
        return "Make it one: circuits.interop.LensSubject(bridge.eval())."
    return f"Wrap a Hugging Face model, LensSubject({WRAP}.eval()); load one of ours with load_checkpoint."


def _is_bridge(model: Any) -> bool:
    """By its name and home, so that nobody else imports TransformerLens's wrapper."""
    kinds = ((kind.__module__, kind.__name__) for kind in type(model).__mro__)
    return any(home.startswith("transformer_lens") and name == "TransformerBridge" for home, name in kinds)
