"""How well logits solve a task, or agree with the model's, all of it between the answer and its foil."""

import math
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from circuits.model.subject import SparseSubject, Subject
from circuits.settings import Said, check_kind
from circuits.statistics import share_of
from tasks import Batch, Task
from tasks.base import Targets
from tasks.tokenizer_files import check_same_tokenizer

Objective = Annotated[Literal["margins", "task", "faithful"], Said("'margins', 'task' or 'faithful'")]
"""margins: the model's margins, their sizes with their signs. task: the right answers. faithful: the model's answers,
as sure as it is of each, right or wrong."""
TARGETS = {"margins": 0.04, "task": 0.15, "faithful": 0.15}
"""What a loss may be by default: a share of the mean square of the model's margins (its root, 0.2, bounds the error of
their mean), or nats."""
ORDER = 0.8
"""Correlation with the model's margins within an answer from which on a circuit orders prompts as the model does."""
LOSS = {
    "margins": "mean square error of the margins over their mean square",
    "task": "task loss",
    "faithful": "KL from the model's answer-or-foil distribution",
}
"""What a loss is, in words."""
UNIT = {"margins": "", "task": "nats", "faithful": "nats"}
"""Its unit; empty for a share."""
_LEAST_ROWS = 8
"""Prompts of an answer below which their order says nothing."""
_LARGEST = math.log(10)
"""Bound on the logarithm of the calibration: a circuit ten times too faint is no circuit."""


class Score(NamedTuple):
    """A task score; unpacks as (loss, accuracy)."""

    loss: float
    """That of the objective, over clean and corrupted prompts: of a task, two-way cross-entropy in nats (chance is
    log 2 = 0.693)."""
    accuracy: float
    """Fraction of prompts on which the answer (task), or what the model prefers (else), has the higher logit."""


class UnsolvedError(ValueError):
    """The whole model misses the targets of a task, so that no part of it could be asked to meet them."""

    def __init__(self, task: str, full: Score, target_loss: float, target_accuracy: float) -> None:
        super().__init__(
            f"task: the whole model's loss on {task!r} is {full.loss:.3f} nats (accuracy {full.accuracy:.3f}); "
            f"expected at most target_loss = {target_loss} and at least target_accuracy = {target_accuracy}. "
            'Train it longer, relax the targets, or ask for what the model does instead: objective="faithful".'
        )
        self.score = full


def margins(logits: Float[Tensor, "rows pos d_vocab"], targets: Targets) -> Float[Tensor, " rows"]:
    """Logit of the answer minus logit of the foil, at each prompt's last token.

    Examples:
        >>> found = circuits.load("quotes-128")
        >>> targets = found.task.batch(4, split="test", seed=0).tokens_and_targets()
        >>> circuits.circuit.margins(found.model(targets.tokens), targets) > 0
        tensor([True, True, True, True, True, True, True, True])
    """
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


def margin_error(
    margin: Float[Tensor, " rows"], reference: Float[Tensor, " rows"], power: float | None = None
) -> Float[Tensor, ""]:
    """Mean square error of the margins over the mean square of the reference; 0: the same, 1: as bad as none.

    power: that mean square where it is known from more rows than these.
    """
    own = reference.square().mean() if power is None else power
    return (margin - reference).square().mean() / own


def loss_against(
    objective: Objective,
    margin: Float[Tensor, " rows"],
    reference: Float[Tensor, " rows"],
    power: float | None = None,
) -> Float[Tensor, ""]:
    """The loss of an objective, differentiable: of margins, given those of the model on the same prompts."""
    if objective == "margins":
        return margin_error(margin, reference, power)
    return two_way_kl(margin, reference if objective == "faithful" else None)


def score_against(
    margin: Float[Tensor, " rows"],
    reference: Float[Tensor, " rows"],
    objective: Objective = "faithful",
    power: float | None = None,
) -> Score:
    """The loss of an objective, and the share of rows in which margin and reference prefer the same token."""
    _check_finite("margin", margin)
    _check_finite("reference", reference)
    same = (margin > 0) == (reference > 0)
    loss = float(loss_against(objective, margin, reference, power))
    return Score(max(0.0, loss), float(same.float().mean()))


def margin_ratio(margin: Float[Tensor, " rows"], reference: Float[Tensor, " rows"]) -> float:
    """Mean margin over that of the reference; nan for a reference that prefers nothing on average."""
    share = share_of(float(margin.mean()), float(reference.mean()))
    return math.nan if share is None else share


