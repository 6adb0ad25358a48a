"""A search over what gate training is most sensitive to, its learning rate and penalty, with Optuna."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

try:
    import optuna
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("search needs Optuna; install sparse-circuits[search].") from error

from circuits.circuit.circuit import Circuit
from circuits.pruning.config import PruneConfig

LR, PENALTY = (5e-3, 1e-1), (1e-3, 1e-1)
"""Ranges that are searched, by their logarithms."""


def tune(run: Callable[[PruneConfig], Circuit], config: PruneConfig, n_runs: int) -> Circuit:
    """The circuit with the fewest nodes and edges out of `n_runs` pruning runs; the first is `config` itself.

    Each run is one start. What was tried is in the circuit's metrics under `search`. The same config gives the
    same circuit. Raises ValueError for fewer than one run.
    """
    if n_runs < 1:
        raise ValueError(f"search: got {n_runs}; expected at least 1 pruning run, or None for no search.")
    tried: list[dict[str, float]] = []
    best: list[Circuit] = []

    def size(trial: optuna.Trial) -> int:
        lr = trial.suggest_float("lr", *LR, log=True)
        penalty = trial.suggest_float("penalty", *PENALTY, log=True)
        circuit = run(replace(config, lr=lr, penalty=penalty, starts=1))
        total = circuit.n_nodes + circuit.n_edges
        tried.append({"lr": lr, "penalty": penalty, "n_nodes": circuit.n_nodes, "n_edges": circuit.n_edges})
        if not best or total < best[0].n_nodes + best[0].n_edges:
            best[:] = [circuit]
        return total

    with _quiet():
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=config.seed))
        study.enqueue_trial({"lr": config.lr, "penalty": config.penalty})
        study.optimize(size, n_trials=n_runs)
    return best[0].with_metrics(search=tried)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna says nothing of its own; restored afterwards."""
    before = optuna.logging.get_verbosity()
    try:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        yield
    finally:
        optuna.logging.set_verbosity(before)
