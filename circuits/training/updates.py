"""One update of a model under the projection: learning rate, gradient scaling, Adam, projection, weight decay."""

import math
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuits.model.compute import check_learnable
from circuits.model.layers import Matrix
from circuits.model.transformer import SparseTransformer
from circuits.training.config import TrainConfig
from circuits.training.projection import budget, density_at, project_topk, topk_mask
from circuits.training.ranks import ALONE, Ranks


class Updates:
    """One optimiser step under the projection, for this loop and for any other loss of the same model.

    ranks: the processes whose models are updated alike, each by the gradients of all.
    """

    def __init__(self, model: SparseTransformer, config: TrainConfig, ranks: Ranks = ALONE) -> None:
        if any(linear.is_compact for _, linear in model.linears()):
            raise ValueError(
                "model: it is compact, its matrices cannot train; expected one with all its weights. Load its "
                "checkpoint with load_checkpoint(path), without compact=True."
            )
        check_learnable(model)
        self.model, self.config, self.ranks = model, config, ranks
        self.optimizer = torch.optim.Adam(
            model.parameters(), lr=config.lr, betas=config.betas, eps=config.eps, fused=True
        )

    def __call__(self, loss: Tensor, progress: float) -> tuple[float, float]:
        """`gradients` of one loss, and `step`."""
        self.gradients([loss])
        return self.step(progress)

    def gradients(self, losses: Iterable[Float[Tensor, ""]]) -> Float[Tensor, ""]:
        """Set the gradients of the sum of some losses, those of all ranks; returns that sum.

        The graph of each loss is gone before the next one is asked for.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total: Tensor | None = None
        for loss in losses:
            loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None, "a step has a loss"
        if self.ranks.size > 1:
            total = total.clone()
            self.ranks.add_up([*(p.grad for p in self.model.parameters() if p.grad is not None), total])
        return total

    def step(self, progress: float) -> tuple[float, float]:
        """Gradient scaling, Adam, projection, decay; returns the density and learning rate used."""
        config = self.config
        start, end = config.anneal
        density = density_at(progress, config.density, start=start, end=end, shape=config.schedule)
        lr = learning_rate(config, progress, density)
        _scale_gradients(self.model, config.gradient_scaling)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        project(self.model, config, progress)
        _decay(self.model, config.weight_decay * lr)
        return density, lr


def learning_rate(config: TrainConfig, progress: float, density: float) -> float:
    """Warm-up, then the fall; with sharkfin, times sqrt(final density / current density)."""
    warm = min(1.0, progress / config.warmup) if config.warmup else 1.0
    fall = _fall(config, progress) if progress > config.warmup else 1.0
    sharkfin = (config.density / density) ** 0.5 if config.sharkfin else 1.0
    return config.lr * max(warm, 1e-3) * fall * sharkfin


def _fall(config: TrainConfig, progress: float) -> float:
    """What is left of the peak after warm-up."""
    if config.decay == "inverse_sqrt":
        return math.sqrt(max(config.warmup, 1 / config.steps) / progress)
    return (1 - progress) / (1 - config.warmup)


def project(model: SparseTransformer, config: TrainConfig, progress: float) -> None:
    """Zero all but the k largest weights of every matrix and bias that trains, k from the schedule at `progress`."""
    for matrix in _trained(model):
        k = _budget_at(config, matrix.group, matrix.parameter.numel(), progress)
        if k < matrix.parameter.numel():
            alive = config.min_alive if matrix.unit_axis is not None else 0
            project_topk(matrix.parameter.data, k, min_alive=alive, unit_axis=matrix.unit_axis)


def _budget_at(config: TrainConfig, group: str, numel: int, progress: float) -> int:
    final = config.embed_density if group == "embed" and config.embed_density is not None else config.density
    start, end = config.anneal
    return budget(numel, density_at(progress, final, start=start, end=end, shape=config.schedule))


def check_budgets(config: TrainConfig) -> None:
    """Raise the ValueError that the projection would raise at the final density, before training starts."""
    with torch.device("meta"):
        shapes = [
            (m.name, m.parameter.shape, m.group, m.unit_axis)
            for m in SparseTransformer(config.model).matrices()
        ]
    for name, shape, group, unit_axis in shapes:
        k = _budget_at(config, group, shape.numel(), 1.0)
        if unit_axis is not None and k < shape.numel():
            try:
                _check_alive(shape, k, config.min_alive, unit_axis)
            except ValueError as error:
                raise ValueError(f"density: {config.density:g} is too small for {name}. {error}") from None


def _check_alive(shape: torch.Size, k: int, min_alive: int, unit_axis: int) -> None:
    if min_alive * shape[unit_axis] > k:
        topk_mask(torch.zeros(shape), k, min_alive=min_alive, unit_axis=unit_axis)


def _scale_gradients(model: nn.Module, how: str) -> None:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if how == "clip":
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    elif how == "rms":
        squares = torch.stack([g.square().sum() for g in gradients]).sum()
        rms = (squares / sum(g.numel() for g in gradients)).sqrt()
        torch._foreach_div_(gradients, rms.clamp_min(1e-30))


def _decay(model: SparseTransformer, amount: float) -> None:
    with torch.no_grad():
        for matrix in _trained(model):
            if matrix.parameter.ndim == 2:
                matrix.parameter.mul_(1 - amount)


def _trained(model: SparseTransformer) -> Iterator[Matrix]:
    """The tensors of the budget, without those that are held as they are."""
    return (matrix for matrix in model.matrices() if matrix.parameter.requires_grad)
