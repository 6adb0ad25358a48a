"""Whole steps, timed: pruning and training on the nonzeros against the same step with masked dense matrices.

The masked-dense way is what one would write in PyTorch: dense products with matrices full of zeros, torch.topk for
AbsTopK and the projection, attention that writes its pattern out. Both run the same model, loss and optimiser.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from circuits import kernels
from circuits.circuit.masked import run_masked
from circuits.model.compute import compact, sparse_compute
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer
from circuits.pruning.gates import Gates
from circuits.settings import Count, Density, Seed, Settings, require
from circuits.training.config import TrainConfig
from circuits.training.updates import Updates, project

STEP_NAMES = ("prune_step", "train_step_exact", "train_step_support", "toy_train_step")
STEP_TOLERANCE = 1e-9
"""Largest difference in float64 between the two ways' losses and gradients, over the largest gradient."""

Step = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class StepConfig(Settings):
    """The model and the batch that a step is timed on."""

    name: str
    "One of `STEP_NAMES`."
    d_model: Count
    density: Density
    "Of block matrices; embeddings are at 4 times that, at most 1/16."
    n_layers: Count = 4
    batch: Count = 16
    pos: Count = 128
    d_head: Count = 16
    d_vocab: Count = 2048
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "name", self.name in STEP_NAMES, f"one of {STEP_NAMES}")

    def train(self) -> TrainConfig:
        """A training config whose density is the final one from the first step on."""
        model = ModelConfig(
            d_vocab=self.d_vocab,
            n_layers=self.n_layers,
            d_model=self.d_model,
            n_heads=self.d_model // self.d_head,
            d_head=self.d_head,
            d_mlp=4 * self.d_model,
            n_ctx=self.pos,
        )
        return TrainConfig(
            model=model,
            density=self.density,
            embed_density=min(1 / 16, 4 * self.density),
            anneal=(0.0, 1e-9),
            min_alive=1,
            batch_size=self.batch,
            weight_gradient="support" if self.name == "train_step_support" else "exact",
        )

    def small(self) -> "StepConfig":
        """The same step on one layer and few tokens, for checking in float64."""
        return replace(self, n_layers=1, batch=2, pos=16)


def step(config: StepConfig, way: Literal["fast", "plain"], *, dtype: torch.dtype = torch.float32) -> Step:
    """A step ready to be run any number of times; each run returns the loss and every gradient, flat and joined."""
    kernels.keep_pages()  # as training and pruning do
    train = config.train()
    model = SparseTransformer(train.model, seed=config.seed).to(dtype)
    for matrix in model.matrices():
        # As wide as trained weights are: at the initial 0.02 a sparse model's activations fade layer by layer.
        matrix.parameter.data.mul_(10)
    project(model, train, 1.0)
    generator = torch.Generator().manual_seed(config.seed)
    tokens = torch.randint(config.d_vocab, (config.batch, config.pos), generator=generator)
    make = _prune_step if config.name == "prune_step" else _train_step
    return make(model, train, tokens, way)


def _prune_step(model: SparseTransformer, train: TrainConfig, tokens: Tensor, way: str) -> Step:
    """A step of gate training on frozen weights; the fast way holds nothing but their nonzeros."""
    model.requires_grad_(False).eval()
    if way == "fast":
        compact(model)
    widths = model.config.widths
    gates = Gates({site: (width,) for site, width in widths.items()}, seed=0, like=model.W_E)
    parameters = [*gates.parameters.values()]
    values = {site: torch.full_like(gate, 0.01) for site, gate in gates.parameters.items()}
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def run() -> Tensor:
        with nullcontext() if way == "fast" else masked_dense():
            logits = run_masked(model, tokens, gates.masks(), values)
            loss = F.softplus(logits[:, -1, 0] - logits[:, -1, 1]).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            found = _joined(loss, parameters)
            optimizer.step()
            gates.clamp()
        return found

    return run


def _train_step(model: SparseTransformer, train: TrainConfig, tokens: Tensor, way: str) -> Step:
    updates = Updates(model, train)
    sparse = way == "fast"

    def run() -> Tensor:
        with nullcontext() if sparse else masked_dense():
            with sparse_compute(model, train.weight_gradient) if sparse else nullcontext():
                loss = model(tokens, return_type="loss")
            updates(loss, 0.5)
        return loss.detach().reshape(1)

    return run


