"""Attention in few bits: how far off is it, how small, how fast, and do circuits survive it?

    python -m docs.experiments.turbo run                        -> docs/results/turbo.json

Errors of outputs on random queries, keys and values, against bits, threshold and spread of the logits. On the model of
mini-Python and its circuits: task loss, accuracy and KL under each approximation. On all models of the zoo: answers
read from a packed cache.
The time of one more token after 4,096, packed against float32. And whether the priority of heads, by which FlashQ
chooses what is stored in 2 bits, says what pruning says of them.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import typer
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from circuits.circuit.ablation import mean_values
from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import run_circuit, run_masked
from circuits.circuit.score import margins, score_margins
from circuits.files import once, write_results
from circuits.kernels import turbo_decode
from circuits.kernels.naive_turbo import tiled_pattern
from circuits.kernels.quantised import head_priority, sas
from circuits.model.mixers.past import begun
from circuits.model.mixers.turbo import TurboConfig, approximated
from circuits.model.sites import Site
from circuits.model.transformer import SparseTransformer
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.statistics import spearman
from circuits.zoo import load
from docs.experiments.turbo_cache import N_DRAWN, cached_answers, kv_ratio
from tasks import load_task
from tasks.base import Targets

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)
RESULTS, OUT = Path("docs/results/turbo.json"), Path("out/turbo")
TASKS, SEEDS = ("quotes", "brackets"), range(3)
N_PAIRS = 256
APPROXIMATIONS: dict[str, TurboConfig] = {
    "sas": TurboConfig(quant="none"),
    "int8": TurboConfig(softmax="exact", quant="int8"),
    "int8+sas": TurboConfig(quant="int8"),
    "int8+sas+kv4": TurboConfig(quant="int8+kv4"),
    "int8+sas+kv42": TurboConfig(),
}
"""What is tried, in the order of what it leaves out."""
THRESHOLDS = (-3, -4, -5, -6, -7, -8, -10)
STDS = (1.0, 2.0, 3.0, 4.0)
PRUNING = {
    "quotes": PruneConfig(objective="task", starts=1),
    "brackets": PruneConfig(objective="task", starts=1, steps=100, n_eval=128, prune_edges=False),
}
"""How circuits are found; that for brackets in a hurry, its edges not pruned."""
CACHED = 4096
ROUNDS = 60


@app.callback()
def main() -> None:
    """TurboAttention."""


@app.command()
def run() -> None:
    """Measure everything; circuits are pruned once and kept in out/turbo."""
    Console().print({k: v for k, v in run_all().items() if k not in ("tasks", "errors", "cache")})


def run_all(results: Path = RESULTS) -> dict[str, Any]:
    """Writes the results file."""
    begun_at = perf_counter()
    errors = {f"{std:g}": _errors(std) for std in STDS}
    numbers: dict[str, Any] = {
        "max_rel_exp_error": exponential_error(),
        "output_error_std1": errors["1"]["int8+sas"],
        "output_error_std2": errors["2"]["int8+sas"],
        "errors": errors,
        **decode_time(),
        "cache": once(OUT / "cache.json", {"n_drawn": N_DRAWN}, cached_answers),
    }
    tasks: dict[str, Any] = {}
    for name in TASKS:
        tasks[name] = study(name)
        report = write_results(
            results,
            command="python -m docs.experiments.turbo run",
            seeds=SEEDS,
            seconds=perf_counter() - begun_at,
            numbers={**numbers, **_headlines(numbers["cache"], tasks), "tasks": tasks},
        )
    return report


def _headlines(cache: dict[str, Any], tasks: dict[str, Any]) -> dict[str, Any]:
    """The worst ratio of accuracies at the defaults, and the median of the correlations that are defined."""
    pairs = [value for t in tasks.values() for value in t["priority"].values() if value is not None]
    return {
        "accuracy_ratio": cache["curve"][cache["default"]]["accuracy_ratio"],
        "head_priority_correlation": median(pairs) if pairs else None,
    }


def exponential_error() -> float:
    """The largest error of SAS on [-6, 0], relative to e^x."""
    x = torch.linspace(-6, 0, 600_001, dtype=torch.float64)
    return float((sas(x) / x.exp() - 1).abs().max())


def _errors(std: float) -> dict[str, Any]:
    """Relative error of outputs, the mean over seeds: 256 tokens, 4 heads of 64 channels, logits of this spread."""
    found: dict[str, Any] = {
        name: _mean(_error(config, std, seed) for seed in SEEDS) for name, config in APPROXIMATIONS.items()
    }
    swept = {n_r: replace(APPROXIMATIONS["int8+sas"], n_r=n_r) for n_r in THRESHOLDS}
    found["by_threshold"] = {str(n_r): _mean(_error(c, std, s) for s in SEEDS) for n_r, c in swept.items()}
    return found


def _error(config: TurboConfig, std: float, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 1, 256, 4, 64, generator=generator)
    exact = _attention(q * std, k, v, torch.exp, int8=False)
    int8 = config.quant != "none"
    found = _attention(
        config.query(q * std), config.stored(k), config.stored(v), config.exponential, int8=int8
    )
    return float((found - exact).norm() / exact.norm())


def _attention(
    q: Tensor, k: Tensor, v: Tensor, exponential: Callable[[Tensor], Tensor], *, int8: bool
) -> Tensor:
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    pattern = tiled_pattern(scores.masked_fill(later, -math.inf), None, exponential=exponential, int8=int8)
    return torch.einsum("bhqk,bkhd->bqhd", pattern, v)


def decode_time() -> dict[str, Any]:
    """One token after 4,096 cached ones, 8 heads of 64 channels, one thread: rounds of the three, turn by turn."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, 8, 64, generator=generator) for n in (1, CACHED, CACHED))
    stored = begun(k, v, TurboConfig())
    heads = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
    ways = {
        "packed": partial(turbo_decode, q, stored, None),
        "fp32_flash": partial(_by_flash, *heads),
        "fp32_matmul": partial(_by_matmul, *heads),
    }
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        times = {name: _nothing() for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                times[name].append(_seconds(way))
    finally:
        torch.set_num_threads(threads)
    micro = {name: 1e6 * median(seen) for name, seen in times.items()}
    return {
        "kv_ratio": kv_ratio(TurboConfig()),
        "decode_microseconds": micro,
        "decode_ratio": micro["packed"] / min(micro["fp32_flash"], micro["fp32_matmul"]),
    }


def _nothing() -> list[float]:
    return []


def _by_flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def _by_matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v


def _seconds(way: Callable[[], Any]) -> float:
    start = perf_counter()
    way()
    return perf_counter() - start


def study(name: str) -> dict[str, Any]:
    """One task of the model of mini-Python."""
    training = load("mini-python")
    model, task = training.model.eval(), load_task(name)
    circuit = _circuit(name)
    targets = task.batch(N_PAIRS, split="test", seed=0).tokens_and_targets()
    with torch.no_grad():
        runs = {
            "model": partial(model, targets.tokens),
            "circuit": partial(run_circuit, model, circuit, targets.tokens),
        }
        return {
            "n_nodes": len(circuit.nodes),
            **{whose: _under_each(model, run, targets) for whose, run in runs.items()},
            "priority": _priorities(model, circuit, targets),
        }


def _circuit(name: str) -> Circuit:
    path = OUT / f"{name}.json"
    if path.exists():
        return Circuit.load(path)
    training = load("mini-python")
    circuit = prune(training.model, load_task(name), PRUNING[name], corpus=training.corpus, progress=False)
    circuit.save(path)
    return circuit


def _under_each(model: SparseTransformer, run: Callable[[], Tensor], targets: Targets) -> dict[str, Any]:
    """Task loss (nats, uncalibrated), accuracy, and KL from the exact answer over all tokens."""
    exact = run()
    found = {"exact": _judged(exact, exact, targets)}
    swept = {f"int8+sas, n_r {n_r}": replace(APPROXIMATIONS["int8+sas"], n_r=n_r) for n_r in THRESHOLDS}
    for name, config in {**APPROXIMATIONS, **swept}.items():
        with approximated(model, config):
            found[name] = _judged(run(), exact, targets)
    return found


def _judged(logits: Tensor, exact: Tensor, targets: Targets) -> dict[str, float]:
    rows = torch.arange(len(logits))
    p, q = (x[rows, targets.position].log_softmax(-1) for x in (exact, logits))
    score = score_margins(margins(logits, targets))
    kl = float((p.exp() * (p - q)).sum(-1).mean())
    return {"loss": score.loss, "accuracy": score.accuracy, "kl": kl}


def _priorities(model: SparseTransformer, circuit: Circuit, targets: Targets) -> dict[str, float | None]:
    """Rank correlation, over heads, of priority with gates kept by the circuit and with loss when a head is ablated."""
    names = [f"blocks.{layer}.attn.hook_{x}" for layer in range(model.config.n_layers) for x in "kv"]
    _, cache = model.run_with_cache(targets.tokens, names_filter=lambda name: name in names)
    found: dict[str, float | None] = {}
    importance = {"gates": _kept(model, circuit), "ablation": _ablated(model, targets)}
    for x in "kv":
        priority = [
            value
            for layer in range(model.config.n_layers)
            for value in head_priority(cache[f"blocks.{layer}.attn.hook_{x}"]).tolist()
        ]
        for what, values in importance.items():
            varies = len(set(values)) > 1
            found[f"{x}, {what}"] = spearman(priority, values) if varies else None
    return found


def _kept(model: SparseTransformer, circuit: Circuit) -> list[float]:
    """Gates of q, k and v that the circuit keeps open in each head."""
    counts = [0.0] * (model.config.n_layers * model.config.n_heads)
    for node in circuit.nodes:
        if node.site in ("attn_q", "attn_k", "attn_v"):
            counts[node.layer * model.config.n_heads + node.index // model.config.d_head] += 1
    return counts


def _ablated(model: SparseTransformer, targets: Targets) -> list[float]:
    """Task loss without each head: its q, k and v at their means."""
    values = mean_values(model, targets.tokens)
    losses = []
    for layer in range(model.config.n_layers):
        for head in range(model.config.n_heads):
            mask = torch.ones(model.config.d_attn)
            mask[head * model.config.d_head : (head + 1) * model.config.d_head] = 0
            sites = [Site(layer, name) for name in ("attn_q", "attn_k", "attn_v")]
            logits = run_masked(model, targets.tokens, dict.fromkeys(sites, mask), values)
            losses.append(score_margins(margins(logits, targets)).loss)
    return losses


def _mean(values: Any) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


if __name__ == "__main__":
    app()
