"""Sparse factors of a dense model: each weight matrix becomes a product A B of two sparse ones, and nothing else moves.

    found = fit_factors(dense)                 # A B learns to say what W said, under the projection
    circuit = prune(found.model, task)         # inner coordinates are nodes, nonzeros of A and B edges

So a model that somebody has gets circuits with edges, without a sparse model trained in its place. The factored model
is a SparseTransformer with six further sites a layer (`circuits.model.sites.FACTOR_TABLE`). Embeddings, norms, biases
and sinks stay the dense model's own, bit for bit.
Source: sparse weight decomposition (arXiv 2608.03913): sparse factors of a dense model, no pretraining.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.files import check_writable
from circuits.kernels import keep_pages
from circuits.model.checkpoint import load_checkpoint, save_checkpoint
from circuits.model.compute import check_learnable, with_gradients
from circuits.model.hooks import keep
from circuits.model.kinds import of_ours
from circuits.model.layers import Factored
from circuits.model.sites import FACTOR_WEIGHTS, WEIGHTS, Site
from circuits.model.text import check_corpus, text_of
from circuits.model.transformer import SparseTransformer
from circuits.reading import UnreadableError, demand, reading
from circuits.settings import (
    Amount,
    Count,
    Decay,
    Density,
    Fraction,
    Positive,
    Seed,
    Settings,
    check_config,
    require,
)
from circuits.training.config import TrainConfig
from circuits.training.losses import kl_per_token, nmse, said_of, validation_loss
from circuits.training.steps import (
    Entry,
    LastGood,
    NotFiniteError,
    optimizer_tensors,
    restore_generator,
    restore_optimizer,
    run_to_end,
    stored_count,
    stored_history,
)
from circuits.training.updates import Updates, check_budgets
from tasks import Corpus

NOISE = 0.01
"""Size of the noise that factors start with, in root mean squares of their entries."""


@dataclass(frozen=True, kw_only=True)
class FactorConfig(Settings):
    """Everything that decides a fit of factors."""

    ratio: Positive = 1.0
    "Inner coordinates of each product, in shorter sides of its matrix; from 1 on, dense factors are exact."
    density: Density = 0.1
    "Nonzeros of each factor at the end, in (0, 1]: of A and of B each `int(density * entries)`, exactly."
    min_alive: Count = 1
    "Entries of A, and of B, that each inner coordinate keeps at least, inside the budget."
    kl: Amount = 1.0
    "Coefficient: KL of the factored model's next token against the dense one's, in nats per token."
    outputs: Amount = 1.0
    "Coefficient: error of what each sublayer writes (NMSE of attn_out and mlp_out, their mean over the model)."
    steps: Count = 1000
    "Optimiser steps."
    batch_size: Count = 48
    "Sequences of n_ctx tokens per step."
    lr: Positive = 1e-2
    "Peak learning rate (Adam)."
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    "Adam's averaging constants."
    anneal: tuple[Fraction, Fraction] = (0.01, 0.5)
    "Fractions of the fit between which the density falls from 1."
    n_val: Count = 256
    "Validation sequences that the metrics are measured on."
    log_every: Count = 20
    "Steps between entries of the history."
    seed: Seed = 0
    "Decides the noise that the factors start with, and batches."

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "anneal", self.anneal[0] < self.anneal[1], "two rising fractions in [0, 1]")
        require(self, "kl", self.kl + self.outputs > 0, "a coefficient above 0, here or as outputs")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, as a file gives them back."""
        said: dict[str, Any] = json.loads(json.dumps(super().to_json()))
        return said

    def updates(self, model: SparseTransformer) -> TrainConfig:
        """The settings of one optimiser step under the projection, as training has them."""
        return TrainConfig(
            model=model.config,
            steps=self.steps,
            batch_size=self.batch_size,
            density=self.density,
            min_alive=self.min_alive,
            anneal=self.anneal,
            lr=self.lr,
            sharkfin=False,
            betas=self.betas,
            weight_decay=0.0,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class Factoring:
    """A dense model with its weights in sparse factors, and how near it is to the dense one."""

    model: SparseTransformer
    "In eval mode, the tokenizer and the text of the dense model attached."
    config: FactorConfig
    "As run."
    history: list[Entry]
    "Entries with step, loss, kl (nats per token), outputs (NMSE), density and lr."
    metrics: dict[str, float]
    "On validation text: val_loss and dense_val_loss (nats), kl and outputs as in the history; n_nonzero of factors."

    def save(self, path: str | Path) -> Path:
        """Write the factored model as a checkpoint; returns the path. Read it with `load_checkpoint`."""
        meta = {"factors": self.config.to_json(), "history": self.history, "metrics": self.metrics}
        return save_checkpoint(path, self.model, meta=meta)

    def __repr__(self) -> str:
        m = self.metrics
        return (
            f"Factoring({m['n_nonzero']:,.0f} nonzeros in factors of density {self.config.density:.2%}: validation "
            f"loss {m['val_loss']:.3f} nats, {m['dense_val_loss']:.3f} before)"
        )


@of_ours
def factored(model: SparseTransformer, ratio: float = 1.0) -> SparseTransformer:
    """The same model with each weight matrix W as a product: `W I` or `I W`, the identity on its shorter side.

    Outputs are the same but for rounding where ratio is 1. Beyond, there are inner coordinates that carry nothing yet;
    below, those with the smallest weights are cut off. Raises ValueError for an encoder-decoder, and for a model of
    factors.

    Examples:
        >>> dense = circuits.load("mini-python-dense").model
        >>> same, tokens = circuits.training.factored(dense), torch.arange(8)[None]
        >>> torch.allclose(same(tokens), dense(tokens), atol=1e-4)
        True
    """
    _check_whole(model)
    made = SparseTransformer(replace(model.config, factor_ratio=ratio), tokenizer=model.tokenizer).to(
        model.W_E
    )
    made.trained_on = model.trained_on
    whole = model.state_dict()
    made.load_state_dict({k: v for k, v in whole.items() if k in made.state_dict()}, strict=False)
    with torch.no_grad():
        for row, product in _products(made):
            _set_trivially(product, whole[f"{row}.weight"])
            product.first.bias.zero_()
            product.second.bias.copy_(whole[f"{row}.bias"])
    return made.train(model.training)


def _check_whole(model: SparseTransformer) -> None:
    if model.config.factor_ratio:
        raise ValueError(
            f"model: its weights are factors already (factor_ratio={model.config.factor_ratio:g}); expected whole "
            "matrices. Give the model that these are factors of."
        )


def _products(model: SparseTransformer) -> Iterator[tuple[str, Factored]]:
    """Every product of a factored model, by the path of its map."""
    for layer in range(model.config.n_layers):
        for row in WEIGHTS.values():
            path = f"blocks.{layer}.{row.path}"
            found = model.get_submodule(path)
            assert isinstance(found, Factored)
            yield path, found


def _set_trivially(product: Factored, weight: Float[Tensor, "d_in d_out"]) -> None:
    """A = W and B = I, or A = I and B = W; with fewer inner coordinates, those of the largest weights."""
    first, second = product.first.weight.zero_(), product.second.weight.zero_()
    axis = 0 if weight.shape[1] <= weight.shape[0] else 1
    kept = weight.norm(dim=axis).argsort(descending=True, stable=True)[: first.shape[1]].sort().values
    inner = torch.arange(len(kept), device=weight.device)
    if axis == 0:
        first[:, inner], second[inner, kept] = weight[:, kept], 1.0
    else:
        first[kept, inner], second[inner] = 1.0, weight[kept]


@of_ours
@with_gradients
def fit_factors(
    model: SparseTransformer,
    config: FactorConfig | None = None,
    *,
    corpus: Corpus | None = None,
    checkpoint: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
) -> Factoring:
    """Sparse factors of a dense model's weights, fitted on text; the same arguments give the same bits.

    model: it is run, and stays as it is. corpus: the text (default: the model's own, which it knows by name and hash).
    checkpoint: where Ctrl-C, SIGTERM or SIGHUP leaves the fit (default out/factors.interrupted.safetensors): at the end
    of a step it raises TrainingInterrupted, while a second one stops at once and leaves nothing. resume: such a file of
    the same arguments; the fit goes on to the very bits it would have reached.
    Raises ValueError for a model that is factored, an encoder-decoder, a text in other tokens, a density at
    which min_alive does not fit, a checkpoint that cannot be written, a file to resume that other arguments left or
    that is none, and TrainingDiverged (a ValueError) at a loss that is not finite.
    From here on the process's allocator keeps freed pages (`circuits.kernels.keep_pages`).

    Examples:
        >>> dense = circuits.load("mini-python-dense").model
        >>> few = circuits.training.FactorConfig(steps=2, batch_size=4, n_val=8)
        >>> found = circuits.training.fit_factors(dense, few, progress=False)
        >>> found.model.n_nonzero() < dense.n_nonzero()
        True
    """
    keep_pages()
    config = config or FactorConfig()
    check_config(config, FactorConfig)
    _check_whole(model)
    check_learnable(model)
    corpus = text_of(model) if corpus is None else corpus
    check_corpus(model, corpus)
    fit = _Fit(model, corpus, config)
    if resume is not None:
        fit.restore(resume)
    if checkpoint is not None:
        check_writable(checkpoint, name="checkpoint")
    run_to_end(
        fit,
        name="factors",
        describe=_described,
        checkpoint=checkpoint or Path("out") / "factors.interrupted.safetensors",
        shown=progress,
    )
    return fit.result()


class _Fit:
    """The mutable state of one fit."""

    def __init__(self, dense: SparseTransformer, corpus: Corpus, config: FactorConfig) -> None:
        self.dense, self.corpus, self.config = dense, corpus, config
        self.model = factored(dense, config.ratio).eval().requires_grad_(False)
        check_budgets(config.updates(self.model))
        self._start()
        self.updates = Updates(self.model, config.updates(self.model))
        self.generator = torch.Generator().manual_seed(config.seed)
        self.history: list[Entry] = []
        self.step = 0
        self.good = LastGood(self.model.parameters())

    def _start(self) -> None:
        """Trivial factors and a little noise, which alone are to learn."""
        generator = torch.Generator().manual_seed(self.config.seed)
        with torch.no_grad():
            for _, product in _products(self.model):
                _loosen(product, generator)
                product.first.weight.requires_grad_(True)
                product.second.weight.requires_grad_(True)

    def progress(self) -> float:
        """Fraction of the steps done."""
        return self.step / self.config.steps

    def one_step(self) -> None:
        """One update of the factors, projection included."""
        n_ctx, size = self.model.config.n_ctx, self.config.batch_size
        tokens = self.corpus.windows(size, n_ctx, split="train", generator=self.generator)
        terms = distances(self.dense, self.model, tokens.to(self.dense.W_E.device))
        loss = self.config.kl * terms["kl"] + self.config.outputs * terms["outputs"]
        if not bool(loss.detach().isfinite()):
            raise NotFiniteError(
                f"lr: the loss is {float(loss.detach())} at step {self.step + 1} ({said_of(self.model)}); expected a "
                f"finite number. Lower lr, which is {self.config.lr:g}.",
                self.rescue,
            )
        self.good.keep()
        density, lr = self.updates(loss, self.progress())
        self.step += 1
        if self.step % self.config.log_every == 0 or self.step in (1, self.config.steps):
            values = {name: float(term.detach()) for name, term in terms.items()}
            entry = {"step": self.step, "loss": float(loss.detach()), **values, "density": density, "lr": lr}
            self.history.append(entry)

    def rescue(self, path: str | Path) -> Path:
        """The factors of the last finite loss, as a model alone."""
        self.good.put_back()
        return save_checkpoint(path, self.model, meta={"history": self.history})

    def save(self, path: str | Path) -> Path:
        """Everything needed to go on: factors, Adam's moments, the generator, the history."""
        extra = {"generator": self.generator.get_state(), **optimizer_tensors("adam", self.updates.optimizer)}
        meta = {"fit": self._identity(), "step": self.step, "history": self.history}
        return save_checkpoint(path, self.model, meta=meta, extra=extra)

    def restore(self, path: str | Path) -> None:
        """Take up a fit that `save` left. Raises UnreadableError when it was of other arguments, or is none."""
        saved = load_checkpoint(path)
        if saved.meta.get("fit") != self._identity():
            raise UnreadableError(
                f"resume: {path} is no interrupted fit of this model, text and settings; expected the file that Ctrl-C "
                f"left of the same call ({self._identity()})."
            )
        with reading(path, "a fit that was interrupted", name="resume"):
            step = stored_count(saved.meta.get("step"), "step", self.config.steps)
            history = stored_history(saved.meta.get("history"))
            finite = all(bool(weight.isfinite().all()) for weight in saved.model.parameters())
            demand(finite, f"weights: {said_of(saved.model)}", "finite numbers")
            self.model.load_state_dict(saved.model.state_dict())
            restore_optimizer("adam", self.updates.optimizer, saved.extra)
            restore_generator(self.generator, saved.extra)
        self.step, self.history = step, history

    def _identity(self) -> dict[str, Any]:
        text = self.corpus.fingerprint
        return {"model": self.dense.fingerprint(), "text": text, "config": self.config.to_json()}

    def result(self) -> Factoring:
        """The factored model, measured."""
        generator = torch.Generator().manual_seed(1)
        tokens = self.corpus.windows(
            self.config.n_val, self.model.config.n_ctx, split="val", generator=generator
        ).to(self.dense.W_E.device)
        with torch.no_grad():
            terms = distances(self.dense, self.model, tokens)
        metrics = {
            **{name: float(term) for name, term in terms.items()},
            "val_loss": validation_loss(self.model, tokens),
            "dense_val_loss": validation_loss(self.dense, tokens),
            "n_nonzero": float(_n_nonzeros(self.model)),
        }
        self.model.requires_grad_(True)
        return Factoring(model=self.model, config=self.config, history=self.history, metrics=metrics)


def distances(
    dense: SparseTransformer, model: SparseTransformer, tokens: Int[Tensor, "batch pos"]
) -> dict[str, Float[Tensor, ""]]:
    """How far a model is from a dense one of the same shape, differentiable in the model's weights.

    kl: of its next token from the dense one's, in nats per token. outputs: error of what sublayers write, NMSE (0:
    exact, 1: no better than the mean), its mean over them; each model in its own pass, which carries errors on.
    """
    with torch.no_grad(), _written(dense) as theirs:
        reference = dense(tokens)
    with _written(model) as ours:
        logits = model(tokens)
    errors = [nmse(ours[site], theirs[site]) for site in theirs]
    return {"kl": kl_per_token(reference, logits), "outputs": torch.stack(errors).mean()}


def _n_nonzeros(model: SparseTransformer) -> int:
    """Nonzeros of all factors of a factored model."""
    layers = range(model.config.n_layers)
    every = (model.linear(layer, name).weight for layer in layers for name in FACTOR_WEIGHTS)
    return sum(int(weight.detach().count_nonzero()) for weight in every)


def _loosen(product: Factored, generator: torch.Generator) -> None:
    """Noise on both factors, a hundredth of the size of their entries: where one is 0, the other has no gradient."""
    for factor in (product.first.weight, product.second.weight):
        size = NOISE * factor.square().mean().sqrt()
        factor.add_(size * torch.randn(factor.shape, generator=generator).to(factor))


@contextmanager
def _written(model: SparseTransformer) -> Iterator[dict[Site, Tensor]]:
    """What sublayers write to the residual stream in a pass inside."""
    kept: dict[Site, Tensor] = {}
    sites = [site for site in model.sites() if site.row.stream == "writes"]
    with model.hooks(fwd_hooks=[(model.hook_name(site), partial(keep, kept, site)) for site in sites]):
        yield kept


def _described(entry: Entry) -> str:
    return f"KL {entry['kl']:.4f}  outputs {entry['outputs']:.4f}  density {entry['density']:.4f}"