def projection(config: StepConfig) -> tuple[Step, Callable[[], None]]:
    """The projection of a training step, and what to call before it: it puts weights back of which none is zero."""
    train = config.train()
    model = SparseTransformer(train.model, seed=config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    weights = [torch.randn(m.parameter.shape, generator=generator) for m in model.matrices()]

    def prepare() -> None:
        for matrix, weight in zip(model.matrices(), weights, strict=True):
            matrix.parameter.data.copy_(weight)

    def run() -> Tensor:
        project(model, train, 1.0)
        return model.W_E

    return run, prepare


def gradients(config: StepConfig, way: Literal["fast", "plain"]) -> Tensor:
    """Loss and gradients of the small step in float64, before any update, for the parity check.

    Where fewer than k activations are nonzero, torch.topk passes the gradient to some of the zeros, whichever it
    comes across; so here AbsTopK is `impl="naive"`.
    """
    small = config.small()
    dense = partial(masked_dense, partial(kernels.abs_topk, impl="naive"))
    if config.name == "prune_step":
        with dense() if way == "plain" else nullcontext():
            return step(small, "fast", dtype=torch.float64)()
    train = small.train()
    model = SparseTransformer(train.model, seed=small.seed).double()
    project(model, train, 1.0)
    tokens = torch.randint(
        small.d_vocab, (small.batch, small.pos), generator=torch.Generator().manual_seed(1)
    )
    with sparse_compute(model, train.weight_gradient) if way == "fast" else dense():
        loss = model(tokens, return_type="loss")
        loss.backward()
    found = {id(p): p for p in model.parameters()}
    if train.weight_gradient == "support" and way == "plain":
        for _, linear in model.linears():
            weight = found[id(linear.weight)]
            assert weight.grad is not None
            weight.grad *= weight != 0
    return _joined(loss, [*model.parameters()])


def _joined(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    grads = [p.grad.flatten() for p in parameters if p.grad is not None]
    return torch.cat([loss.detach().reshape(1), *grads])


@contextmanager
def masked_dense(abs_topk: Callable[[Tensor, int], Tensor] | None = None) -> Iterator[None]:
    """Everything the plain way: dense products, torch.topk, attention with its pattern in memory."""
    with (
        patch.dict(kernels.DENSE_FROM, {name: 0.0 for name in kernels.DENSE_FROM}),
        patch("circuits.model.layers.abs_topk", abs_topk or _plain_abs_topk),
        patch("circuits.model.mixers.softmax.causal_attention", _plain_attention),
        patch("circuits.training.projection.kernels.topk_mask", _plain_mask),
        patch("circuits.training.projection.kernels.slice_topk_mask", _plain_slice_mask),
    ):
        yield


def _plain_abs_topk(x: Tensor, k: int) -> Tensor:
    places = x.abs().topk(k, dim=-1).indices
    return torch.zeros_like(x).scatter(-1, places, x.gather(-1, places))


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None) -> Tensor:
    return kernels.causal_attention(q, k, v, sink, impl="naive")


def _plain_mask(w: Tensor, k: int, always: Tensor | None = None) -> Tensor:
    rank = w.abs().flatten()
    if always is not None:
        rank = rank.masked_fill(always.flatten(), torch.inf)
    mask = torch.zeros(w.numel(), dtype=torch.bool)
    mask[rank.topk(k).indices] = True
    return mask.view(w.shape)


def _plain_slice_mask(w: Tensor, k: int, dim: int) -> Tensor:
    places = w.abs().topk(k, dim=dim).indices
    return torch.zeros_like(w, dtype=torch.bool).scatter_(dim, places, True)


def toy(**changes: Any) -> StepConfig:
    """The toy step: 128 wide, 2 layers, 64 x 64 tokens, mini-Python's vocabulary, density 0.01."""
    shape: dict[str, Any] = dict(
        name="toy_train_step", d_model=128, density=0.01, n_layers=2, batch=64, pos=64, d_vocab=50
    )
    return StepConfig(**{**shape, **changes})
