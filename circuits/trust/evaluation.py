"""One call that runs every check and returns a report."""

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import check_belongs
from circuits.circuit.score import check_task, task_score
from circuits.files import check_keys
from circuits.model.compute import frozen
from circuits.model.transformer import SparseTransformer
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.trust import checks, yardsticks
from circuits.trust.bench import Bench
from circuits.trust.controls import control_entries, overlap_entry
from circuits.trust.report import Entry, Report
from tasks import Batch, Corpus, Task


@dataclass(frozen=True, kw_only=True)
class TrustConfig:
    """How much an evaluation looks at."""

    n_pairs: int = 64
    "Prompt pairs, of the test split, that every check runs on."
    n_random: int = 20
    "Random circuits, and random nodes, that the circuit is compared with; 19 is the least for p < 0.05."
    n_knockouts: int = 16
    "Random knockouts for completeness."
    n_greedy: int = 3
    "Steps of the search for the worst knockout."
    control_steps: int = 100
    "Steps of gate training for each nonsense control; 0 leaves the controls out."
    control_lr: float = 1e-2
    "Peak learning rate of that training."
    prune_seeds: int = 0
    "Further pruning runs whose circuits are compared with this one (minutes each at the default settings)."
    target_loss: float | None = None
    "Task loss asked of the circuit, in nats; None: that of its pruning run, or 0.15."
    seed: int = 0
    "Decides prompts and random draws."

    def __post_init__(self) -> None:
        for name in ("n_pairs", "n_random", "n_knockouts"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}; expected a whole number of at least 1."
                )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "TrustConfig":
        """The inverse of `to_json`. Raises ValueError on an unknown key."""
        return cls(**check_keys(cls, data))


def evaluate(
    model: SparseTransformer,
    circuit: Circuit,
    task: Task,
    config: TrustConfig | None = None,
    *,
    others: Sequence[Circuit] = (),
    corpus: Corpus | None = None,
) -> Report:
    """Whether the circuit is what the model uses for the task: every check, one entry each.

    others: circuits of the same model and task from other pruning seeds, for the overlap; corpus: training
    text for `config.prune_seeds` further pruning runs. Raises ValueError, before any long run, when the circuit
    is empty or of another model, or when the model cannot do the task.
    """
    config = config or TrustConfig()
    started = time.perf_counter()
    target = float(config.target_loss or circuit.metrics.get("target_loss", 0.15))
    batch = task.batch(config.n_pairs, split="test", seed=config.seed)
    _check(model, circuit, task, batch, target)
    with frozen(model):
        found = [*others, *(_pruned(model, circuit, task, i, corpus) for i in range(config.prune_seeds))]
        entries = _entries(model, circuit, task, config, batch, target, found)
    return Report(
        task=task.name,
        model_hash=circuit.model_hash,
        n_nodes=circuit.n_nodes,
        n_edges=circuit.n_edges,
        entries=tuple(entries),
        seconds=time.perf_counter() - started,
    )


def _entries(
    model: SparseTransformer,
    circuit: Circuit,
    task: Task,
    config: TrustConfig,
    batch: Batch,
    target: float,
    found: Sequence[Circuit],
) -> list[Entry]:
    bench, rng = Bench(model, circuit, batch), random.Random(config.seed)
    entries: list[Entry] = [
        checks.sufficiency(bench, target),
        checks.necessity(bench, rng, config.n_random),
        *checks.agreement(bench),
        *checks.completeness(bench, rng, config.n_knockouts, config.n_greedy),
        checks.interchange(bench),
        checks.minimality(_proof_bench(model, circuit, task, bench), target),
        checks.random_circuits(bench, rng, config.n_random, target),
    ]
    if config.control_steps:
        entries += control_entries(
            model, circuit, task, steps=config.control_steps, lr=config.control_lr, seed=config.seed
        )
    return [
        *entries,
        overlap_entry(circuit, found),
        *yardsticks.cpr_and_cmd(bench, rng),
        yardsticks.equivalence(bench),
        yardsticks.independence(bench, rng),
        yardsticks.minimality_test(bench, rng, config.n_random),
    ]


def _check(model: SparseTransformer, circuit: Circuit, task: Task, batch: Batch, target: float) -> None:
    check_belongs(model, circuit)
    check_task(model, task)
    if not circuit.nodes:
        raise ValueError("circuit: it has no nodes; expected at least one. Prune with a lower target_loss.")
    full = task_score(model, batch)
    if full.loss > target:
        raise ValueError(
            f"task: the whole model's loss on {task.name!r} is {full.loss:.3f} nats (accuracy "
            f"{full.accuracy:.3f}), above the target of {target:g}; expected a task that the model can do. Is it "
            f"the task of the circuit, {circuit.task!r}?"
        )


def _proof_bench(model: SparseTransformer, circuit: Circuit, task: Task, bench: Bench) -> Bench:
    """The prompts that pruning decided by, where the circuit tells; minimality is a claim about those."""
    pruned = circuit.metrics.get("prune")
    if not pruned:
        return bench
    return Bench(model, circuit, task.batch(pruned["n_eval"], split="val", seed=pruned["seed"]))


def _pruned(
    model: SparseTransformer, circuit: Circuit, task: Task, number: int, corpus: Corpus | None
) -> Circuit:
    settings = dict(circuit.metrics.get("prune", {}))
    seed = int(settings.get("seed", 0)) + 1 + number
    return prune(
        model, task, PruneConfig.from_json({**settings, "seed": seed}), corpus=corpus, progress=False
    )
