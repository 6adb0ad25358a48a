"""Where else a circuit holds: on other prompts of its task, longer ones or some with earlier lines that mislead."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from circuits.circuit.evaluator import Kept, MaskedModel
from circuits.circuit.nodes import Node
from circuits.circuit.score import margin_error, margin_ratio, score_margins
from circuits.model.sites import Site
from circuits.model.subject import Subject
from tasks import Task, other_prompts

N_PAIRS = 256
"""Prompt pairs of each kind."""


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


def scope(
    model: Subject,
    values: dict[Site, Tensor],
    nodes: Iterable[Node],
    edges: Kept,
    task: Task,
    *,
    seed: int = 0,
) -> dict[str, Holds]:
    """For each other kind of prompts of the task that fits the model's context, how well these parts do there."""
    nodes = list(nodes)
    found = {}
    for name, other in other_prompts(task).items():
        if other.n_ctx <= model.n_ctx:
            runs = MaskedModel(model, values, other.batch(N_PAIRS, split="test", seed=seed))
            margin, full = runs.margins(nodes, edges), runs.full_margins
            found[name] = Holds(
                score_margins(margin).accuracy,
                score_margins(full).accuracy,
                float(margin_error(margin, full)),
                margin_ratio(margin, full),
            )
    return found
