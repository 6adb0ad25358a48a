"""Fitting bridges: two maps for each pair of locations, alone or together with the sparse model.

One step: both models run plainly; at each pair the maps carry each side's activations over (two NMSE terms),
and each model runs on from what was carried to it (two KL terms against the dense model's own predictions).
A sparse model that is trained beside also learns from its cross-entropy and from the dense model's predictions,
through every term, under its own projection.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from circuits.bridge.checks import check_finite, check_text, resolve_pairs
from circuits.bridge.maps import BridgeSet, Maps, Pair, new_maps, put
from circuits.bridge.measure import bridge_metrics, kl_per_token, next_token_loss, nmse
from circuits.bridge.sides import Model, Side, still
from circuits.model import SparseTransformer, check_keys, with_tuples
from circuits.train import TrainConfig, Updates, check_budgets, new_model
from tasks import Corpus


@dataclass(frozen=True, kw_only=True)
class BridgeConfig:
    """Everything that decides how bridges are fitted. All terms of the loss are summed over locations."""

    pairs: tuple[Pair, ...] | None = None
    "Pairs (dense location, sparse location); None: every location, of two models of equal depth."
    topk_fraction: float | None = 0.25
    "Fraction of the sparse width that an encoder keeps, in (0, 1]; None: all."
    nmse_encode: float = 1.0
    "Coefficient: NMSE of the encoders, dense to sparse."
    nmse_decode: float = 1.0
    "Coefficient: NMSE of the decoders, sparse to dense."
    kl_dense_to_sparse: float = 1.0
    "Coefficient: KL of the hybrids that start dense and end sparse, against the dense model."
    kl_sparse_to_dense: float = 1.0
    "Coefficient: KL of the hybrids that start sparse and end dense, against the dense model."
    kl_plain: float = 1.0
    "Coefficient: KL of the sparse model against the dense one, where the sparse one trains."
    cross_entropy: float = 1.0
    "Coefficient: next-token loss of the sparse model, where it trains."
    hybrids_per_step: int | None = None
    "Locations whose hybrids are run in a step, drawn at random and weighted to stand for all; None: all."
    init: Literal["regression", "random"] = "regression"
    "Start of the maps beside a fixed sparse model: least squares on 64 sequences, or random weights."
    steps: int = 600
    "Steps beside a fixed sparse model; one that trains brings the steps of its own config."
    batch_size: int = 32
    "Sequences of a step beside a fixed sparse model; one that trains brings its own."
    lr: float = 3e-3
    "Peak learning rate of the maps (Adam); it rises over the first 1 % of steps, then falls linearly to 0."
    betas: tuple[float, float] = (0.9, 0.95)
    "Adam's averaging constants."
    n_val: int = 256
    "Validation sequences that the metrics are measured on."
    log_every: int = 20
    "Steps between entries of the history."
    seed: int = 0
    "Decides maps and batches."

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.pairs is not None:
            _require(
                self, "pairs", 0 < len(set(self.pairs)) == len(self.pairs), "distinct pairs, at least one"
            )
        for name in ("steps", "batch_size", "n_val", "log_every"):
            _require(self, name, getattr(self, name) >= 1, "a whole number of at least 1")
        for name in TERMS:
            _require(self, name, getattr(self, name) >= 0, "a coefficient of at least 0")
        _require(self, "lr", self.lr > 0, "a positive number")
        fraction, some = self.topk_fraction, self.hybrids_per_step
        _require(self, "topk_fraction", fraction is None or 0 < fraction <= 1, "a number in (0, 1], or None")
        _require(self, "hybrids_per_step", some is None or some >= 1, "at least 1 location, or None for all")
        _require(self, "init", self.init in ("regression", "random"), "'regression' or 'random'")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "BridgeConfig":
        """The inverse of `to_json`. Raises ValueError on an unknown key."""
        data = with_tuples(check_keys(cls, data), "betas")
        if data.get("pairs") is not None:
            data["pairs"] = tuple(Pair(*pair) for pair in data["pairs"])
        return cls(**data)


TERMS = (
    "nmse_encode",
    "nmse_decode",
    "kl_dense_to_sparse",
    "kl_sparse_to_dense",
    "kl_plain",
    "cross_entropy",
)
"""Terms of the loss, each with a coefficient of the same name."""


def fit_bridges(
    dense: Model,
    sparse: SparseTransformer | TrainConfig,
    text: Corpus,
    config: BridgeConfig | None = None,
    *,
    progress: bool = True,
) -> BridgeSet:
    """Bridges between two models, with validation metrics; the same arguments give the same bits.

    dense: any model with residual-stream hooks; it is run, never changed. sparse: a model, which stays as it is;
    or a TrainConfig, by which a new one is trained under its projection together with the bridges (it is the
    result's `sparse`). Raises ValueError for models and text of different vocabularies or tokenizers, locations
    that do not exist, and activations that are not finite.
    Source: Gao et al. 2025 (arXiv 2511.13653), bridges; there, too, all coefficients are 1.
    """
    config = config or BridgeConfig()
    fit = _Fit(Side(dense, "dense"), sparse, text, config)
    held = (dense,) if fit.updates else (dense, fit.sparse.model)
    with still(*held), _progress_bar(progress, fit.n_steps) as show:
        for step in range(fit.n_steps):
            fit.one_step(step)
            show(step + 1, fit.history[-1])
    return fit.result()


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
            train = replace(sparse, model=replace(sparse.model, d_vocab=text.tokenizer.d_vocab))
            check_budgets(train)
            sparse = new = new_model(train, text).to(dense.device)
            self.updates = Updates(new, train)
            self.n_steps, self.batch_size = train.steps, train.batch_size
        self.sparse = Side(sparse, "sparse")
        check_text(self.sparse, text)
        self.pairs = resolve_pairs(dense, self.sparse, config.pairs)
        self.maps = new_maps(dense, self.sparse, self.pairs, config.topk_fraction, seed=config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.n_pos = min(dense.n_ctx, self.sparse.n_ctx)
        if self.updates is None and config.init == "regression":
            self._regress()
        self.optimizer = torch.optim.Adam(self.maps.parameters(), lr=config.lr, betas=config.betas, eps=1e-8)
        self.history: list[dict[str, int | float]] = []

    def one_step(self, step: int) -> None:
        """One update of the maps, and of the sparse model where it trains."""
        terms = self._terms(self._windows(self.batch_size))
        loss = torch.stack([getattr(self.config, name) * term for name, term in terms.items()]).sum()
        if not bool(loss.isfinite()):
            raise ValueError(
                f"text: the loss is {float(loss)} at step {step}; expected finite numbers. Lower lr ({self.config.lr})."
            )
        progress = step / self.n_steps
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

    def _terms(self, tokens: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            reference, dense = self.dense.run(tokens, keep=[p.dense for p in self.pairs])
        with nullcontext() if self.updates else torch.no_grad():
            logits, sparse = self.sparse.run(tokens, keep=[p.sparse for p in self.pairs])
        check_finite(self.dense, dense)
        check_finite(self.sparse, sparse)
        terms = {name: reference.new_zeros(()) for name in TERMS[:4]}
        chosen, weight = self._chosen()
        for i, (pair, maps) in enumerate(zip(self.pairs, self.maps, strict=True)):
            assert isinstance(maps, Maps)
            encoded, decoded = maps.encode(dense[pair.dense]), maps.decode(sparse[pair.sparse])
            terms["nmse_encode"] = terms["nmse_encode"] + nmse(encoded, sparse[pair.sparse].detach())
            terms["nmse_decode"] = terms["nmse_decode"] + nmse(decoded, dense[pair.dense])
            for name, side, place, value in (
                ("kl_dense_to_sparse", self.sparse, pair.sparse, encoded),
                ("kl_sparse_to_dense", self.dense, pair.dense, decoded),
            ):
                if i in chosen and getattr(self.config, name) > 0:
                    hybrid, _ = side.run(tokens, replace={place: put(value)})
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

    def _windows(self, n: int) -> Tensor:
        tokens = self.text.windows(n, self.n_pos, split="train", generator=self.generator)
        return tokens.to(self.dense.device)

    def _regress(self) -> None:
        """Set the maps to the least-squares ones of a sample of text (before AbsTopK)."""
        tokens = self._windows(64)
        with torch.no_grad(), still(self.dense.model, self.sparse.model):
            _, dense = self.dense.run(tokens, keep=[p.dense for p in self.pairs])
            _, sparse = self.sparse.run(tokens, keep=[p.sparse for p in self.pairs])
        check_finite(self.dense, dense)
        check_finite(self.sparse, sparse)
        for pair, maps in zip(self.pairs, self.maps, strict=True):
            assert isinstance(maps, Maps)
            for linear, x, y in (
                (maps.encoder, dense[pair.dense], sparse[pair.sparse]),
                (maps.decoder, sparse[pair.sparse], dense[pair.dense]),
            ):
                weight, bias = least_squares(x.flatten(0, 1), y.flatten(0, 1))
                linear.weight.data.copy_(weight)
                linear.bias.data.copy_(bias)

    def result(self) -> BridgeSet:
        """The bridges with their metrics on validation text."""
        sparse = self.sparse.model
        sparse.eval()
        bridges = BridgeSet(
            dense=self.dense.model,
            sparse=sparse,
            pairs=self.pairs,
            maps=self.maps.requires_grad_(False),
            topk_fraction=self.config.topk_fraction,
            history=self.history,
        )
        generator = torch.Generator().manual_seed(1)
        tokens = self.text.windows(self.config.n_val, self.n_pos, split="val", generator=generator)
        metrics = bridge_metrics(bridges, tokens.to(self.dense.device))
        return replace(bridges, metrics={**metrics, "bridge": self.config.to_json()})


def least_squares(x: Tensor, y: Tensor, *, ridge: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Weight [d_in, d_out] and bias [d_out] of the affine map from rows of x to rows of y, slightly damped."""
    a, b = x.double(), y.double()
    centre, shift = a.mean(dim=0), b.mean(dim=0)
    a, b = a - centre, b - shift
    gram = a.T @ a
    damp = (
        ridge
        * gram.diagonal().mean().clamp_min(1e-12)
        * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    )
    weight = torch.linalg.solve(gram + damp, a.T @ b)
    return weight.to(x), (shift - centre @ weight).to(x)


def _require(config: BridgeConfig, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name}: got {getattr(config, name)!r}; expected {expected}.")


@contextmanager
def _progress_bar(shown: bool, n_steps: int) -> Iterator[Callable[..., None]]:
    columns = (
        TextColumn("bridges"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not shown, console=Console(stderr=True)) as bar:
        line = bar.add_task("bridges", total=n_steps, loss=float("nan"))
        yield lambda step, entry: bar.update(line, completed=step, loss=entry["loss"])
