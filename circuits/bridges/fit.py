"""Fitting bridges: two maps for each pair of locations, alone or together with the sparse model.

One step: both models run plainly; at each pair the maps carry each side's activations over (two NMSE terms),
and each model runs on from what was carried to it (two KL terms against the dense model's own predictions).
Maps learn in units of their values' spread, which are folded into them at the end (`circuits.bridges.scales`).
A sparse model that is trained beside also learns from its cross-entropy and from the dense model's predictions,
through every term, under its own projection.
"""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from circuits.bridges.checks import check_finite, check_text, resolve_pairs
from circuits.bridges.config import TERMS, BridgeConfig
from circuits.bridges.maps import BridgeSet, Maps, new_maps, put
from circuits.bridges.measure import NonFiniteLossError, bridge_metrics, next_token_loss
from circuits.bridges.scales import Scales, least_squares, scale_of, stored_scales
from circuits.bridges.sides import Model, Side, still
from circuits.files import check_writable
from circuits.kernels import keep_pages
from circuits.model.checkpoint import load_checkpoint, save_checkpoint
from circuits.model.compute import check_learnable, sparse_compute, with_gradients
from circuits.model.transformer import SparseTransformer
from circuits.reading import UnreadableError, reading
from circuits.settings import check_config, check_kind, require
from circuits.training.config import TrainConfig, with_new_names
from circuits.training.loop import new_model, with_vocabulary
from circuits.training.losses import kl_per_token, nmse, said_of
from circuits.training.numbered import Numbered, take_up
from circuits.training.steps import (
    Entry,
    LastGood,
    NotFiniteError,
    TrainingDiverged,
    optimizer_tensors,
    restore_generator,
    restore_optimizer,
    run_to_end,
    stored_count,
    stored_history,
)
from circuits.training.updates import Updates, check_budgets
from tasks import Corpus, tokenizer_hash


@with_gradients
def fit_bridges(
    dense: Model,
    sparse: SparseTransformer | TrainConfig,
    text: Corpus,
    config: BridgeConfig | None = None,
    *,
    checkpoint: str | Path | None = None,
    resume: str | Path | Sequence[Path] | None = None,
    progress: bool = True,
    numbered: Numbered | None = None,
) -> BridgeSet:
    """Bridges between two models, with validation metrics; the same arguments give the same bits.

    dense: any model with residual-stream hooks; it is run, never changed. sparse: a model, which stays as it is;
    or a TrainConfig, by which a new one is trained under its projection together with the bridges (it is the
    result's `sparse`). checkpoint: where Ctrl-C leaves the fit (default out/bridges.interrupted.safetensors);
    it waits for the end of a step and raises TrainingInterrupted, while a second one stops at once and leaves
    nothing. numbered: where the fit is kept besides every so often, for what no process can be told of beforehand.
    resume: such a file of the same arguments, or several: the newest that is whole is taken, of none the fit starts
    anew. It goes on to the very bits it would have reached.
    Raises ValueError for models and text of different vocabularies or tokenizers, locations that do not exist,
    activations that are not finite, a file to resume that other arguments left or that is none, a checkpoint that
    cannot be written, and TrainingDiverged (a ValueError) at a loss that is not finite.
    From here on the process's allocator keeps freed pages (`circuits.kernels.keep_pages`).
    Source: Gao et al. 2025 (arXiv 2511.13653), bridges; there, too, all coefficients are 1.

    Examples:
        >>> model = circuits.load("mini-python-sparse")
        >>> few = circuits.BridgeConfig(steps=1, hybrids_per_step=1, n_val=8)
        >>> bridges = circuits.fit_bridges(model.bridges.dense, model.model, model.corpus, few, progress=False)
        >>> [str(pair) for pair in bridges.pairs]
        ['embed', '0.attn', '0.mlp']
    """
    keep_pages()
    config = config or BridgeConfig()
    check_config(config, BridgeConfig)
    check_kind("text", text, Corpus, "Make one: tasks.load_corpus(name or path).")
    if checkpoint is not None:
        check_writable(checkpoint, name="checkpoint")
    check_learnable(dense, "dense")
    if not isinstance(sparse, TrainConfig):
        check_kind(
            "sparse", sparse, SparseTransformer, "Give a model, or a TrainConfig by which one is trained."
        )
        check_learnable(sparse, "sparse")
    fit = _Fit(Side(dense, "dense"), sparse, text, config)
    stopped = checkpoint or Path("out") / "bridges.interrupted.safetensors"
    with numbered.held() if numbered is not None else nullcontext():
        take_up(resume, fit.restore)
        held = (dense,) if fit.updates else (dense, fit.sparse.model)
        with still(*held):
            run_to_end(
                fit,
                name="bridges",
                describe=_described,
                checkpoint=stopped,
                shown=progress,
                numbered=numbered,
            )
    try:
        return fit.result()
    except NonFiniteLossError as error:  # of the maps that the last step left
        raise TrainingDiverged(f"lr: after the last step: {error}", fit.rescue(stopped)) from None


