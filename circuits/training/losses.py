"""What a step descends, in one piece or in parts that add up to it, and what tells how good a model is."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from circuits.model.encdec import n_targets, next_token_loss
from circuits.model.experts import balance_loss, router_logits
from circuits.model.layers import wide
from circuits.model.transformer import SparseTransformer
from circuits.training.config import TrainConfig


def losses_of_parts(
    model: SparseTransformer, config: TrainConfig, parts: Sequence[Int[Tensor, "_rows pos"]], n_all: int
) -> Iterator[Float[Tensor, ""]]:
    """The loss of each part, when it is asked for, so weighted that those of a whole batch add up to its loss.

    n_all: what `n_targets` says of the whole batch; a part counts by its own targets, fewer or more where rows are
    filled up. One term is not the same in parts: the loss that balances experts is taken within each part, and then
    averaged, since of a part alone nobody knows how evenly the whole batch was spread.
    """
    shape = model.config
    for part in parts:
        with precision_of(config, part.device):
            loss = training_loss(model, part, config.label_smoothing, config.balance)
        n_own = n_targets(part, n_source=shape.n_source, pad=shape.pad)
        yield loss if n_own == n_all else loss * (n_own / n_all)


def precision_of(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """Inside, forward passes run in the precision that a config asks for; leave it before the backward pass."""
    if config.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def training_loss(
    model: SparseTransformer, tokens: Int[Tensor, "batch pos"], label_smoothing: float, balance: float = 0.0
) -> Float[Tensor, ""]:
    """What a step descends: the model's own loss, its targets smoothed and its experts balanced where asked for."""
    if balance == 0 or model.config.experts == 0:
        return _own_loss(model, tokens, label_smoothing)
    with router_logits(model) as logits:
        own = _own_loss(model, tokens, label_smoothing)
    uneven = [balance_loss(kept, model.config.experts_active) for kept in logits.values()]
    return own + balance * torch.stack(uneven).mean()


def _own_loss(
    model: SparseTransformer, tokens: Int[Tensor, "batch pos"], label_smoothing: float
) -> Float[Tensor, ""]:
    if label_smoothing == 0:
        loss: Tensor = model(tokens, return_type="loss")
        return loss
    config = model.config
    return next_token_loss(
        model(tokens), tokens, n_source=config.n_source, pad=config.pad, label_smoothing=label_smoothing
    )


def validation_loss(model: SparseTransformer, tokens: Tensor) -> float:
    """Mean next-token loss in nats over all given sequences [batch, pos]."""
    with torch.no_grad():
        losses = [float(model(chunk, return_type="loss")) * len(chunk) for chunk in tokens.split(64)]
    return sum(losses) / len(tokens)


def nmse(prediction: Float[Tensor, "*batch d"], target: Float[Tensor, "*batch d"]) -> Float[Tensor, ""]:
    """`||prediction - target||^2 / ||target - mean(target)||^2`, the mean over all but the last axis.

    0: exact; 1: no better than the mean. Source: Gao et al. 2025 (arXiv 2511.13653), bridges.
    """
    target = wide(target)
    spread = (target - target.flatten(0, -2).mean(dim=0)).square().sum()
    return (prediction - target).square().sum() / spread.clamp_min(1e-12)


def kl_per_token(
    reference: Float[Tensor, "batch pos d_vocab"], logits: Float[Tensor, "batch pos d_vocab"]
) -> Float[Tensor, ""]:
    """KL(reference || other) between next-token distributions, in nats, averaged over tokens."""
    p, q = reference.flatten(0, 1).log_softmax(-1), logits.flatten(0, 1).log_softmax(-1)
    return F.kl_div(q, p, reduction="batchmean", log_target=True)


def said_of(module: nn.Module) -> str:
    """What is wrong with the weights of a model, in words."""
    sizes = {name: float(p.detach().abs().max()) for name, p in module.named_parameters() if p.numel()}
    bad = [name for name, size in sizes.items() if not math.isfinite(size)]
    if bad:
        return f"{bad[0]} holds NaN or infinity"
    largest = max(sizes, key=lambda name: sizes[name])
    return f"weights are finite, the largest, of {largest}, is {sizes[largest]:.3g}"
