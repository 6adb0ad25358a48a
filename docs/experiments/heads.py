"""Composition among decoys, and dynamically composed heads on the head-composition task.

    python -m docs.experiments.heads composition --seeds 20        -> docs/results/composition.json
    python -m docs.experiments.heads dynamic --seeds 10            -> docs/results/dynamic_heads.json
    python -m docs.experiments.heads report                        -> docs/results/head_report.json
    python -m docs.experiments.heads tables                        rewrites the tables of docs/explanation/heads.md

The first two write their file after every run and take up under out/ what has been run before.
"""

import math
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from circuits.composition import (
    NULLS,
    ComposePruneConfig,
    compose_gates,
    composition,
    prune_compositions,
    run_composed,
)
from circuits.files import mean, once, write_results
from circuits.heads import head_report
from circuits.model.checkpoint import save_checkpoint
from circuits.model.config import ModelConfig
from circuits.model.mixers.compose import n_parameters
from circuits.model.transformer import SparseTransformer
from circuits.pruning.procedure import prune
from circuits.statistics import interval
from circuits.training.config import TrainConfig
from circuits.training.loop import new_model
from circuits.training.updates import Updates
from docs.experiments.decoys import induction_model
from docs.experiments.heads_page import write_tables
from docs.experiments.runs import published
from tasks import Batch, Composition, Corpus, load_corpus
from tasks.composition import foretold

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)
RESULTS, OUT = Path("docs/results"), Path("out/heads")
STEPS = 6000
LEARNED, NEARLY = 0.95, 0.9
"""Accuracy on seen cells of validation prompts at which training ends, and at which it is nearly there."""
LOOK_EVERY = 100
"""Steps between looks at it."""
ALIKE = 0.08
"""Difference of held-out accuracy below which two variants are called equivalent."""
COMPARED = ("plain_equal", "static", "full")
"""The variants that are compared by default."""
VARIANTS = ("plain", "plain_equal", "static", "gate", "qw", "kw", "full")
"""plain_equal: plain attention with the parameters that `full` adds given to the MLP."""
CONTRASTS = (("full", "static"), ("full", "plain_equal"), ("qw", "gate"), ("qw", "kw"))
"""Published: dynamic over static, and over equal parameters; mixing heads over gating them; query over key side."""
BASE = ModelConfig(n_layers=2, d_model=64, n_heads=4, d_head=16, d_mlp=128, n_ctx=28, bigram=False)
LARGE = ModelConfig(
    d_vocab=49_152,
    n_layers=30,
    d_model=576,
    n_heads=9,
    d_head=64,
    d_mlp=1536,
    n_ctx=1024,
    topk_fraction=None,
    bigram=False,
)
"""The shape of a language model of 135 million parameters."""


@app.command(name="composition")
def composition_command(seeds: Annotated[int, typer.Option(help="Decoy seeds.")] = 20) -> None:
    """The K-composition edge of a hand-made induction model among decoys, under two null models."""
    Console().print({k: v for k, v in run_composition(seeds).items() if k != "runs"})


@app.command()
def dynamic(
    seeds: Annotated[int, typer.Option(help="Seeds a variant.")] = 10,
    steps: Annotated[int, typer.Option(help="Training steps, at most.")] = STEPS,
    first: Annotated[int, typer.Option(help="The first seed.")] = 10,
    until: Annotated[
        float, typer.Option(help="Accuracy on seen cells that ends training; 2: none does.")
    ] = LEARNED,
    every_variant: Annotated[
        bool, typer.Option("--every-variant", help="All seven kinds of heads, not three.")
    ] = False,
    density: Annotated[float, typer.Option(help="Final density; 1: dense models.")] = 1.0,
    prune_circuits: Annotated[
        bool, typer.Option(help="Also extract circuits of the sparse variants.")
    ] = False,
) -> None:
    """Accuracy of variants on held-out cells once they know the seen ones, and the steps until then."""
    report = run_dynamic(
        seeds=range(first, first + seeds),
        steps=steps,
        density=density,
        prune_circuits=prune_circuits,
        variants=VARIANTS if every_variant else COMPARED,
        until=until,
    )
    Console().print({key: report[key] for key in ("variants", "contrasts", "verdict")})


