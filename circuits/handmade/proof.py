"""The proof on ground truth: every hand-made model pruned among many sets of decoys; `circuits verify` runs it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from circuits.files import mean, once, results_report, write_json
from circuits.handmade import HARD, METHODS, MODELS, Shared, build_hard, rank_metrics, recover
from circuits.pruning.config import PruneConfig
from tasks.near import unknown

EVERY = (*MODELS, *HARD)
"""Names of all hand-made models: islands, and those that are none."""
MISS = ("seed", "missing", "extra", "situation", "core_right", "second")
"""What is kept of a run that did not return the truth."""
RESULTS, KEPT = Path("docs/results/ground_truth.json"), Path("out/ground_truth")


def verify(
    seeds: int = 10,
    *,
    first: int = 0,
    models: Sequence[str] = EVERY,
    resume: bool = False,
    write: bool = False,
    log: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Prune every hand-made model under `seeds` sets of decoys, and rank its nodes by other methods.

    first: the first seed; the others follow it.
    Returns recovered, total, per_model and methods (means over the models); `write` keeps that in
    docs/results/ground_truth.json, anew after each seed. Each run is kept under out/ground_truth; `resume` takes
    what is there as done.
    Raises ValueError for an unknown model, fewer than one seed or a first one below 0.
    """
    for name in set(models) - set(EVERY):
        raise ValueError(unknown("models", name, EVERY))
    if seeds < 1:
        raise ValueError(f"seeds: got {seeds}; expected at least one seed.")
    if first < 0:
        raise ValueError(f"first: got {first}; expected a seed from 0 on.")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    for seed in range(first, first + seeds):
        for name in models:
            runs[name].append(_kept(name, seed, resume))
            log(_said(name, seed, runs[name][-1]))
        if write:
            write_json(RESULTS, _report(runs))
    return _report(runs)


def _report(runs: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    seeds = [run["seed"] for run in next(iter(runs.values()))]
    per_model = {name: _summary(own) for name, own in runs.items()}
    return results_report(
        command=f"circuits verify --seeds {len(seeds)} --first {seeds[0]} --write",
        seeds=seeds,
        seconds=sum(run["seconds"] for own in runs.values() for run in own),
        numbers={
            "recovered": sum(entry["recovered"] for entry in per_model.values()),
            "total": len(seeds) * len(per_model),
            "per_model": per_model,
            "methods": _averaged([entry["methods"] for entry in per_model.values()]),
        },
    )


def _kept(name: str, seed: int, resume: bool) -> dict[str, Any]:
    path = KEPT / f"{name}-{seed}.json"
    if not resume:
        path.unlink(missing_ok=True)
    return once(path, PruneConfig(seed=seed).to_json(), partial(_one, name, seed))


def _one(name: str, seed: int) -> dict[str, Any]:
    """One model with one set of decoys: what pruning returned, and how well every method ranks."""
    made = MODELS[name](seed) if name in MODELS else build_hard(name, seed)
    found = recover(made, seed)
    circuit = made.circuit
    missing, extra = (sum(">" not in part for part in parts) for parts in (found.missing, found.extra))
    hits = circuit.n_nodes - missing
    # A set has no ranking, and so no AUROC.
    pruning = {"precision": hits / max(1, hits + extra), "recall": hits / circuit.n_nodes}
    ranked = {method: rank_metrics(rank(made.model, made.task), circuit) for method, rank in METHODS.items()}
    return {
        "seed": seed,
        "exact": found.exact,
        "missing": found.missing,
        "extra": found.extra,
        "situation": found.situation,
        "true_situation": made.situation,
        "core_right": found.core_right,
        "second": None if found.shared is None else _second(found.shared),
        "seconds_prune": round(found.seconds, 1),
        "n_nodes": circuit.n_nodes,
        "n_edges": circuit.n_edges,
        "n_nodes_model": sum(made.model.config.widths.values()),
        "methods": {"pruning": pruning, **ranked},
    }


def _second(shared: Shared) -> dict[str, Any]:
    """A second task that shares parts with the first: what pruning returned, and what both circuits have in common."""
    found = shared.second
    return {
        "missing": found.missing,
        "extra": found.extra,
        "situation": found.situation,
        "core_right": found.core_right,
        "shared_nodes": [str(node) for node in shared.nodes],
        "true_shared_nodes": [str(node) for node in shared.true],
    }


def _summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "recovered": sum(run["exact"] for run in runs),
        "total": len(runs),
        **{key: runs[0][key] for key in ("n_nodes", "n_edges", "n_nodes_model", "true_situation")},
        "situations_named": sum(_named(run) for run in runs),
        "cores_right": sum(_core_right(run) for run in runs),
        "seconds_prune": round(mean([run["seconds_prune"] for run in runs]), 1),
        "misses": [{k: run[k] for k in MISS} for run in runs if not run["exact"]],
        "shared": [_overlap(run["second"]) for run in runs if run["second"] is not None],
        "methods": _averaged([run["methods"] for run in runs]),
    }


def _named(run: Mapping[str, Any]) -> bool:
    """Whether the situation was named, of both tasks where there are two."""
    told = [part["situation"] for part in (run, run["second"]) if part is not None]
    return all(situation == run["true_situation"] for situation in told)


def _core_right(run: Mapping[str, Any]) -> bool:
    """Whether the core is right, of both tasks where there are two."""
    return all(part["core_right"] for part in (run, run["second"]) if part is not None)


def _overlap(second: Mapping[str, Any]) -> dict[str, int]:
    """Nodes that the circuits of two tasks have in common: in truth, as found, and in both."""
    true, found = (set(second[key]) for key in ("true_shared_nodes", "shared_nodes"))
    return {"true": len(true), "found": len(found), "both": len(true & found)}


def _averaged(tables: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        method: {key: round(mean([table[method][key] for table in tables]), 4) for key in measures}
        for method, measures in tables[0].items()
    }


def _said(name: str, seed: int, run: dict[str, Any]) -> str:
    result = (
        "exact" if run["exact"] else f"missing {run['missing']}, extra {run['extra']}, {run['situation']}"
    )
    return f"{name} {seed}: {result} ({run['seconds_prune']:.1f} s)"
