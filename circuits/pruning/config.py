"""What decides a pruning run."""

from dataclasses import dataclass, fields
from typing import Literal

from circuits.circuit.criterion import Criterion
from circuits.circuit.nodes import Ablation
from circuits.circuit.score import Objective
from circuits.settings import Amount, Count, Decay, Fraction, Positive, Prompts, Seed, Settings, Whole
from tasks import Task


@dataclass(frozen=True, kw_only=True)
class PruneConfig(Settings):
    """Everything that decides a pruning run."""

    objective: Objective = "margins"
    """margins: have the model's margins, their sizes with their signs, on clean and corrupted prompts. task: give the
    right answers (the published objective). faithful: give the model's, as sure as it is of each, right or wrong."""
    target_loss: Positive | None = None
    """At most, of the mean square error of the margins over their mean square (None: 0.04), of two-way task loss in
    nats (chance is 0.693; None: 0.15), or of KL in nats from the model's answer-or-foil distribution (None: 0.15)."""
    target_accuracy: Fraction = 0.985
    "Fraction of prompts, at least, on which the circuit prefers what the model prefers (task: what is right)."
    target_order: Fraction = 0.0
    """Margins only. Correlation with the model's margins among prompts of one answer, at least: a circuit then says
    where the model is surer. Trust asks for 0.8; pruning for it can take several times as long, and as many nodes."""
    starts: Count = 2
    "Independent runs of gate training and dropping, from other random gates and prompts; the smallest result wins."
    steps: Count = 150
    "Steps of gate training in each."
    batch_size: Count = 64
    "Prompt pairs per step."
    prompts: Literal["both", "either"] = "both"
    """Of each pair in a step: both prompts, or one of the two, drawn anew each time, for half the time and memory."""
    lr: Positive = 3e-2
    "Peak learning rate of the gates; falls linearly to 0."
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    "AdamW's averaging constants."
    weight_decay: Amount = 1e-3
    "AdamW's weight decay."
    penalty: Amount = 1e-2
    "Nats of task loss that one open gate is worth; rises from 0 over the first half, so that gates close one by one."
    calibrate: bool = True
    "Task only. Score with the logits times one fitted factor: a circuit may hold the right margins at the wrong size."
    ablation: Ablation = "mean"
    "What a closed coordinate is replaced by; means are over training text, `mean` over batch and positions."
    n_mean: Count = 512
    "Sequences of training text that the means are taken over."
    n_eval: Prompts = 256
    "Validation prompt pairs that decide what is dropped."
    n_test: Prompts = 1024
    "Test prompt pairs that the final score is measured on."
    prune_edges: bool = True
    "Drop edges too; otherwise every nonzero weight between two kept nodes is an edge."
    edge_gates: Whole = 100
    "Learn gates on edges too where there are more of them than this; fewer are just dropped one by one."
    seed: Seed = 0
    "Decides gates and prompts."

    @classmethod
    def under(cls, criterion: Criterion) -> "PruneConfig":
        """The default settings, but for what a criterion says."""
        return cls(**{name: getattr(criterion, name) for name in _shared()})

    def criterion(self, task: Task) -> Criterion:
        """What these settings ask of a circuit for the task."""
        return Criterion.of(task, **{name: getattr(self, name) for name in _shared()})


def _shared() -> set[str]:
    """What both settings and a criterion say."""
    return {f.name for f in fields(Criterion)} & {f.name for f in fields(PruneConfig)}
