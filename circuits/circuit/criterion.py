"""What a circuit must do, on which prompts: the one thing that pruning and trust both judge by."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from circuits.circuit.nodes import Ablation
from circuits.circuit.score import TARGETS, UNIT, Objective
from circuits.settings import Fraction, Positive, Prompts, Seed, Settings
from tasks import Task, load_task_for, task_options

AIM = 0.75
"""Share of what the targets of margins allow that a choice among thousands of circuits must keep to."""


@dataclass(frozen=True, kw_only=True)
class Criterion(Settings):
    """What is asked of a circuit, complete: with the model and the task, it says for any part whether that will do."""

    task: str
    "Name of the task."
    task_options: Mapping[str, Any] | None = field(default_factory=dict)
    "With which `load_task` makes the task; None: it cannot, the task is one of your own."
    objective: Objective = "margins"
    "What is compared: the model's margins with their sizes, the right answers, or how sure the model is of its own."
    target_loss: Positive | None = None
    "What the objective's loss may be; None: `circuits.circuit.score.TARGETS`."
    target_accuracy: Fraction = 0.985
    "Fraction of prompts, at least, on which the circuit prefers what the model prefers (task: what is right)."
    target_order: Fraction = 0.0
    "Margins only. Correlation with the model's margins among prompts of one answer, at least; 0: not asked for."
    calibrate: bool = True
    "Task only. Take logits times one factor fitted on the prompts that decide: right margins of the wrong size."
    ablation: Ablation = "mean"
    "What is outside the circuit is replaced by."
    n_eval: Prompts = 256
    "Validation prompt pairs that decide."
    n_test: Prompts = 1024
    "Test prompt pairs that the score is reported on."
    seed: Seed = 0
    "Decides the prompts."

    @classmethod
    def of(cls, task: Task, **changes: Any) -> "Criterion":
        """The criterion for a task, with all its options."""
        return cls(task=task.name, task_options=task_options(task), **changes)

    @property
    def target(self) -> float:
        """What the loss may be at most: a share of the mean square of the model's margins, or nats."""
        return TARGETS[self.objective] if self.target_loss is None else self.target_loss

    @property
    def aim(self) -> float:
        """What pruning must reach on the prompts that it chooses by: errors of margins are greater on others."""
        return AIM * self.target if self.objective == "margins" else self.target

    @property
    def aim_order(self) -> float:
        """What pruning must reach of the correlation on those prompts; 0 where it is not asked for."""
        asked = self.target_order if self.objective == "margins" else 0.0
        return 1 - AIM * (1 - asked) if asked else 0.0

    @property
    def unit(self) -> str:
        """That of the loss, with a space before it; empty for a share."""
        return f" {UNIT[self.objective]}".rstrip()

    @property
    def task_loss_said(self) -> str:
        """What `task_loss` of a circuit's metrics is, in words."""
        return "calibrated task loss" if self.calibrated else "task loss"

    @property
    def calibrated(self) -> bool:
        """Whether a factor is fitted: where right answers decide, and it is asked for."""
        return self.calibrate and self.objective == "task"

    def load_task(self, tokenizer: Any = None) -> Task:
        """The task with all its options, for a model with this tokenizer (see `tasks.load_task_for`).

        Raises ValueError for one that `tasks.load_task` does not make.
        """
        if self.task_options is None:
            raise ValueError(
                f"task: {self.task!r} is no task of the package, which could be made anew from its name; expected "
                "the Task itself. Pass it as task=."
            )
        return load_task_for(tokenizer, self.task, **self.task_options)

    def check(self, task: Task) -> None:
        """Raise ValueError when the criterion was set up for another task, or for other options of it."""
        asked = replace(self, task=task.name, task_options=task_options(task))
        if asked != self:
            raise ValueError(
                f"task: got {_said(asked)}, but the circuit is judged by {_said(self)}; expected that one. To judge it "
                "by another, give it a criterion of that: dataclasses.replace(circuit, criterion=Criterion.of(task))."
            )


def _said(criterion: Criterion) -> str:
    options = ", ".join(f"{name}={value!r}" for name, value in (criterion.task_options or {}).items())
    return f"{criterion.task}({options})"
