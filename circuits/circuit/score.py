"""How well logits solve a task: two-way cross-entropy and accuracy between the answer and its foil."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from circuits.model.subject import Subject
from tasks import Batch, Task
from tasks.base import Targets

_LARGEST = math.log(10)
"""Bound on the logarithm of the calibration: a circuit ten times too faint is no circuit."""


class Score(NamedTuple):
    """A task score; unpacks as (loss, accuracy)."""

    loss: float
    """Mean two-way cross-entropy in nats over clean and corrupted prompts; chance is log 2 = 0.693."""
    accuracy: float
    """Fraction of prompts whose answer has a higher logit than its foil."""


class UnsolvedError(ValueError):
    """The whole model misses the targets of a task, so that no part of it could be asked to meet them."""

    def __init__(self, task: str, full: Score, target_loss: float, target_accuracy: float) -> None:
        super().__init__(
            f"task: the whole model's loss on {task!r} is {full.loss:.3f} nats (accuracy {full.accuracy:.3f}); "
            f"expected at most target_loss = {target_loss} and at least target_accuracy = {target_accuracy}. "
            "Train it longer, or relax the targets."
        )
        self.score = full


def margins(logits: Float[Tensor, "rows pos d_vocab"], targets: Targets) -> Float[Tensor, " rows"]:
    """Logit of the answer minus logit of the foil, at each prompt's last token."""
    return margin_of(logits[torch.arange(len(logits)), targets.position], targets)


def margin_of(logits: Float[Tensor, "rows d_vocab"], targets: Targets) -> Float[Tensor, " rows"]:
    """Logit of the answer minus logit of the foil, from logits at each prompt's last token.

    Every score is made of these. Raises ValueError where one is NaN or infinite, which no comparison would notice.
    """
    pair = logits.gather(1, torch.stack([targets.answer, targets.foil], dim=1))
    margin = pair[:, 0] - pair[:, 1]
    _check_finite("model", margin)
    return margin


def two_way_loss(margin: Float[Tensor, " rows"]) -> Float[Tensor, ""]:
    """Mean cross-entropy between answer and foil, in nats: softplus(-margin)."""
    return F.softplus(-margin).mean()


def two_way_kl(margin: Float[Tensor, " rows"], reference: Float[Tensor, " rows"] | None) -> Float[Tensor, ""]:
    """Mean KL in nats from the answer-or-foil distribution with margins `reference` to that with `margin`.

    Without a reference the answer is certain, and the KL is the two-way task loss.
    """
    if reference is None:
        return two_way_loss(margin)
    p = reference.sigmoid()
    cross = p * F.softplus(-margin) + (1 - p) * F.softplus(margin)
    entropy = p * F.softplus(-reference) + (1 - p) * F.softplus(reference)
    return (cross - entropy).mean()


def score_against(margin: Float[Tensor, " rows"], reference: Float[Tensor, " rows"]) -> Score:
    """KL from the reference in nats, and the share of rows in which both prefer the same token."""
    _check_finite("margin", margin)
    _check_finite("reference", reference)
    same = (margin > 0) == (reference > 0)
    return Score(max(0.0, float(two_way_kl(margin, reference))), float(same.float().mean()))


def score_margins(margin: Float[Tensor, " rows"]) -> Score:
    """Loss and accuracy as plain numbers."""
    _check_finite("margin", margin)
    return Score(float(two_way_loss(margin)), float((margin > 0).float().mean()))


def fitted_scale(margin: Float[Tensor, " rows"]) -> float:
    """The factor on the logits, in [0.1, 10], that makes the two-way loss least: logit calibration.

    A circuit that holds the right margins at the wrong size differs from one that is wrong; one scalar tells
    them apart. (A shift would cancel in the softmax.) The loss is convex in the factor: Newton on its logarithm.
    """
    _check_finite("margin", margin)
    values = margin.detach().double()
    log_scale = torch.zeros((), dtype=torch.float64)
    for _ in range(50):
        scaled = values * log_scale.exp()
        wrong = torch.sigmoid(-scaled)
        slope = -(wrong * scaled).mean()
        curvature = (wrong * (1 - wrong) * scaled.square() - wrong * scaled).mean()
        step = slope / curvature if curvature > 1e-12 else slope.sign()
        log_scale = (log_scale - step.clamp(-1, 1)).clamp(-_LARGEST, _LARGEST)
    return float(log_scale.exp())


def _check_finite(name: str, margin: Float[Tensor, " rows"]) -> None:
    bad = ~margin.detach().isfinite()
    if bool(bad.any()):
        raise ValueError(
            f"{name}: the logits of answer and foil differ by NaN or infinity on {int(bad.sum())} of {len(margin)} "
            "prompts; expected finite numbers. Look for NaN among the weights and in what replaces activations."
        )


def task_margins(model: Subject, batch: Batch) -> Float[Tensor, " rows"]:
    """Margins of the whole model on a batch of prompt pairs, clean prompts first."""
    targets = batch.tokens_and_targets()
    with torch.inference_mode(False), torch.no_grad():
        return margins(model(targets.tokens), targets)


def task_score(model: Subject, batch: Batch) -> Score:
    """Loss and accuracy of the whole model on a batch of prompt pairs."""
    return score_margins(task_margins(model, batch))


def check_task(model: Subject, task: Task) -> None:
    """Raise ValueError when the task's tokens or prompts do not fit the model."""
    if task.tokenizer.d_vocab != model.d_vocab:
        raise ValueError(
            f"task: {task.name!r} has a vocabulary of {task.tokenizer.d_vocab} tokens, the model one of "
            f"{model.d_vocab}; expected the same. Train the model on the task's corpus."
        )
    if task.n_ctx > model.n_ctx:
        raise ValueError(
            f"task: the longest prompt of {task.name!r} has {task.n_ctx} tokens; expected at most the model's "
            f"n_ctx = {model.n_ctx}. Use shorter prompts or a model with a larger n_ctx."
        )