class _Fit:
    """The mutable state of one fit."""

    def __init__(
        self, dense: Side, sparse: SparseTransformer | TrainConfig, text: Corpus, config: BridgeConfig
    ) -> None:
        self.dense, self.text, self.config = dense, text, config
        self.updates: Updates | None = None
        self.n_steps, self.batch_size = config.steps, config.batch_size
        check_text(dense, text)
        if isinstance(sparse, TrainConfig):
            train = with_vocabulary(sparse, text)
            check_budgets(train)
            for name, only in (("accumulate", 1), ("precision", "float32")):
                require(
                    train, name, getattr(train, name) == only, f"{only!r}, all that a fit of bridges does"
                )
            sparse = new = new_model(train, text).to(dense.device)
            self.updates = Updates(new, train)
            self.n_steps, self.batch_size = train.steps, train.batch_size
        self.sparse = Side(sparse, "sparse")
        check_text(self.sparse, text)
        self.pairs = resolve_pairs(dense, self.sparse, config.pairs)
        self.maps = new_maps(dense, self.sparse, self.pairs, config.topk_fraction, seed=config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.n_pos = min(dense.n_ctx, self.sparse.n_ctx)
        if self.n_pos < 2:
            raise ValueError(f"n_ctx: the models share {self.n_pos}; expected at least 2, for a next token.")
        require(
            config,
            "first",
            config.first < self.n_pos,
            f"at most {self.n_pos - 1}, since the models share a context of {self.n_pos} tokens and bridges need "
            "at least one. Lower it: 1 leaves out the first token",
        )
        self._start()
        self.optimizer = torch.optim.Adam(self.maps.parameters(), lr=config.lr, betas=config.betas, eps=1e-8)
        self.history: list[Entry] = []
        self.step = 0
        learned = [*self.maps.parameters(), *([] if self.updates is None else self.sparse.model.parameters())]
        self.good = LastGood(learned)

    def progress(self) -> float:
        """Fraction of the steps done."""
        return self.step / self.n_steps

    def one_step(self) -> None:
        """One update of the maps, and of the sparse model where it trains."""
        step = self.step
        with sparse_compute(self.sparse.model, self._weight_gradient()):
            terms = self._finite_terms(self._windows(self.batch_size, self.generator))
        loss = torch.stack([getattr(self.config, name) * term for name, term in terms.items()]).sum()
        if not bool(loss.isfinite()):
            raise NotFiniteError(
                f"lr: the loss is {float(loss.detach())} at step {step + 1} ({said_of(self.maps)}); expected a "
                f"finite number. Lower lr, which is {self.config.lr:g}.",
                self.rescue,
            )
        self.good.keep()
        progress = self.progress()
        lr = self.config.lr * min(1.0, (step + 1) / max(1, self.n_steps // 100)) * (1 - progress)
        self.optimizer.zero_grad(set_to_none=True)
        if self.updates is None:
            loss.backward()
        else:
            self.updates(loss, progress)
        nn.utils.clip_grad_norm_(self.maps.parameters(), 1.0)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        if step % self.config.log_every == 0 or step == self.n_steps - 1:
            values = {name: float(term.detach()) for name, term in terms.items()}
            self.history.append({"step": step + 1, "loss": float(loss.detach()), "lr": lr, **values})
        self.step += 1

    def _weight_gradient(self) -> Literal["exact", "support"]:
        """Which weights of a sparse model that trains get a gradient in this step."""
        if self.updates is None or self.step % self.updates.config.refresh == 0:
            return "exact"
        return self.updates.config.weight_gradient

    def _finite_terms(self, tokens: Tensor) -> dict[str, Tensor]:
        try:
            return self._terms(tokens)
        except ValueError as error:
            if self.step == 0 or self.updates is None:
                raise
            raise NotFiniteError(f"lr: at step {self.step + 1}: {error}", self.rescue) from None

    def _terms(self, tokens: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            reference, dense = self.dense.run(tokens, keep=[p.dense for p in self.pairs])
        with nullcontext() if self.updates else torch.no_grad():
            logits, sparse = self.sparse.run(tokens, keep=[p.sparse for p in self.pairs])
        check_finite(self.dense, dense)
        check_finite(self.sparse, sparse)
        terms = {name: reference.new_zeros(()) for name in TERMS[:4]}
        (chosen, weight), first = self._chosen(), self.config.first
        for i, (pair, maps) in enumerate(zip(self.pairs, self.maps, strict=True)):
            assert isinstance(maps, Maps)
            ours, theirs = sparse[pair.sparse], dense[pair.dense]
            encoded, decoded = self.scales.encode(i, maps, theirs), self.scales.decode(i, maps, ours)
            for name, found, target in (
                ("nmse_encode", encoded, ours.detach()),
                ("nmse_decode", decoded, theirs),
            ):
                terms[name] = terms[name] + nmse(found[:, first:], target[:, first:])
            for name, side, place, value in (
                ("kl_dense_to_sparse", self.sparse, pair.sparse, encoded),
                ("kl_sparse_to_dense", self.dense, pair.dense, decoded),
            ):
                if i in chosen and getattr(self.config, name) > 0:
                    hybrid, _ = side.run(tokens, replace={place: put(value, first)})
                    terms[name] = terms[name] + weight * kl_per_token(reference, hybrid)
        if self.updates is not None:
            terms["kl_plain"] = kl_per_token(reference, logits)
            terms["cross_entropy"] = next_token_loss(logits, tokens)
        return terms

    def _chosen(self) -> tuple[set[int], float]:
        """The pairs whose hybrids are run in this step, and how many each one stands for."""
        n = len(self.pairs)
        some = min(self.config.hybrids_per_step or n, n)
        return set(torch.randperm(n, generator=self.generator)[:some].tolist()), n / some

    def _windows(self, n: int, generator: torch.Generator) -> Tensor:
        tokens = self.text.windows(n, self.n_pos, split="train", generator=generator)
        return tokens.to(self.dense.device)

    def _start(self) -> None:
        """Take scales from a first sample of text, and set the maps to what they start from in these units."""
        regresses = self.updates is None and self.config.init == "regression"
        # A sample that only scales are taken from leaves the draws of the batches alone.
        generator = self.generator if regresses else torch.Generator().manual_seed(self.config.seed)
        tokens = self._windows(64, generator)
        dense, sparse = self._values(self.dense, tokens), self._values(self.sparse, tokens)
        self.scales = Scales(dense=tuple(map(scale_of, dense)), sparse=tuple(map(scale_of, sparse)))
        if self.updates is not None:
            self._start_along()
        elif regresses:
            self._regress(dense, sparse)

    def _values(self, side: Side, tokens: Tensor) -> list[Tensor]:
        """A side's values [batch, pos, d_model] at its location of each pair, where bridges carry them."""
        places = [getattr(pair, side.role) for pair in self.pairs]
        with torch.no_grad(), still(side.model):
            _, found = side.run(tokens, keep=places)
        check_finite(side, found)
        return [found[place][:, self.config.first :] for place in places]

    def _start_along(self) -> None:
        """Units for a model that trains along, and encoders that write what is as small as its values are at first.

        Those grow from some hundredths toward the dense model's, or toward 1 where that is less: such are the units.
        """
        along = tuple(min(1.0, scale) for scale in self.scales.dense)
        for maps, at_first, scale in zip(self.maps, self.scales.sparse, along, strict=True):
            assert isinstance(maps, Maps)
            maps.encoder.weight.data.mul_(at_first / scale)
        self.scales = replace(self.scales, sparse=along)

    def _regress(self, dense: list[Tensor], sparse: list[Tensor]) -> None:
        """Set the maps to the least-squares ones of a sample of text (before AbsTopK)."""
        for i, (maps, h, g) in enumerate(zip(self.maps, dense, sparse, strict=True)):
            assert isinstance(maps, Maps)
            for (linear, read, written), (x, y) in zip(
                self.scales.of(i, maps), ((h, g), (g, h)), strict=True
            ):
                weight, bias = least_squares(x.flatten(0, 1), y.flatten(0, 1))
                linear.weight.data.copy_(weight * (read / written))
                linear.bias.data.copy_(bias / written)

    def rescue(self, path: str | Path) -> Path:
        """Maps and sparse model of the last finite loss: nothing can go on from them to another end."""
        self.good.put_back()
        maps = self.scales.folded(self.maps)
        extra = {f"maps.{name}": value for name, value in maps.state_dict().items()}
        return save_checkpoint(path, self.sparse.model, meta={"history": self.history}, extra=extra)

    def save(self, path: str | Path) -> Path:
        """Everything needed to go on: maps, their scales, sparse model, Adam's moments, the generator, the history."""
        extra = {f"maps.{name}": value for name, value in self.maps.state_dict().items()}
        extra["generator"] = self.generator.get_state()
        for name, optimizer in self._optimizers().items():
            extra |= optimizer_tensors(name, optimizer)
        meta = {"fit": self._identity(), "step": self.step, "history": self.history}
        meta["scales"] = asdict(self.scales)
        return save_checkpoint(path, self.sparse.model, meta=meta, extra=extra)

    def restore(self, path: str | Path) -> None:
        """Take up a fit that `save` left. Raises ValueError when it was of other arguments."""
        saved = load_checkpoint(path)
        if _in_new_names(saved.meta.get("fit"), self._identity()) != self._identity():
            raise UnreadableError(
                f"resume: {path} is no interrupted fit of these models, text and settings; expected the file that "
                f"Ctrl-C left of the same call ({self._identity()})."
            )
        maps = {k.removeprefix("maps."): value for k, value in saved.extra.items() if k.startswith("maps.")}
        with reading(path, "a fit that was interrupted", name="resume"):
            step = stored_count(saved.meta.get("step"), "step", self.n_steps)
            history = stored_history(saved.meta.get("history"))
            scales = stored_scales(saved.meta.get("scales"), len(self.pairs))
            if self.updates is not None:  # else it is the same already, and maybe compact
                self.sparse.model.load_state_dict(saved.model.state_dict())
            restore_generator(self.generator, saved.extra)
            self.maps.load_state_dict(maps)
            for name, optimizer in self._optimizers().items():
                restore_optimizer(name, optimizer, saved.extra)
        self.step, self.history, self.scales = step, history, scales

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        beside = {} if self.updates is None else {"adam_sparse": self.updates.optimizer}
        return {"adam_maps": self.optimizer, **beside}

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a fit to be taken up again, in JSON types."""
        sparse = self.sparse.fingerprint() if self.updates is None else self.updates.config.to_json()
        identity = {
            "dense": self.dense.fingerprint(),
            "sparse": sparse,
            "text": self.text.name,
            "text_hash": self.text.fingerprint,
            "tokenizer": tokenizer_hash(self.text.tokenizer),
            "bridge": self.config.to_json(),
        }
        return json.loads(json.dumps(identity))

    def result(self) -> BridgeSet:
        """The bridges with their metrics on validation text."""
        sparse = self.sparse.model
        sparse.eval()
        bridges = BridgeSet(
            dense=self.dense.model,
            sparse=sparse,
            pairs=self.pairs,
            maps=self.scales.folded(self.maps).requires_grad_(False),
            topk_fraction=self.config.topk_fraction,
            first=self.config.first,
            history=self.history,
        )
        generator = torch.Generator().manual_seed(1)
        tokens = self.text.windows(self.config.n_val, self.n_pos, split="val", generator=generator)
        metrics = bridge_metrics(bridges, tokens.to(self.dense.device))
        return replace(bridges, metrics={**metrics, "bridge": self.config.to_json()})


def _in_new_names(identity: Any, asked: dict[str, Any]) -> Any:
    """What an interrupted fit says of itself, also where an older version wrote it, which knew its text by name."""
    if not isinstance(identity, dict):
        return identity
    identity = {**{name: asked[name] for name in ("text_hash", "tokenizer")}, **identity}
    if isinstance(identity.get("bridge"), dict):
        identity["bridge"] = {"first": 0, **identity["bridge"]}
    if not isinstance(identity.get("sparse"), dict):
        return identity
    return {**identity, "sparse": {**TrainConfig().to_json(), **with_new_names(identity["sparse"])}}


def _described(entry: Entry) -> str:
    return f"loss {entry['loss']:.3f}"