@app.command()
def report() -> None:
    """Time and memory of a head report of a model with random weights, as large as small language models are."""
    Console().print(run_report())


@app.command()
def tables() -> None:
    """Rewrite the tables of docs/explanation/heads.md from the results files."""
    Console().print(write_tables())


def run_report(model: ModelConfig = LARGE, *, results: Path = RESULTS / "head_report.json") -> dict[str, Any]:
    """Seconds of one `head_report`, and the most memory that this process has held, model included."""
    made = SparseTransformer(model).eval()
    started = time.perf_counter()
    found = head_report(made, seed=0)
    seconds = time.perf_counter() - started
    shape = {key: getattr(model, key) for key in ("n_layers", "n_heads", "d_model", "d_vocab")}
    numbers = {
        "report_seconds": seconds,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "n_rows": len(found.rows),
        "threads": torch.get_num_threads(),
        **shape,
    }
    command = "python -m docs.experiments.heads report"
    return write_results(results, command=command, seeds=[0], seconds=seconds, numbers=numbers)


def run_composition(n_seeds: int, *, results: Path = RESULTS / "composition.json") -> dict[str, Any]:
    """One run a decoy seed; p of the true edge, and other pairs significant at 5 % false discovery."""
    runs = [
        once(OUT / f"decoys-{seed}.json", {"seed": seed, "max_null": 20_000}, partial(_decoys, seed))
        for seed in range(n_seeds)
    ]
    numbers = {
        "true_edge_p": max(run["redraw"]["p"] for run in runs),
        "false_positives": sum(run["redraw"]["others"] for run in runs),
        "decoy_seeds": n_seeds,
        "true_edge_p_permute": max(run["permute"]["p"] for run in runs),
        "false_positives_permute": sum(run["permute"]["others"] for run in runs),
        "null": "redraw: the decoys' own nonzeros at random places",
        "runs": runs,
    }
    command = f"python -m docs.experiments.heads composition --seeds {n_seeds}"
    seconds = sum(run["seconds"] for run in runs)
    return write_results(results, command=command, seeds=range(n_seeds), seconds=seconds, numbers=numbers)


def run_dynamic(
    *,
    seeds: Sequence[int] = tuple(range(10, 20)),
    steps: int = STEPS,
    density: float = 1.0,
    prune_circuits: bool = False,
    variants: Sequence[str] = COMPARED,
    until: float = LEARNED,
    out: Path = OUT,
    results: Path = RESULTS / "dynamic_heads.json",
) -> dict[str, Any]:
    """Train and measure every variant with every seed; writes the results file after each run."""
    corpus, runs = load_corpus("composition"), []
    for seed in seeds:
        for variant in variants:
            config = variant_config(variant, seed=seed, steps=steps, density=density)
            name = f"{variant}-{seed}-{steps}-{density:g}"
            settings = {"train": config.to_json(), "prune": prune_circuits, "until": until}

            def run(config: TrainConfig = config, name: str = name) -> dict[str, Any]:
                return _one(config, corpus, out / f"{name}.safetensors", prune_circuits, until)

            runs.append({"variant": variant, "seed": seed, **once(out / f"{name}.json", settings, run)})
            Console().print({key: runs[-1][key] for key in ("variant", "seed", "seen", "held_out", "steps")})
            options = f"--first {seeds[0]} --seeds {len(seeds)} --steps {steps} --density {density:g}"
            options += f" --until {until:g}" if until != LEARNED else ""
            options += " --every-variant" if tuple(variants) == VARIANTS else ""
            options += " --prune-circuits" if prune_circuits else ""
            report = _summary(runs, density, f"python -m docs.experiments.heads dynamic {options}", results)
    return report


