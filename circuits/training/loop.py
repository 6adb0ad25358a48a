"""Training under a top-k projection: one configuration, one loop.

One step: learning rate -> forward, backward -> gradient scaling -> Adam -> projection -> weight decay.
The density falls on a schedule; the learning rate follows it ("sharkfin"): it is quoted at the final density
and multiplied by sqrt(final / current), so that it rises to its quoted value as the model gets sparser.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.files import check_writable
from circuits.kernels import keep_pages
from circuits.model.checkpoint import load_checkpoint, save_checkpoint
from circuits.model.compute import sparse_compute, with_gradients
from circuits.model.encdec import n_targets
from circuits.model.text import check_corpus, text_of
from circuits.model.transformer import SparseTransformer
from circuits.reading import UnreadableError, demand, reading
from circuits.settings import check_config, check_kind, differences
from circuits.training.config import TrainConfig
from circuits.training.losses import losses_of_parts, said_of, validation_loss
from circuits.training.numbered import Numbered, take_up
from circuits.training.projection import budget, project_topk
from circuits.training.ranks import ALONE, Ranks, joined
from circuits.training.saved import with_corpus
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
    stored_seconds,
)
from circuits.training.updates import Updates, check_budgets
from circuits.views import Plotted
from tasks import Corpus, bigram_log_probs, load_corpus

EXPLODED = 100
"""A loss this many times that of guessing (log of the vocabulary) has exploded: nothing will come of the run."""


@dataclass(frozen=True, kw_only=True)
class Training(Plotted):
    """What a run leaves behind."""

    model: SparseTransformer
    "In eval mode, its tokenizer attached."
    config: TrainConfig
    "As run, vocabulary filled in."
    text: Corpus | None
    "The text it was trained on, where it is at hand; None: looked for when it is asked for, see `corpus`."
    history: list[dict[str, int | float]]
    "Entries with step, loss (nats), density, lr, tokens_per_s, and now and then val_loss."
    seconds: float
    "Time in the loop."

    @property
    def corpus(self) -> Corpus:
        """The text it was trained on. Raises ValueError where it is not found, or is another one now."""
        return self.text or text_of(self.model)

    @property
    def val_loss(self) -> float:
        """Validation loss after the last step, in nats per token."""
        return next(entry["val_loss"] for entry in reversed(self.history) if "val_loss" in entry)

    def __repr__(self) -> str:
        model = self.model
        loss = f"validation loss {self.val_loss:.3f} nats, " if self.history else ""
        return (
            f"Training(on {self.config.corpus!r}, {self.config.steps} steps, seed {self.config.seed}: {loss}"
            f"{model.n_nonzero():,} nonzero weights, density {model.density():.2%})"
        )

    def save(self, path: str | Path) -> Path:
        """Write a checkpoint; returns the path."""
        meta = {"train": self.config.to_json(), "history": self.history, "seconds": self.seconds}
        return save_checkpoint(path, self.model, meta=meta)

    @classmethod
    def load(cls, path: str | Path, *, corpus: Corpus | str | Path | None = None) -> "Training":
        """The inverse of `save`. Raises UnreadableError for a file of another kind or an interrupted run.

        corpus: the text itself, or where it is now (see `load_trained`); where none is given, it is not looked for
        before it is needed.
        """
        saved = load_checkpoint(path)
        if not {"train", "history", "seconds"} <= saved.meta.keys() or saved.extra:
            raise UnreadableError(
                f"path: {path} is no finished run; expected a file that Training.save wrote."
            )
        later = corpus is None and saved.model.tokenizer is not None and saved.model.trained_on is not None
        model, text = (saved.model.eval(), None) if later else with_corpus(path, saved, corpus)
        with reading(path, "a file that Training.save wrote"):
            return cls(
                model=model,
                config=TrainConfig.from_json(saved.meta["train"]),
                text=text,
                history=stored_history(saved.meta["history"]),
                seconds=stored_seconds(saved.meta["seconds"]),
            )


@with_gradients
def train(
    config: TrainConfig,
    *,
    corpus: Corpus | None = None,
    checkpoint: str | Path | None = None,
    resume: str | Path | Sequence[Path] | None = None,
    progress: bool = True,
    numbered: Numbered | None = None,
    ranks: Ranks | None = None,
    log: Callable[[Entry], None] | None = None,
) -> Training:
    """Train a model; the same config gives the same bits (unless `minutes` is set).

    corpus: text of your own in place of the one that `config.corpus` names. checkpoint: where Ctrl-C, SIGTERM or
    SIGHUP leaves the run (default out/interrupted.safetensors): at the end of a step it raises TrainingInterrupted,
    while a second one stops at once and leaves nothing. numbered: where the run is kept besides every so often, since
    SIGKILL and power cuts do not ask. resume: a file that an interrupted run of the same config left, or several: the
    newest that is whole is taken, of none the run starts anew. It goes on to the very bits it would have reached.
    ranks: the processes that train together, see `circuits.training.ranks.joined`; None: those that torchrun started,
    on the CPU. Each returns the same model; files are written by rank 0. log: told of each new entry of the history, in
    rank 0 (`circuits.training.loggers`).
    Raises ValueError for a config that cannot be met, a checkpoint that cannot be written, or (UnreadableError) a file
    of another kind to resume, before anything is computed or written; TrainingDiverged (a ValueError) at a loss that is
    not finite, or beyond `EXPLODED`; and RankError (a ValueError) where ranks are lost, or no longer the same.
    From here on the process's allocator keeps freed pages (`circuits.kernels.keep_pages`).

    Examples:
        >>> config = circuits.TrainConfig.toy(corpus="induction", steps=2, n_val=8, batch_size=4)
        >>> training = circuits.train(config, progress=False)
        >>> training.model.config.d_vocab, len(training.history)
        (27, 2)
    """
    keep_pages()
    check_config(config, TrainConfig)
    corpus = load_corpus(config.corpus, 0) if corpus is None else corpus
    _check_streams(corpus, config.model.n_ctx)
    config = with_vocabulary(config, corpus)
    check_budgets(config)
    stopped = checkpoint or Path("out") / "interrupted.safetensors"
    with joined() if ranks is None else nullcontext(ranks) as ranks:
        check_divisible(config, ranks)
        with numbered.held() if numbered is not None and ranks.leads else nullcontext():
            run = _Run(config, corpus, ranks, log if ranks.leads else None)
            take_up(resume, run.restore)
            if checkpoint is not None and ranks.leads:
                check_writable(checkpoint, name="checkpoint")
            run.check_same()
            run_to_end(
                run,
                name="train",
                describe=_described,
                checkpoint=stopped,
                shown=progress,
                numbered=numbered,
                ranks=ranks,
            )
    run.model.eval()
    return Training(model=run.model, config=config, text=corpus, history=run.history, seconds=run.seconds)


def check_divisible(config: TrainConfig, ranks: Ranks) -> None:
    """Raise ValueError for a config that these ranks cannot share."""
    parts = ranks.size * config.accumulate
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size: got {config.batch_size}; expected a multiple of {parts}, for {ranks.size} processes that "
            f"take their rows in {config.accumulate} parts. Choose another, or another number of processes."
        )
    if ranks.size > 1 and config.minutes is not None:
        raise ValueError(
            f"minutes: got {config.minutes:g} for {ranks.size} processes, whose clocks differ; expected None. Say how "
            "long with steps."
        )


def _check_streams(corpus: Corpus, n_ctx: int) -> None:
    """Raise ValueError for what is no text, or too little of it for one window."""
    check_kind("corpus", corpus, Corpus, "Make one: tasks.load_corpus(name or path).")
    for split, stream in (("train", corpus.train), ("val", corpus.val)):
        if len(stream) < n_ctx or stream.is_floating_point():
            kind = str(stream.dtype).removeprefix("torch.")
            raise ValueError(
                f"corpus: got {len(stream)} tokens of {kind} in {split!r} of {corpus.name!r}; expected whole numbers, "
                f"at least n_ctx = {n_ctx} of them. Give it more text, or the model a smaller n_ctx."
            )


def with_vocabulary(config: TrainConfig, corpus: Corpus) -> TrainConfig:
    """The config as run: it names the corpus, and the model's vocabulary is that of its tokenizer."""
    return replace(config, corpus=corpus.name, model=replace(config.model, d_vocab=corpus.tokenizer.d_vocab))