def margin_correlation(
    margin: Float[Tensor, " rows"], reference: Float[Tensor, " rows"], answer: Int64[Tensor, " rows"]
) -> float:
    """Pearson's correlation with the reference among prompts of one answer: of what is left of both when each answer's
    own mean is taken off, over all prompts at once; 0 where `margin` is constant within answers.

    nan where the reference varies within answers by less than a tenth of its size: there is no order to have.
    """
    ours, theirs = (_within(x.double(), answer) for x in (margin, reference))
    if float(theirs.square().mean()) < 0.01 * float(reference.double().square().mean()):
        return math.nan
    if float(ours.square().mean()) < 1e-12:
        return 0.0
    return float((ours * theirs).mean() / (ours.square().mean() * theirs.square().mean()).sqrt())


def disorder(
    margin: Float[Tensor, " rows"], reference: Float[Tensor, " rows"], answer: Int64[Tensor, " rows"]
) -> Float[Tensor, ""]:
    """1 - that correlation, differentiable; 1 where `margin` is constant within answers.

    Where it varies by less than a tenth of what the reference does, as if by a tenth: slopes stay in bounds.
    """
    ours, theirs = (_within(x, answer) for x in (margin, reference))
    power = theirs.square().mean().clamp_min(1e-12)
    spread = ours.square().mean().clamp_min(0.01 * power)
    return 1 - (ours * theirs).mean() / (spread * power).sqrt()


def _within(x: Tensor, group: Int64[Tensor, " rows"]) -> Tensor:
    """What is left of each row when the mean of its group is taken off."""
    _, own = group.unique(return_inverse=True)
    n = torch.zeros(int(own.max()) + 1, dtype=x.dtype, device=x.device)
    total = n.index_add(0, own, x)
    return x - (total / n.index_add(0, own, torch.ones_like(x)))[own]


def margin_correlations(
    margin: Float[Tensor, " rows"], reference: Float[Tensor, " rows"], answer: Int64[Tensor, " rows"]
) -> dict[int, float]:
    """Pearson's correlation with the reference among prompts of one answer, by answer; 0 where `margin` is constant.

    Answers of fewer than 8 prompts are left out, and those where the reference varies by less than a tenth of its
    size: there is no order to have.
    """
    found = {}
    size = float(reference.double().square().mean().sqrt())
    for token in answer.unique().tolist():
        rows = answer == token
        if int(rows.sum()) < _LEAST_ROWS or float(reference[rows].double().std()) < 0.1 * size:
            continue
        pair = torch.stack([margin[rows], reference[rows]]).double()
        varies = bool((pair.std(dim=1) > 1e-6).all())
        found[token] = float(torch.corrcoef(pair)[0, 1]) if varies else 0.0
    return found


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
    check_kind("batch", batch, Batch, 'Draw one: task.batch(64, split="test", seed=0).')
    targets = batch.tokens_and_targets()
    with torch.inference_mode(False), torch.no_grad():
        return margins(model(targets.tokens), targets)


def task_score(model: Subject, batch: Batch) -> Score:
    """Loss and accuracy of the whole model on a batch of prompt pairs.

    Examples:
        >>> found = circuits.load("quotes-128")
        >>> loss, accuracy = circuits.task_score(found.model, found.task.batch(64, split="test", seed=0))
        >>> loss < 0.05, accuracy
        (True, 1.0)
    """
    return score_margins(task_margins(model, batch))


def check_task(model: Subject, task: Task) -> None:
    """Raise ValueError when the task's tokens or prompts do not fit the model, or where it is no task."""
    named = f", {task!r}" if isinstance(task, str) else ", name"
    check_kind("task", task, Task, f"Make it: tasks.load_task_for(model.tokenizer{named}).")
    # The vocabulary of wrapped models is often filled up with logits that stand for no token.
    filled_up = not isinstance(model, SparseSubject) and task.tokenizer.d_vocab < model.d_vocab
    if task.tokenizer.d_vocab != model.d_vocab and not filled_up:
        raise ValueError(
            f"task: {task.name!r} has a vocabulary of {task.tokenizer.d_vocab} tokens, the model one of "
            f"{model.d_vocab}; expected the same. Train the model on the task's corpus."
        )
    check_same_tokenizer(
        model.tokenizer,
        task.tokenizer,
        name="task",
        got=f"{task.name!r}",
        expected="one in the model's tokens",
        do="Make it for the model: tasks.load_task_for(model.tokenizer, name).",
    )
    if task.n_ctx > model.n_ctx:
        raise ValueError(
            f"task: the longest prompt of {task.name!r} has {task.n_ctx} tokens; expected at most the model's "
            f"n_ctx = {model.n_ctx}. Use shorter prompts or a model with a larger n_ctx."
        )