def variant_config(variant: str, *, seed: int, steps: int, density: float = 1.0) -> TrainConfig:
    """Training of one variant; all share weights where their shapes agree, batches and schedule."""
    if variant not in VARIANTS:
        raise ValueError(f"variant: got {variant!r}; expected one of {VARIANTS}.")
    model = BASE if density < 1 else replace(BASE, topk_fraction=None)
    if variant == "plain_equal":
        model = replace(
            model, d_mlp=BASE.d_mlp + round(n_parameters("full", BASE.d_model, 4) / (2 * BASE.d_model))
        )
    elif variant != "plain":
        model = replace(model, attention="compose", compose=variant)  # type: ignore[arg-type]
    common: dict[str, Any] = dict(
        model=model, corpus="composition", steps=steps, seed=seed, batch_size=60, bigram_init="zeros"
    )
    if density < 1:
        return TrainConfig(density=density, **common)
    return TrainConfig.dense(lr=5e-3, weight_decay=0.01, warmup=0.03, **common)


def train_on_answers(config: TrainConfig, corpus: Corpus) -> SparseTransformer:
    """Next-token training on the task's text, scored only where the next token follows from its line."""
    return trained_until(config, corpus, until=math.inf)[0]


def trained_until(
    config: TrainConfig, corpus: Corpus, *, until: float = LEARNED
) -> tuple[SparseTransformer, list[tuple[int, float]]]:
    """Such training until accuracy on seen cells of validation prompts is `until`; and that accuracy on the way."""
    config = replace(config, model=replace(config.model, d_vocab=corpus.tokenizer.d_vocab))
    model = new_model(config, corpus)
    updates = Updates(model, config)
    generator = torch.Generator().manual_seed(config.seed)
    way: list[tuple[int, float]] = []
    for step in range(config.steps):
        tokens = corpus.windows(config.batch_size, config.model.n_ctx, split="train", generator=generator)
        updates(_foretold_loss(model, tokens), step / config.steps)
        if math.isfinite(until) and (step + 1) % LOOK_EVERY == 0:
            way.append((step + 1, accuracy(model, "seen", split="val")))
            if way[-1][1] >= until:
                break
    return model.eval(), way


def accuracy(
    model: SparseTransformer,
    which: str,
    *,
    n: int = 1024,
    split: str = "test",
    masks: Mapping[str, Tensor] | None = None,
) -> float:
    """Share of prompts of "seen" or "held_out" cells whose answer has the highest logit of all tokens."""
    batch = _prompts(which, n, split)
    with torch.no_grad():
        logits = run_composed(model, batch.clean, masks) if masks else model(batch.clean)
    guess = logits[torch.arange(n), batch.position].argmax(-1)
    return float((guess == batch.answer).float().mean())


@cache
def _prompts(which: str, n: int, split: str) -> Batch:
    return Composition(which=which).batch(n, split=split, seed=0)  # type: ignore[arg-type]


def _one(
    config: TrainConfig, corpus: Corpus, path: Path, prune_circuits: bool, until: float
) -> dict[str, Any]:
    model, way = trained_until(config, corpus, until=until)
    model.tokenizer = corpus.tokenizer
    save_checkpoint(path, model, meta={"train": config.to_json()})
    result: dict[str, Any] = {which: accuracy(model, which) for which in ("seen", "held_out")}
    result |= {"way": way, "steps": way[-1][0] if way else config.steps}
    result["steps_to_90"] = next((step for step, right in way if right >= NEARLY), None)
    result |= {"n_parameters": sum(p.numel() for p in model.parameters()), "n_nonzero": model.n_nonzero()}
    result["ablated"] = _ablated(model)
    result["n_compositions"] = _n_compositions(model)
    result["n_edges"] = _n_edges(model, corpus) if prune_circuits else None
    return result


def _foretold_loss(model: SparseTransformer, tokens: Tensor) -> Tensor:
    where = foretold(tokens)[:, :-1]
    return F.cross_entropy(model(tokens)[:, :-1][where], tokens[:, 1:][where])


