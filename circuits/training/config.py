"""What decides a training run: frozen, checked when made, JSON in and out."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from circuits.model.config import ModelConfig
from circuits.settings import (
    Amount,
    Count,
    Decay,
    Density,
    Fraction,
    Positive,
    Seed,
    Settings,
    Whole,
    fitted,
    require,
)

RENAMED = {"gradient": "gradient_scaling", "grad": "weight_gradient"}
"""Fields of older files, and what they are called now."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """Everything that decides a training run. The defaults are the toy recipe; see `toy` and `paper`."""

    model: ModelConfig = field(
        default_factory=partial(ModelConfig, n_layers=1, n_heads=16, d_head=8, n_ctx=40)
    )
    "Shape of the model; its vocabulary is filled in from the corpus. One layer solves mini-Python as well as two."
    corpus: str = "mini"
    "Name of the training text, for `tasks.load_corpus`."
    steps: Count = 2000
    "Optimiser steps."
    minutes: Positive | None = None
    "Stop by the clock instead, if that comes first; schedules follow the clock, so bits are not repeatable."
    batch_size: Count = 48
    "Sequences of n_ctx tokens per step, over all parts and processes."
    accumulate: Count = 1
    "Parts in which a process takes its sequences, one after the other, to need less memory; the step stays the same."
    precision: Literal["float32", "bfloat16"] = "float32"
    "bfloat16: of forward and backward passes (autocast); weights, optimiser and projection stay in float32."
    seed: Seed = 0
    "Decides initial weights and batches."
    density: Density = 0.01
    "Final density of block matrices and biases, in (0, 1]; 1 trains a dense model."
    embed_density: Density | None = 1 / 16
    "Final density of embeddings and unembedding; None: the same."
    min_alive: Whole = 1
    "Weights that each q/k/v channel and neuron keeps at least, inside the budget (published: 4)."
    schedule: Literal["linear", "exponential"] = "linear"
    "Shape of the fall of the density."
    anneal: tuple[Fraction, Fraction] = (0.01, 0.5)
    "Fractions of training between which the density falls."
    lr: Positive = 2e-2
    "Peak learning rate, quoted at the final density."
    sharkfin: bool = True
    "Multiply the learning rate by sqrt(final density / current density)."
    warmup: Fraction = 0.01
    "Fraction of training in which the learning rate rises from 0; afterwards it falls, see `decay`."
    decay: Literal["linear", "inverse_sqrt"] = "linear"
    "How it falls after warm-up: to 0, or as 1 / sqrt(step) (2017; `published_lr` gives that peak)."
    label_smoothing: Decay = 0.0
    "Share of the loss's target that is spread over all tokens alike (2017: 0.1); validation losses have none."
    balance: Amount = 0.01
    "Weight of the loss that keeps experts equally busy, averaged over layers; of no use without experts (2021: 0.01)."
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    "Adam's averaging constants."
    eps: Positive = 1e-8
    "Adam's epsilon."
    weight_decay: Amount = 0.1
    "Decay of matrices (not of biases and the bigram table), times the learning rate, after the projection."
    gradient_scaling: Literal["clip", "rms", "none"] = "clip"
    "clip: norm at most 1. rms: divide by the root mean square over all parameters, always (published)."
    weight_gradient: Literal["exact", "support"] = "exact"
    "exact: every weight gets its gradient. support: where a matrix runs on its nonzeros, only those; see refresh."
    refresh: Count = 10
    "With weight_gradient='support': every how many steps all weights get theirs, so that dropped ones may return."
    bigram_init: Literal["counts", "zeros", "fixed"] = "counts"
    "counts: the bigram table starts at the corpus's log-probabilities. fixed: it stays there (a large one is slow)."
    bigram_density: Density = 1.0
    "With bigram_init='fixed': share of the table's entries that stay, the most frequent pairs; the rest are 0."
    log_every: Count = 20
    "Steps between entries of the history."
    val_every: Count = 200
    "Steps between measurements of the validation loss."
    n_val: Count = 256
    "Validation sequences."

    def __new__(cls, *_: Any, **values: Any) -> "TrainConfig":
        """Raises TypeError for the older name of a field, which only `from_json` takes."""
        for old in RENAMED.keys() & values.keys():
            new = RENAMED[old]
            raise TypeError(f"TrainConfig: {old!r} is called {new!r} now; pass {new}={values[old]!r}.")
        return super().__new__(cls, **values)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "anneal", self.anneal[0] < self.anneal[1], "two rising fractions in [0, 1]")
        require(
            self,
            "accumulate",
            self.batch_size % self.accumulate == 0,
            f"a divisor of {self.batch_size}, batch_size",
        )
        require(
            self,
            "bigram_density",
            self.bigram_density == 1 or self.bigram_init == "fixed",
            "1 for a table that trains, or bigram_init='fixed'",
        )
        if self.model.n_ctx < 2:
            raise ValueError(
                f"model.n_ctx: got {self.model.n_ctx}; expected at least 2. A sequence of one token has no next one "
                "to learn from."
            )

    @classmethod
    def toy(cls, **changes: Any) -> "TrainConfig":
        """The recipe for small models on a CPU: Adam with epsilon 1e-8, clipping, learning rate 2e-2."""
        return cls(**changes)

    @classmethod
    def paper(cls, **changes: Any) -> "TrainConfig":
        """The published recipe: Adam epsilon 0.1 on root-mean-square-normalised gradients, lr 1.28e-2, j = 4.

        Published with density 1/64 for blocks and 1/16 for embeddings, at batch 512 x 256 tokens.
        """
        published: dict[str, Any] = dict(
            density=1 / 64, embed_density=1 / 16, min_alive=4, lr=1.28e-2, eps=0.1, gradient_scaling="rms"
        )
        return cls(**{**published, **changes})

    @classmethod
    def python(cls, **changes: Any) -> "TrainConfig":
        """For real Python text on a CPU: a wider vocabulary and context, a milder density."""
        shape = ModelConfig(n_layers=2, d_model=256, n_heads=16, d_mlp=1024, n_ctx=128)
        recipe: dict[str, Any] = dict(
            model=shape,
            corpus="python",
            steps=100_000,
            batch_size=8,
            bigram_init="fixed",
            density=1 / 8,
            embed_density=1 / 4,
            lr=6e-3,
        )
        return cls(**{**recipe, **changes})

    @classmethod
    def dense(cls, **changes: Any) -> "TrainConfig":
        """A dense model of the same class: density 1, no AbsTopK, learning rate 3e-3."""
        model = replace(changes.pop("model", cls().model), topk_fraction=None)
        return cls(
            **{
                **dict(density=1.0, embed_density=None, min_alive=0, lr=3e-3, sharkfin=False, model=model),
                **changes,
            }
        )

    @classmethod
    def original(cls, **changes: Any) -> "TrainConfig":
        """The recipe of 2017 for a `ModelConfig.original`: Adam .9/.98, 1 / sqrt(step) after warm-up, smoothed labels.

        Source: Vaswani et al. 2017 (arXiv 1706.03762), sections 5.3 and 5.4; without dropout.
        """
        published: dict[str, Any] = dict(
            density=1.0,
            embed_density=None,
            min_alive=0,
            sharkfin=False,
            betas=(0.9, 0.98),
            eps=1e-9,
            weight_decay=0.0,
            gradient_scaling="none",
            warmup=0.1,
            decay="inverse_sqrt",
            label_smoothing=0.1,
        )
        return cls(**{**published, **changes})

    @classmethod
    def from_json(cls, data: Any) -> "TrainConfig":
        """The inverse of `to_json`; reads older files too. Raises ValueError on an unknown key, or one given twice."""
        return cls(**fitted(cls, with_new_names(data)))


def with_new_names(data: Any) -> Any:
    """The settings of an older file under today's names. Raises ValueError where both names of one are given."""
    if not isinstance(data, dict):
        return data
    both = [(old, new) for old, new in RENAMED.items() if old in data and new in data]
    if both:
        old, new = both[0]
        raise ValueError(f"TrainConfig: got both {old!r} and {new!r}, its new name; expected {new!r} alone.")
    return {RENAMED.get(key, key): value for key, value in data.items()}


def published_lr(d_model: int, warmup_steps: int) -> float:
    """The peak of `lr = d_model^-0.5 min(step^-0.5, step warmup_steps^-1.5)`, reached at the end of warm-up.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), equation 3.
    """
    return float((d_model * warmup_steps) ** -0.5)