def new_model(config: TrainConfig, corpus: Corpus) -> SparseTransformer:
    """The model that a run starts from: random weights, and the bigram table as the config says."""
    model = SparseTransformer(config.model, seed=config.seed, tokenizer=corpus.tokenizer)
    model.trained_on = corpus.text_id
    if model.bigram is not None and config.bigram_init != "zeros":
        model.bigram.data.copy_(_bigram_table(corpus, config.bigram_density))
        model.bigram.requires_grad_(config.bigram_init == "counts")
    return model


def _bigram_table(corpus: Corpus, density: float) -> Float[Tensor, "d_vocab d_vocab"]:
    """Log-probabilities of the next token; below density 1 those of the most frequent pairs, over the rest's, are kept.

    A softmax does not see what is added to a whole row, so the pairs that never occur, alike in a row, can be its zero.
    """
    table = bigram_log_probs(corpus)
    if density < 1:
        table -= table.min(dim=1, keepdim=True).values
        project_topk(table, budget(table.numel(), density))
    return table


class _Run:
    """The mutable state of one training run."""

    def __init__(
        self,
        config: TrainConfig,
        corpus: Corpus,
        ranks: Ranks = ALONE,
        log: Callable[[Entry], None] | None = None,
    ) -> None:
        self.config, self.corpus, self.ranks, self.log = config, corpus, ranks, log
        self.model = new_model(config, corpus).to(ranks.device)
        self.updates = Updates(self.model, config, ranks)
        self.optimizer = self.updates.optimizer
        self.generator = torch.Generator().manual_seed(config.seed)
        self.val_tokens = corpus.windows(
            config.n_val, config.model.n_ctx, split="val", generator=torch.Generator().manual_seed(1)
        ).to(ranks.device)
        self.history: list[Entry] = []
        self.step, self.seconds, self._tick = 0, 0.0, time.perf_counter()
        self.good = LastGood(self.model.parameters())

    def progress(self) -> float:
        """Fraction of training done, by steps or by the clock, whichever is further."""
        by_clock = self.seconds / (60 * self.config.minutes) if self.config.minutes else 0.0
        return max(self.step / self.config.steps, by_clock)

    def one_step(self) -> None:
        """One update, projection included, and its entry in the history if one is due."""
        if self.step == 0 or self.seconds == 0:
            self._tick = time.perf_counter()
        config = self.config
        tokens = self.corpus.windows(
            config.batch_size, config.model.n_ctx, split="train", generator=self.generator
        )
        n_all = n_targets(tokens, n_source=config.model.n_source, pad=config.model.pad)
        parts = self.ranks.rows(tokens).to(self.ranks.device).chunk(config.accumulate)
        with sparse_compute(self.model, self._weight_gradient()):
            loss = float(self.updates.gradients(losses_of_parts(self.model, config, parts, n_all)))
        self._check_finite("loss", loss, self.step + 1)
        self.good.keep()
        density, lr = self.updates.step(self.progress())
        self.step += 1
        now = time.perf_counter()
        self.seconds, self._tick = self.seconds + now - self._tick, now
        self._record(loss, density, lr)

    def check_same(self) -> None:
        """Raise RankError where the ranks are no longer in the same state."""
        if self.ranks.size == 1:
            return
        settings = json.dumps([self.config.to_json(), self.corpus.fingerprint, self.step]).encode()
        state = [("config, text and step", torch.frombuffer(bytearray(settings), dtype=torch.uint8))]
        state += [("the generator of batches", self.generator.get_state())]
        self.ranks.check_same([*state, *self.model.named_parameters()], f"at step {self.step}")

    def _weight_gradient(self) -> Literal["exact", "support"]:
        return "exact" if self.step % self.config.refresh == 0 else self.config.weight_gradient

    def _record(self, loss: float, density: float, lr: float) -> None:
        last = self.progress() >= 1
        if last or self.step % self.config.log_every == 0 or self.step == 1:
            self.check_same()
            rate = self.step * self.config.batch_size * self.config.model.n_ctx / max(self.seconds, 1e-9)
            entry = {"step": self.step, "loss": loss, "density": density, "lr": lr, "tokens_per_s": rate}
            if last or self.step % self.config.val_every == 0:
                with sparse_compute(self.model):
                    entry["val_loss"] = validation_loss(self.model, self.val_tokens)
                self._check_finite("validation loss", entry["val_loss"], self.step)
            self.history.append(entry)
            if self.log is not None:
                self.log(entry)

    def _check_finite(self, what: str, value: float, step: int) -> None:
        most = EXPLODED * max(1.0, math.log(self.model.d_vocab))
        if not value <= most:  # nor is NaN
            limit = "a finite number" if not math.isfinite(value) else f"at most {most:.0f} nats"
            raise NotFiniteError(
                f"lr: the {what} is {value} at step {step} ({said_of(self.model)}); expected {limit}. Lower "
                f"lr, which is {self.config.lr:g}.",
                self.rescue,
            )

    def rescue(self, path: str | Path) -> Path:
        """The weights of the last finite loss, as a model alone: nothing can go on from them to another end."""
        self.good.put_back()
        return save_checkpoint(
            path, self.model, meta={"train": self.config.to_json(), "history": self.history}
        )

    def save(self, path: str | Path) -> Path:
        """Everything needed to go on: weights, Adam's moments, the generator, the history."""
        extra = {"generator": self.generator.get_state(), **optimizer_tensors("adam", self.optimizer)}
        meta = {
            "train": self.config.to_json(),
            "history": self.history,
            "seconds": self.seconds,
            "step": self.step,
        }
        return save_checkpoint(path, self.model, meta=meta, extra=extra)

    def restore(self, path: str | Path) -> None:
        """Take up a run that `save` left. Raises UnreadableError when it was of another config, or is none."""
        saved = load_checkpoint(path)
        if "train" not in saved.meta:
            raise UnreadableError(f"resume: {path} holds a model alone; expected a run that was interrupted.")
        with reading(path, "a run that was interrupted", name="resume"):
            theirs = TrainConfig.from_json(saved.meta["train"])
        if theirs != self.config:
            raise UnreadableError(
                f"resume: {path} belongs to another config, it differs in "
                f"{'; '.join(differences(theirs.to_json(), self.config.to_json()))} (there and here); expected the "
                "one it was started with. Change these back, or start anew without resume."
            )
        if "generator" not in saved.extra or "step" not in saved.meta:
            raise UnreadableError(
                f"resume: {path} holds a finished model; expected a run that was interrupted."
            )
        with reading(path, "a run on the same text", name="resume"):
            _check_text(saved.model, self.corpus)
        with reading(path, "a run that was interrupted", name="resume"):
            step = stored_count(saved.meta["step"], "step", self.config.steps)
            history = stored_history(saved.meta.get("history"))
            seconds = stored_seconds(saved.meta.get("seconds"))
            demand(
                all(bool(weight.isfinite().all()) for weight in saved.model.parameters()),
                f"weights: {said_of(saved.model)}",
                "finite numbers",
            )
            self.model.load_state_dict(saved.model.state_dict())
            restore_optimizer("adam", self.optimizer, saved.extra)
            restore_generator(self.generator, saved.extra)
        self.history, self.step, self.seconds = history, step, seconds


def _check_text(left: SparseTransformer, corpus: Corpus) -> None:
    """Raise UnreadableError, or ValueError, for a run that was on another text; older files do not say."""
    check_corpus(left, corpus)
    known = left.trained_on
    if known is not None:
        demand(
            known.fingerprint == corpus.fingerprint,
            f"corpus: it was on text of hash {known.fingerprint} ({known.name!r})",
            f"{corpus.fingerprint}, that of {corpus.name!r}; give the text as it was, or start anew",
        )


def _described(entry: Entry) -> str:
    rate = f"{entry['tokens_per_s']:,.0f} tokens/s"
    return f"loss {entry['loss']:.3f}  density {entry['density']:.4f}  {rate}"
