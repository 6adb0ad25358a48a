"""What decides a pruning run."""

from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from circuits.circuit.criterion import Criterion, Objective
from circuits.circuit.nodes import Ablation
from circuits.files import check_keys, require, with_tuples
from tasks import Task


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Everything that decides a pruning run."""

    objective: Objective = "task"
    "task: give the right answers. faithful: give the model's, right or wrong, on clean and corrupted prompts."
    target_loss: float = 0.15
    "Nats at most: of two-way task loss (chance is 0.693), or of KL from the model's answer-or-foil distribution."
    target_accuracy: float = 0.985
    "Fraction of prompts, at least, on which the circuit prefers what is right (faithful: what the model prefers)."
    starts: int = 4
    "Independent runs of gate training and dropping, from other random gates and prompts; the smallest result wins."
    steps: int = 150
    "Steps of gate training in each."
    batch_size: int = 64
    "Prompt pairs per step."
    lr: float = 3e-2
    "Peak learning rate of the gates; falls linearly to 0."
    betas: tuple[float, float] = (0.9, 0.95)
    "AdamW's averaging constants."
    weight_decay: float = 1e-3
    "AdamW's weight decay."
    penalty: float = 1e-2
    "Nats of task loss that one open gate is worth; rises from 0 over the first half, so that gates close one by one."
    calibrate: bool = True
    "Task only. Score with the logits times one fitted factor: a circuit may hold the right margins at the wrong size."
    ablation: Ablation = "mean"
    "What a closed coordinate is replaced by; means are over training text, `mean` over batch and positions."
    n_mean: int = 512
    "Sequences of training text that the means are taken over."
    n_eval: int = 512
    "Validation prompt pairs that decide what is dropped."
    n_test: int = 1024
    "Test prompt pairs that the final score is measured on."
    prune_edges: bool = True
    "Drop edges too; otherwise every nonzero weight between two kept nodes is an edge."
    edge_gates: int = 100
    "Learn gates on edges too where there are more of them than this; fewer are just dropped one by one."
    seed: int = 0
    "Decides gates and prompts."

    def __post_init__(self) -> None:
        for name in ("starts", "steps", "batch_size", "n_mean", "n_eval", "n_test"):
            require(self, name, getattr(self, name) >= 1, "a whole number of at least 1")
        require(self, "objective", self.objective in get_args(Objective), "'task' or 'faithful'")
        for name in ("target_loss", "lr"):
            require(self, name, getattr(self, name) > 0, "a positive number")

    def criterion(self, task: Task) -> Criterion:
        """What these settings ask of a circuit for the task."""
        shared = {f.name for f in fields(Criterion)} & {f.name for f in fields(self)}
        return Criterion.of(task, **{name: getattr(self, name) for name in shared})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "PruneConfig":
        """The inverse of `to_json`. Raises ValueError on an unknown key."""
        return cls(**with_tuples(check_keys(cls, data), "betas"))
