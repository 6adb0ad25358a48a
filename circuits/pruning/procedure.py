"""Pruning: from a model and a task to the smallest circuit that still solves the task.

1. Learn gates on all coordinates of all sites: task loss + penalty * number of open gates. Along the way that
   they close, take the smallest open set that meets the target.
2. Rank it by gate (ties, by measured importance) and drop groups of the lowest rank, halving their size.
3. Drop nodes, then edges, while the rest meets the target, until no single one can go (1-minimal); then two nodes of a
   site that can go together, as two that cancel. Where edges are many, gates are learned on them first.
4. Do so from several starts, and keep the smallest circuit.
Gates learn on training prompts; steps 2 and 3 look at validation prompts; the reported score is on test prompts.
"""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from circuits.circuit.circuit import Circuit
from circuits.circuit.nodes import Node
from circuits.circuit.score import check_task
from circuits.kernels import keep_pages
from circuits.model.compute import resting, threads_for, with_gradients
from circuits.model.kinds import of_subjects
from circuits.model.subject import Subject
from circuits.model.text import check_corpus, text_of
from circuits.model.transformer import SparseTransformer
from circuits.progress import progress_bar
from circuits.pruning.config import PruneConfig
from circuits.pruning.search import Search
from circuits.settings import check_config
from circuits.signals import heeding_interrupts
from tasks import Corpus, Task

__all__ = ["PruneConfig", "prune"]


@of_subjects
@with_gradients
def prune(
    model: Subject,
    task: Task,
    config: PruneConfig | None = None,
    *,
    corpus: Corpus | None = None,
    search: int | None = None,
    without: Collection[Node] = (),
    progress: bool = True,
) -> Circuit:
    """The smallest circuit found that solves `task` within `config.target_loss`; 1-minimal in nodes and edges.

    model: ours, or a wrapped one as a LensSubject, whose circuit is of nodes alone, at the sites that the subject was
    given. corpus: the training text for the ablation means (default: the model's own, which it knows by name and hash;
    of a wrapped model, clean prompts of the task). search: this many runs with other learning rates and penalties,
    found by Optuna, in place of `config.starts`. without: nodes that the circuit may not have. Raises ValueError when
    task or text do not fit the model, or its own text is not found, UnsolvedError (a ValueError) when the whole model
    misses the targets, and NoCircuitError (another) when everything but the nodes in `without` does.
    From here on the process's allocator keeps freed pages (`circuits.kernels.keep_pages`).

    Examples:
        >>> found = circuits.load("quotes-handmade")
        >>> quick = circuits.PruneConfig(starts=1, steps=60, n_eval=32, n_test=32)
        >>> circuit = circuits.prune(found.model, found.task, quick, corpus=found.corpus, progress=False)
        >>> circuit.n_nodes, circuit.metrics["one_minimal"]
        (8, True)
    """
    keep_pages()
    config = config or PruneConfig()
    check_config(config, PruneConfig)
    check_task(model, task)
    if corpus is None and isinstance(model, SparseTransformer):
        corpus = text_of(model)
    if corpus is not None:
        check_corpus(model, corpus, task)
    if search is not None:
        from circuits.pruning.tune import tune

        return tune(
            lambda tried: prune(model, task, tried, corpus=corpus, without=without, progress=progress),
            config,
            search,
        )
    started = time.perf_counter()
    n_tokens = 2 * config.batch_size * task.n_ctx
    with (
        resting(model),
        threads_for(model, n_tokens),
        heeding_interrupts() as heed,
        _bar(progress) as bar,
    ):

        def show(*args: Any, **fields: Any) -> None:
            heed()
            bar(*args, **fields)

        hunt = Search(model, task, config, corpus, without)
        circuit = hunt.circuit(*hunt.best(show))
    return circuit.with_metrics(seconds=time.perf_counter() - started)


@contextmanager
def _bar(shown: bool) -> Iterator[Callable[..., None]]:
    """A bar; yields the function that takes `completed` and what there is new to say."""
    said: dict[str, Any] = {"stage": "gates", "nodes": "-", "edges": "-", "loss": float("nan")}
    with progress_bar("prune", shown=shown) as show:

        def update(completed: float | None = None, **news: Any) -> None:
            said.update(news)
            show(completed, "{stage:<10}  nodes {nodes}  edges {edges}  loss {loss:.3f}".format(**said))

        yield update