def _ablated(model: SparseTransformer) -> dict[str, float]:
    """Accuracy on seen cells with one kind of composition closed in all layers; what closes is zero-ablated."""
    gates = compose_gates(model)
    kinds = {".query.": "query", ".key.": "key", "_pre.": "pre", "_post.": "post", "hook_mix": "mixing"}
    found = {}
    for part, name in kinds.items():
        closed = {hook: torch.zeros(shape) for hook, shape in gates.items() if part in hook}
        if closed:
            found[name] = accuracy(model, "seen", masks=closed)
    return found


def _n_compositions(model: SparseTransformer) -> int:
    """Edges from head to head (gates on itself included) that the seen cells need; 0 for plain attention."""
    if not compose_gates(model):
        return 0
    config = ComposePruneConfig(level="edge", n_eval=128)
    return len(prune_compositions(model, Composition(), config).kept)


def _n_edges(model: SparseTransformer, corpus: Corpus) -> int | None:
    """Edges of the circuit for seen cells; None when the model misses the target. Compositions stay open."""
    try:
        circuit = prune(model, Composition(), published(), corpus=corpus, progress=False)
    except ValueError:
        return None
    return circuit.n_edges


def _decoys(seed: int) -> dict[str, Any]:
    model = induction_model(seed)
    result: dict[str, Any] = {}
    for null in NULLS[:2]:
        found = composition(model, null=null, seed=seed)
        edge = found.edge("L0H0", "L1H0.K")
        others = [str(e) for e in found.significant() if (e.writer, e.reader) != (edge.writer, edge.reader)]
        result[null] = {"p": edge.p, "q": edge.q, "z": edge.z, "others": len(others), "which": others}
    return result


def _summary(runs: Sequence[dict[str, Any]], density: float, command: str, results: Path) -> dict[str, Any]:
    variants = {}
    for name in dict.fromkeys(run["variant"] for run in runs):
        own = [run for run in runs if run["variant"] == name]
        held_out, edges = [run["held_out"] for run in own], [run["n_edges"] for run in own]
        nearly = [run["steps_to_90"] for run in own]
        variants[name] = {
            "seen": mean([run["seen"] for run in own]),
            "held_out": mean(held_out),
            "held_out_ci": interval(held_out),
            "seen_ci": interval([run["seen"] for run in own]),
            "n_compositions": statistics.median([run["n_compositions"] for run in own]),
            "n_edges": statistics.median(edges) if edges and None not in edges else None,
            "n_seeds": len(own),
            "n_learned": sum(run["way"][-1][1] >= LEARNED for run in own if run["way"]),
            "steps_to_90": statistics.median(nearly) if None not in nearly else None,
        }
    contrasts = _contrasts(runs)
    numbers = {
        "variants": variants,
        "contrasts": contrasts,
        "verdict": {name: judged(found["ci"]) for name, found in contrasts.items() if "held_out" in name},
        "density": density,
        "runs": list(runs),
    }
    seconds = sum(run["seconds"] for run in runs)
    done = sorted({run["seed"] for run in runs})
    return write_results(results, command=command, seeds=done, seconds=seconds, numbers=numbers)


def judged(ci: Sequence[float]) -> str:
    """What a 95 % interval of a difference lets be said: better, worse, equivalent (within 0.08), or undecided."""
    low, high = ci
    if low == high:  # one seed
        return "undecided"
    if low > 0 or high < 0:
        return "better" if low > 0 else "worse"
    return "equivalent" if low > -ALIKE and high < ALIKE else "undecided"


def _contrasts(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Differences between two variants with the same seed, on seen and held-out cells."""
    at = {(run["variant"], run["seed"]): run for run in runs}
    found = {}
    for a, b in CONTRASTS:
        shared = [seed for (name, seed) in at if name == a and (b, seed) in at]
        if shared:
            for which in ("seen", "held_out"):
                gaps = [at[a, seed][which] - at[b, seed][which] for seed in shared]
                found[f"{a} - {b}, {which}"] = {"mean": mean(gaps), "ci": interval(gaps)}
    return found


if __name__ == "__main__":
    app()
