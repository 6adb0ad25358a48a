"""A search over what gate training is most sensitive to, its learning rate and penalty, with Optuna."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from circuits.circuit.circuit import Circuit
from circuits.pruning.config import PruneConfig
from circuits.settings import checked

LR, PENALTY = (5e-3, 1e-1), (1e-3, 1e-1)
"""Ranges that are searched, by their logarithms."""


def tune(run: Callable[[PruneConfig], Circuit], config: PruneConfig, n_runs: int) -> Circuit:
    """The circuit with the fewest nodes and edges out of `n_runs` pruning runs; the first is `config` itself.

    Each run is one start. What was tried is in the circuit's metrics under `search`. The same config gives the
    same circuit. Raises ValueError for fewer than one run, and where Optuna is not installed.
    """
    n_runs = checked("search", n_runs, int)
    if n_runs < 1:
        raise ValueError(f"search: got {n_runs}; expected at least 1 pruning run, or None for no search.")
    optuna = _optuna()
    tried: list[dict[str, float]] = []
    best: list[Circuit] = []

    def size(trial: Any) -> int:
        lr = trial.suggest_float("lr", *LR, log=True)
        penalty = trial.suggest_float("penalty", *PENALTY, log=True)
        circuit = run(replace(config, lr=lr, penalty=penalty, starts=1))
        total = circuit.n_nodes + circuit.n_edges
        tried.append({"lr": lr, "penalty": penalty, "n_nodes": circuit.n_nodes, "n_edges": circuit.n_edges})
        if not best or total < best[0].n_nodes + best[0].n_edges:
            best[:] = [circuit]
        return total

    with _quiet(optuna):
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=config.seed))
        study.enqueue_trial({"lr": config.lr, "penalty": config.penalty})
        study.optimize(size, n_trials=n_runs)
    return best[0].with_metrics(search=tried)


def _optuna() -> Any:
    """The library, which is not among those that every installation has."""
    try:
        import optuna
    except ImportError:
        raise ValueError(
            'search: it needs Optuna, which is not installed; run `pip install "sparse-circuits[search]"`, or leave '
            "search out for PruneConfig's own learning rate and penalty."
        ) from None
    return optuna


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Optuna says nothing of its own; restored afterwards."""
    before = optuna.logging.get_verbosity()
    try:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        yield
    finally:
        optuna.logging.set_verbosity(before)
