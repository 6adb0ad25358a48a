"""Where else a circuit holds: on other prompts of its task, longer ones or some with earlier lines that mislead."""

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from circuits.circuit.evaluator import Kept, MaskedModel
from circuits.circuit.nodes import Node
from circuits.circuit.score import margin_error, margin_ratio, score_margins
from circuits.model.kinds import of_subjects
from circuits.model.sites import Site
from circuits.model.subject import Subject
from tasks import Batch, Task, other_prompts

N_PAIRS, LEAST = 256, 32
"""Prompt pairs of each kind that are drawn, and how many of them, at least, must fit the model."""


class Holds(NamedTuple):
    """How well parts of a model do on one kind of prompts, beside the whole model."""

    accuracy: float
    """Share of prompts that the parts answer rightly."""
    model_accuracy: float
    """Share that the whole model does."""
    margin_error: float
    """Mean square error of the margins over their mean square; 0: the model's, 1: as bad as none."""
    margin_ratio: float
    """Mean margin over the model's."""


@of_subjects
def scope(
    model: Subject,
    values: dict[Site, Tensor],
    nodes: Iterable[Node],
    edges: Kept,
    task: Task,
    *,
    seed: int = 0,
) -> dict[str, Holds]:
    """For each other kind of prompts of the task, how well these parts do on those that fit the model's context."""
    nodes = list(nodes)
    found = {}
    for name, other in other_prompts(task).items():
        batch = _short(other.batch(N_PAIRS, split="test", seed=seed), model.n_ctx)
        if batch is not None:
            runs = MaskedModel(model, values, batch)
            margin, full = runs.margins(nodes, edges), runs.full_margins
            found[name] = Holds(
                score_margins(margin).accuracy,
                score_margins(full).accuracy,
                float(margin_error(margin, full)),
                margin_ratio(margin, full),
            )
    return found


def _short(batch: Batch, n_ctx: int) -> Batch | None:
    """The pairs of at most that many tokens; None where they are too few to say anything."""
    fits = (batch.position < n_ctx).nonzero().flatten()
    if len(fits) < LEAST:
        return None
    kept = batch.rows(fits)
    return replace(kept, clean=kept.clean[:, :n_ctx], corrupt=kept.corrupt[:, :n_ctx])
