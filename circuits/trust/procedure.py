"""One call that runs every check on a circuit and returns a report."""

import random
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import check_belongs
from circuits.circuit.score import TARGETS, check_task, task_score
from circuits.model.compute import resting, threads_for, with_gradients
from circuits.model.kinds import of_subjects
from circuits.model.subject import Subject
from circuits.model.text import check_corpus
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.settings import check_config, check_kind
from circuits.trust import checks, controls, margins, yardsticks
from circuits.trust.config import TrustConfig
from circuits.trust.report import Entry, TrustReport
from circuits.trust.workbench import Bench, Check
from tasks import Corpus, Task

N_TEXTS = 256
"""Windows of training text that ablation values are taken anew from."""
CHECKS: tuple[Check, ...] = (
    checks.sufficiency,
    checks.right_answers,
    checks.necessity,
    checks.agreement,
    margins.margin_agreement,
    checks.completeness,
    checks.interchange,
    checks.minimality,
    checks.random_circuits,
    checks.under_attack,
    checks.held_values,
    controls.nonsense,
    controls.seed_overlap,
    yardsticks.cpr_and_cmd,
    yardsticks.equivalence,
    yardsticks.independence,
    yardsticks.minimality_test,
)
"""Every check, in the order in which a report is best read."""


@of_subjects
@with_gradients
def trust_report(
    model: Subject,
    circuit: Circuit,
    task: Task | None = None,
    config: TrustConfig | None = None,
    *,
    others: Sequence[Circuit] = (),
    corpus: Corpus | None = None,
    pruning: PruneConfig | None = None,
) -> TrustReport:
    """Whether the circuit is what the model uses for its task: every check, by the criterion it was pruned by.

    task: that of the circuit's criterion, which is made anew where none is given. others: circuits of the same model
    and task from other pruning seeds, for the overlap. corpus: the training text, by which ablation values are checked
    where it is given. corpus and pruning: text and settings for `config.prune_seeds` further pruning runs, under the
    same criterion. model: ours, or a wrapped one as a LensSubject with the circuit's sites; checks that are not defined
    for it say so, and are not run. Raises ValueError, before any long run, when the circuit is empty or of another
    model, when the task is not that of the circuit, or when the right answers are asked for and the model cannot give
    them.

    Examples:
        >>> found = circuits.load("quotes-handmade")
        >>> few = circuits.trust.TrustConfig(n_pairs=8, n_random=2, n_knockouts=2, n_greedy=1, control_steps=0)
        >>> report = circuits.trust.trust_report(found.model, found.circuit, config=few)
        >>> report["sufficiency"].verdict
        'pass'
    """
    config, started = config or TrustConfig(), time.perf_counter()
    check_config(config, TrustConfig)
    check_kind("circuit", circuit, Circuit, "Load one: circuits.Circuit.load(path).")
    task = task or circuit.criterion.load_task(model.tokenizer)
    _check(model, circuit, task, config)
    if corpus is not None:
        check_corpus(model, corpus, task)
    with resting(model), threads_for(model, 2 * config.n_pairs * task.n_ctx):
        found = [
            *others,
            *(_pruned(model, circuit, task, i, corpus, pruning) for i in range(config.prune_seeds)),
        ]
        text = _text(model, config, corpus)
        entries = run_checks(Bench(model, circuit, task, config, found, text=text))
    return TrustReport(
        task=task.name,
        model_hash=circuit.model_hash,
        n_nodes=circuit.n_nodes,
        n_edges=circuit.n_edges,
        entries=tuple(entries),
        seconds=time.perf_counter() - started,
    )


def _text(model: Subject, config: TrustConfig, corpus: Corpus | None) -> Int[Tensor, "windows pos"] | None:
    """Windows of training text, where it is given."""
    if corpus is None:
        return None
    generator = torch.Generator().manual_seed(config.seed)
    return corpus.windows(N_TEXTS, model.n_ctx, split="train", generator=generator).to(model.like.device)


@with_gradients
def run_checks(bench: Bench, checks: Sequence[Check] = CHECKS) -> list[Entry]:
    """The entries of all checks. Each has a stream of random numbers of its own: one more moves no other's numbers.

    Examples:
        >>> found = circuits.load("quotes-handmade")
        >>> few = circuits.trust.TrustConfig(n_pairs=8)
        >>> bench = circuits.trust.Bench(found.model, found.circuit, found.task, few)
        >>> [entry.verdict for entry in circuits.trust.run_checks(bench, circuits.trust.CHECKS[:1])]
        ['pass']
    """
    return [entry for check in checks for entry in check(bench, stream(bench.config.seed, check))]


def stream(seed: int, check: Check) -> random.Random:
    """The random numbers of one check, by its name."""
    return random.Random(f"{seed}/{check.__module__}.{check.__qualname__}")


def _check(model: Subject, circuit: Circuit, task: Task, config: TrustConfig) -> None:
    check_belongs(model, circuit)
    check_task(model, task)
    circuit.criterion.check(task)
    if not circuit.nodes:
        raise ValueError("circuit: it has no nodes; expected at least one. Prune with a lower target_loss.")
    if circuit.criterion.objective == "faithful":
        return  # such a circuit is one for what the model does, right or wrong
    asked = circuit.criterion
    target = TARGETS["task"] if asked.objective == "margins" else config.target_loss or asked.target
    full = task_score(model, task.batch(config.n_pairs, split="test", seed=config.seed))
    if full.loss > target:
        raise ValueError(
            f"task: the whole model's loss on {task.name!r} is {full.loss:.3f} nats (accuracy "
            f"{full.accuracy:.3f}), above the target of {target:g}; expected a task that the model can do. Raise "
            'target_loss, or prune with objective="faithful" for a circuit of what the model does instead.'
        )


def _pruned(
    model: Subject,
    circuit: Circuit,
    task: Task,
    number: int,
    corpus: Corpus | None,
    pruning: PruneConfig | None,
) -> Circuit:
    """Another run of pruning by the same criterion, from another seed."""
    asked = {k: v for k, v in circuit.criterion.to_json().items() if k not in ("task", "task_options")}
    config = replace(pruning or PruneConfig(), **{**asked, "seed": circuit.criterion.seed + 1 + number})
    return prune(model, task, config, corpus=corpus, progress=False)
