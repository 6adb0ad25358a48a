"""Options of a model that change what it computes, and how an analysis states which of them it can say.

What only runs the model's own forward pass (masks, scores of a task, patterns, bridges) is right for all of them and
states nothing. What reads weights, or writes the computation out again, keeps a `Says` beside it and checks the model
before it starts: an analysis that cannot say an option refuses it by name, and is never silently another model's.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from circuits.model.config import ComposeKind, ModelConfig

SIZES = (
    "d_vocab",
    "n_layers",
    "d_model",
    "n_heads",
    "d_head",
    "d_mlp",
    "n_ctx",
    "compose_rank",
    "experts_active",
    "norm_eps",
    "n_source",
    "pad",
)
"""Fields of `ModelConfig` that are numbers in the same computation; every other one is an option."""
WHY: dict[str, str] = {
    "norm_position": "After each sublayer the residual stream is normed anew: products of weights of two layers, and "
    "sums of what sublayers wrote, leave out a factor in between that differs from token to token.",
    "norm": "LayerNorm subtracts a mean over channels and multiplies by a gain, which products of weights leave out.",
    "few_bits": "Inside approximated() attention rounds what it multiplies, and weights say nothing of that.",
    "compose": "A head's scores and pattern are mixed with those of the others: no head has a QK and an OV circuit to "
    "itself, and maps that depend on the text have no weights that say them.",
    "embed_scale": "Embeddings are multiplied by sqrt(d_model), which products of weights leave out.",
    "experts": "Each neuron is multiplied by the share of its expert, which a router gives it token by token.",
    "factor_ratio": "Its weight matrices are products of two, with coordinates between them that it does not speak of.",
    "arch": "It reads one stack of layers over one text; an encoder-decoder has two, tied by cross-attention.",
}
"""Why the values of an option are not all alike to whoever reads weights, for those who refuse one."""
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
    arch: tuple[str, ...] | None = ("decoder",)
    "A decoder alone, or an encoder-decoder."
    norm: tuple[str, ...] | None = ("rms",)
    "Which norm."
    norm_position: tuple[str, ...] | None = ("pre",)
    "Where it stands."
    positions: tuple[str, ...] | None = None
    "Where positions come from: a table `W_pos`, learned or not."
    tied: tuple[bool, ...] | None = None
    "Whether W_U is the embedding transposed."
    embed_scale: tuple[bool, ...] | None = (False,)
    "Whether embeddings are scaled."
    experts: tuple[int, ...] | None = (0,)
    "Whether neurons are divided into experts, and into how many."
    factor_ratio: tuple[float, ...] | None = (0.0,)
    "Whether weight matrices are products of two factors."
    few_bits: tuple[bool, ...] | None = (False,)
    "Whether attention computes in few bits for the moment (`approximated`): no option of the model, but of its passes."

    def holds(self, model: Any) -> bool:
        """Whether `check` would pass."""
        return self._first(model) is None

    def check(self, model: Any, analysis: str, *, instead: str) -> None:
        """Raise ValueError when the model has a value of an option that the analysis cannot say.

        model: a SparseTransformer; one without a `ModelConfig`, a TransformerBridge, has none of these options.
        instead: what to do then, a sentence.
        """
        found = self._first(model)
        if found is not None:
            name, got, allowed = found
            why = f" {WHY[name]}" if name in WHY else ""
            raise ValueError(
                f"model: it has {name}={got!r}; {analysis} expected {name}={_either(allowed)}, "
                f"which is all that it can say.{why} {instead}"
            )

    def _first(self, model: Any) -> tuple[str, Any, Iterable[Any]] | None:
        """The first option of the model that cannot be said: its name, its value, and those that can."""
        config = getattr(model, "config", None)
        if not isinstance(config, ModelConfig):
            return None
        for option in fields(config):
            allowed, got = getattr(self, option.name, None), getattr(config, option.name)
            if allowed is not None and got not in allowed:
                return option.name, got, allowed
        few_bits = getattr(model, "given", None) is not None and model.given.turbo is not None
        if self.few_bits is not None and few_bits not in self.few_bits:
            return "few_bits", few_bits, self.few_bits
        return None


ONE_STACK = Says(
    compose=None,
    act=None,
    norm=None,
    norm_position=None,
    embed_scale=None,
    experts=None,
    factor_ratio=None,
    few_bits=None,
)
"""Of an analysis that runs the model's own forward pass, but looks at one stack of layers over one text."""
WHOLE = replace(ONE_STACK, factor_ratio=(0.0,))
"""Of a pass that multiplies by the weights of heads one by one, and so meets no coordinates between two factors."""


def _either(values: Iterable[Any]) -> str:
    return " or ".join(map(repr, values))
