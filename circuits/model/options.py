"""Options of a model that change what it computes, and how an analysis states which of them it can say.

What only runs the model's own forward pass (masks, scores of a task, patterns, bridges) is right for all of them and
states nothing. What reads weights, or writes the computation out again, keeps a `Says` beside it and checks the model
before it starts: an analysis that cannot say an option refuses it by name, and is never silently another model's.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from circuits.model.config import ComposeKind, ModelConfig

SIZES = ("d_vocab", "n_layers", "d_model", "n_heads", "d_head", "d_mlp", "n_ctx", "compose_rank", "norm_eps")
"""Fields of `ModelConfig` that are numbers in the same computation; every other one is an option."""
PLAIN: tuple[ComposeKind, ...] = ("none",)
"""Heads that are not composed."""


@dataclass(frozen=True, kw_only=True)
class Says:
    """What an analysis can say of each option: these values; None: whichever the model has.

    An option added to `ModelConfig` takes a field of its name here. Its default is the value that models had before
    there was a choice, so that whatever does not state the option refuses the rest of it.
    """

    attention: tuple[str, ...] | None = ("softmax", "compose")
    "What turns q, k and v into z; 'compose' says what it does by `compose`."
    compose: tuple[ComposeKind, ...] | None = PLAIN
    "How heads are composed."
    act: tuple[str, ...] | None = ("gelu",)
    "The activation of MLP neurons."
    topk_fraction: tuple[float | None, ...] | None = None
    "AbsTopK, or (None) a dense model."
    topk_sites: tuple[tuple[str, ...], ...] | None = None
    "Where AbsTopK acts."
    sink: tuple[bool, ...] | None = None
    "Whether heads have a sink."
    bigram: tuple[bool, ...] | None = None
    "Whether there is a bigram table."

    def check(self, model: Any, analysis: str, *, instead: str) -> None:
        """Raise ValueError when the model has a value of an option that the analysis cannot say.

        model: a SparseTransformer; one without a `ModelConfig`, a TransformerBridge, has none of these options.
        instead: what to do then, a sentence.
        """
        config = getattr(model, "config", None)
        if not isinstance(config, ModelConfig):
            return
        for option in fields(config):
            allowed, got = getattr(self, option.name, None), getattr(config, option.name)
            if allowed is not None and got not in allowed:
                raise ValueError(
                    f"model: it has {option.name}={got!r}; {analysis} expected {option.name}={_either(allowed)}, "
                    f"which is all that it can say. {instead}"
                )


def _either(values: Iterable[Any]) -> str:
    return " or ".join(map(repr, values))
