"""The proof on ground truth: does pruning return exactly the circuit that was laid, and do other methods?"""

import json
import os
import platform
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch

from circuits.circuit import Circuit, Node
from circuits.handmade.handmade import MODELS, Handmade
from circuits.handmade.rankings import METHODS
from circuits.prune import PruneConfig, prune


class Recovery(NamedTuple):
    """What pruning made of one model."""

    exact: bool
    """All true nodes and edges were found, and nothing else."""
    missing: list[str]
    """True nodes and edges that were not found."""
    extra: list[str]
    """Nodes and edges that are no part of the truth."""
    seconds: float
    """Time that pruning took."""


def recover(made: Handmade, seed: int = 0) -> Recovery:
    """Prune a hand-made model at the default settings and hold the result against the truth."""
    started = time.perf_counter()
    found = prune(made.model, made.task, PruneConfig(seed=seed), corpus=made.corpus, progress=False)
    true_parts, found_parts = _parts(made.circuit), _parts(found)
    return Recovery(
        exact=true_parts == found_parts,
        missing=sorted(true_parts - found_parts),
        extra=sorted(found_parts - true_parts),
        seconds=time.perf_counter() - started,
    )


def rank_metrics(ranking: Sequence[Node], circuit: Circuit) -> dict[str, float]:
    """How well a ranking finds the n nodes of a circuit.

    precision: share of true nodes among the first n; recall: share of the true nodes that are among the first
    2 n; auroc: chance that a true node ranks above another (0.5 = at random). Raises ValueError when the
    ranking does not hold all nodes of the circuit.
    """
    true, n = set(circuit.nodes), circuit.n_nodes
    hits = [node in true for node in ranking]
    if sum(hits) != n or n == 0 or n == len(hits):
        raise ValueError(
            f"ranking: holds {sum(hits)} of the circuit's {n} nodes among {len(hits)}; expected every node of "
            "the model once, and a circuit that is neither empty nor the whole model."
        )
    above, wins = 0, 0
    for hit in hits:
        above += hit
        wins += 0 if hit else above
    return {
        "precision": sum(hits[:n]) / n,
        "recall": sum(hits[: 2 * n]) / n,
        "auroc": wins / (n * (len(hits) - n)),
    }


def verify(
    seeds: int = 10,
    *,
    models: Sequence[str] = tuple(MODELS),
    out: str | Path | None = "docs/results/ground_truth.json",
    progress: bool = True,
) -> dict[str, Any]:
    """Prune every hand-made model under `seeds` sets of decoys, rank its nodes by other methods, write a table.

    Returns what it writes to `out` (None: nowhere): recovered, total, per_model, methods. Raises ValueError
    for an unknown model or fewer than one seed.
    """
    unknown = sorted(set(models) - set(MODELS))
    if unknown or seeds < 1:
        raise ValueError(
            f"models, seeds: got {unknown or list(models)}, {seeds}; expected models out of {sorted(MODELS)} "
            "and at least one seed."
        )
    started = time.perf_counter()
    per_model = {name: _verify_model(name, seeds, progress) for name in models}
    report = {
        "command": f"circuits verify --seeds {seeds}",
        "seeds": list(range(seeds)),
        "recovered": sum(entry["recovered"] for entry in per_model.values()),
        "total": seeds * len(per_model),
        "per_model": per_model,
        "methods": _averaged([entry["methods"] for entry in per_model.values()]),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch "
        f"{torch.__version__}",
        "minutes": round((time.perf_counter() - started) / 60, 2),
        "date": date.today().isoformat(),
    }
    if out is not None:
        path = Path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(report, indent=1) + "\n")
        partial.replace(path)
    return report


def _verify_model(name: str, seeds: int, progress: bool) -> dict[str, Any]:
    results, methods = [], []
    for seed in range(seeds):
        made = MODELS[name](seed)
        results.append(recover(made, seed))
        methods.append(
            {
                method: rank_metrics(rank(made.model, made.task), made.circuit)
                for method, rank in METHODS.items()
            }
        )
        if progress:
            said = (
                "exact" if results[-1].exact else f"missing {results[-1].missing}, extra {results[-1].extra}"
            )
            print(f"{name} {seed}: {said} ({results[-1].seconds:.1f} s)", flush=True)
    pruned = [_set_metrics(result, made.circuit) for result in results]
    return {
        "recovered": sum(result.exact for result in results),
        "total": seeds,
        "n_nodes": made.circuit.n_nodes,
        "n_edges": made.circuit.n_edges,
        "n_nodes_model": sum(made.model.config.widths.values()) * made.model.config.n_layers,
        "misses": [
            {"seed": seed, "missing": result.missing, "extra": result.extra}
            for seed, result in enumerate(results)
            if not result.exact
        ],
        "methods": _averaged([{"pruning": a, **b} for a, b in zip(pruned, methods, strict=True)]),
    }


def _set_metrics(result: Recovery, circuit: Circuit) -> dict[str, float]:
    """Precision and recall of the nodes that pruning returned; a set has no ranking and so no AUROC."""
    missing, extra = (sum(">" not in part for part in parts) for parts in (result.missing, result.extra))
    hits = circuit.n_nodes - missing
    return {"precision": hits / max(1, hits + extra), "recall": hits / circuit.n_nodes}


def _averaged(tables: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        method: {
            key: round(sum(table[method][key] for table in tables) / len(tables), 4)
            for key in tables[0][method]
        }
        for method in tables[0]
    }


def _parts(circuit: Circuit) -> set[str]:
    return {str(node) for node in circuit.nodes} | {f"{e.source} > {e.target}" for e in circuit.edges}
