"""Sparse factors of dense models: are circuits in them smaller than circuits in the dense model itself?

    python -m docs.experiments.factors    -> docs/results/factors.json

Two dense models that are not ours to retrain: mini-python-dense of the zoo, and a small GPT-2 of Hugging Face, trained
here on the same text. Each weight matrix becomes a product of two sparse factors (three fit seeds, two densities), and
the same pruning to the same task loss runs on the factored model, on the dense model's channels, on its neurons and
heads (GPT-2, wrapped), and on the sparse twin that the zoo has bridges to. What has been run is kept under out/factors.
Source of the idea: sparse weight decomposition (arXiv 2608.03913).
"""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers import GPT2Config, GPT2LMHeadModel

from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import run_circuit
from circuits.circuit.score import UnsolvedError, margins, task_margins, task_score
from circuits.files import once, write_results
from circuits.interop import LensSubject, from_gpt2
from circuits.model.checkpoint import load_checkpoint
from circuits.model.subject import Subject
from circuits.model.transformer import SparseTransformer
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.training.factors import FactorConfig, fit_factors
from circuits.zoo import load
from docs.experiments.rankings import wrapped
from docs.experiments.runs import published
from docs.experiments.sparse_vs_dense import geometric_mean
from tasks import Corpus, load_corpus, load_task

RESULTS, KEPT = Path("docs/results/factors.json"), Path("out/factors")
TASKS = ("quotes", "brackets")
DENSITIES = (0.02, 0.05)
"""Of both factors."""
SEEDS = (0, 1, 2)
"""Of fits, and of pruning."""
FIT_STEPS, GPT2_STEPS = 600, 1500
OURS, TWIN, GPT2 = "mini-python-dense", "mini-python-sparse", "gpt2"
FIRST = {OURS: 0.02, GPT2: 0.05}
"""The density that is run first: the narrower model loses the task at 2 %."""
SHAPE: dict[str, Any] = dict(n_layer=2, n_head=4, n_embd=64, n_positions=40)
"""Of the GPT-2."""
N_PROMPTS = 256
"""Test pairs on which margins are compared with the dense model's."""

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def run(
    results: Annotated[Path, typer.Option(help="File to write.")] = RESULTS,
    kept: Annotated[Path, typer.Option(help="Folder for what has been run.")] = KEPT,
) -> dict[str, Any]:
    """Fit, prune and compare; the file is written anew after each circuit."""
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = []
    report: dict[str, Any] = {}
    for job in jobs(kept):
        runs.append(job())
        Console().print(
            {key: runs[-1].get(key) for key in ("dense", "kind", "task", "seed", "n_nodes", "n_edges")}
        )
        report = write_results(
            results,
            command="python -m docs.experiments.factors",
            seeds=SEEDS,
            seconds=sum(one["seconds"] for one in runs),
            numbers=compared(runs),
        )
    return report


def jobs(kept: Path) -> list[Callable[[], dict[str, Any]]]:
    """Every circuit: of which dense model, in what of it, for which task, from which seed.

    The first task, the first density and the quicker ones come first, so that a run that is stopped has compared some.
    """
    plain = {OURS: ("twin", "channels"), GPT2: ("neurons and heads", "channels")}
    factors = {density: f"factors {density:g}" for density in DENSITIES}
    asked = [
        (dense, kind, task, seed)
        for task in TASKS
        for dense, beside in plain.items()
        for kind in (*factors.values(), *beside)
        for seed in SEEDS
    ]

    def late(job: tuple[str, str, str, int]) -> tuple[bool, int, bool]:
        dense, kind, task, seed = job
        rest = kind in factors.values() and kind != factors[FIRST[dense]]
        return rest, TASKS.index(task), seed > 0 and (kind == "channels" or dense == GPT2)

    return [partial(one, kept, *job) for job in sorted(asked, key=late)]


def one(kept: Path, dense: str, kind: str, task: str, seed: int) -> dict[str, Any]:
    """One circuit and its numbers, as they were kept or made now."""
    model = subject(kept, dense, kind, seed)
    config = pruning(seed)
    settings = {"model": model.fingerprint(), "task": task, "prune": config.to_json()}
    path = kept / dense / f"{kind.replace(' ', '-')}-{task}-{seed}.json"
    fit = fit_of(kept, dense, kind, seed) if kind.startswith("factors") else None
    named = {"dense": dense, "kind": kind, "task": task, "seed": seed, "fit": fit}
    return {**named, **once(path, settings, partial(measured, model, dense_of(kept, dense), task, config))}


def pruning(seed: int) -> PruneConfig:
    """The published objective to 0.15 nats; one start, as a dense circuit has thousands of weights to try."""
    return published(seed=seed, starts=1, n_eval=64)


def subject(kept: Path, dense: str, kind: str, seed: int) -> Subject:
    """What is pruned."""
    if kind == "channels":
        return dense_of(kept, dense)
    if kind == "twin":
        return load(TWIN).model
    if kind == "neurons and heads":
        return LensSubject(gpt2(kept), sites=("attn_head", "mlp_neuron"))
    return factored_model(kept, dense, float(kind.split()[1]), seed)


@cache
def dense_of(kept: Path, dense: str) -> SparseTransformer:
    """The dense model, as one of ours."""
    if dense == OURS:
        return load(OURS).model
    return from_gpt2(gpt2(kept), tokenizer=text().tokenizer)


@cache
def text() -> Corpus:
    """Mini-Python, on which both dense models were trained."""
    return load_corpus("mini", 0)


@cache
def factored_model(kept: Path, dense: str, density: float, seed: int) -> SparseTransformer:
    """The dense model in sparse factors, from the file where it was fitted before."""
    model, config = dense_of(kept, dense), FactorConfig(density=density, steps=FIT_STEPS, seed=seed)
    path = kept / dense / f"factors-{density:g}-{seed}.safetensors"
    if path.exists() and load_checkpoint(path).meta.get("factors") == config.to_json():
        return load_checkpoint(path).model.eval()
    found = fit_factors(model, config, corpus=text(), progress=False)
    Console().print(found, found.metrics)
    found.save(path)
    return found.model


def fit_of(kept: Path, dense: str, kind: str, seed: int) -> dict[str, float]:
    """What a fit measured of the model that it left."""
    path = kept / dense / f"{kind.replace(' ', '-')}-{seed}.safetensors"
    measures: dict[str, float] = load_checkpoint(path).meta["metrics"]
    return measures


@cache
def gpt2(kept: Path) -> Any:
    """A small GPT-2 of Hugging Face in TransformerLens's wrapper, trained on mini-Python."""
    torch.manual_seed(0)
    path, corpus = kept / "gpt2-trained", text()
    n_words = corpus.tokenizer.d_vocab
    if path.exists():
        hf: Any = GPT2LMHeadModel.from_pretrained(path, local_files_only=True)
    else:
        shape = GPT2Config(**SHAPE, vocab_size=n_words, bos_token_id=0, eos_token_id=0)
        hf = trained(GPT2LMHeadModel(shape), corpus)
        hf.save_pretrained(path)
    return wrapped(hf, n_words)


def trained(hf: Any, corpus: Corpus) -> Any:
    """The model after training on next tokens, without dropout."""
    hf.eval()
    optimizer = torch.optim.AdamW(hf.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for step in range(GPT2_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 50) * (1 - step / GPT2_STEPS)
        tokens = corpus.windows(48, SHAPE["n_positions"], split="train", generator=generator)
        optimizer.zero_grad()
        hf(tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        optimizer.step()
    return hf


def measured(model: Subject, dense: SparseTransformer, name: str, config: PruneConfig) -> dict[str, Any]:
    """Size and score of a circuit, and how much of the dense model's margins it has; what was missed where none is."""
    task = load_task(name)
    batch = task.batch(N_PROMPTS, split="test", seed=0)
    whole = task_score(model, batch)
    theirs = task_margins(dense, batch)
    facts: dict[str, Any] = {
        "full_task_loss": whole.loss,
        "full_correlation_with_dense": correlation(task_margins(model, batch), theirs),
    }
    try:
        circuit = prune(model, task, config, corpus=text(), progress=False)
    except UnsolvedError:
        return {"solved": False, **facts}
    targets = batch.tokens_and_targets()
    with torch.no_grad():
        own = margins(run_circuit(model, circuit, targets.tokens), targets)
    return {"solved": True, **facts, **size(circuit), "correlation_with_dense": correlation(own, theirs)}


def correlation(own: torch.Tensor, theirs: torch.Tensor) -> float:
    """Pearson's, between margins of the right answer: whether one is surer where the other is."""
    return float(torch.corrcoef(torch.stack([own, theirs]))[0, 1])


def size(circuit: Circuit) -> dict[str, Any]:
    """Nodes and edges, all in all and by site, and the loss at which they were counted."""
    return {
        "n_nodes": circuit.n_nodes,
        "n_edges": circuit.n_edges,
        "task_loss": circuit.metrics["task_loss"],
        "task_accuracy": circuit.metrics["task_accuracy"],
        "one_minimal": circuit.metrics["one_minimal"],
        "nodes_by_site": dict(Counter(node.site for node in circuit.nodes)),
    }


def compared(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sizes of each kind with their spread, and how many times larger each is than in factors."""
    solved = [one for one in runs if one["solved"]]
    sizes = {}
    for dense, kind, task in dict.fromkeys((one["dense"], one["kind"], one["task"]) for one in runs):
        own = [one for one in solved if (one["dense"], one["kind"], one["task"]) == (dense, kind, task)]
        every = [one for one in runs if (one["dense"], one["kind"], one["task"]) == (dense, kind, task)]
        sizes[f"{dense} / {kind} / {task}"] = {
            "solved": f"{len(own)} of {len(every)}",
            **{key: spread([one[key] for one in own]) for key in SPREAD if own},
        }
    return {"ratios": ratios(solved), "sizes": sizes, "models": models_of(runs), "runs": list(runs)}


SPREAD = ("n_nodes", "n_edges", "task_loss", "full_task_loss", "correlation_with_dense")
"""What is given with its spread over seeds."""


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def ratios(solved: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Nodes and edges of every other kind over those in factors: geometric mean over tasks and seeds, and the range."""
    found: dict[str, Any] = {}
    by = {(one["dense"], one["kind"], one["task"], one["seed"]): one for one in solved}
    for dense, kind in dict.fromkeys((one["dense"], one["kind"]) for one in solved):
        for density in () if kind.startswith("factors") else DENSITIES:
            pairs = [
                (one, by[key])
                for one in solved
                if (one["dense"], one["kind"]) == (dense, kind)
                and (key := (dense, f"factors {density:g}", one["task"], one["seed"])) in by
            ]
            for part in ("n_nodes", "n_edges"):
                shares = [a[part] / b[part] for a, b in pairs if a[part] and b[part]]
                if shares:
                    found[f"{dense}: {kind} over factors {density:g}, {part}"] = {
                        "geomean": geometric_mean(shares),
                        "least": min(shares),
                        "greatest": max(shares),
                        "n": len(shares),
                    }
    return found


def models_of(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How near each factored model is to its dense one, as its fit measured it."""
    return {f"{one['dense']} / {one['kind']} / seed {one['seed']}": one["fit"] for one in runs if one["fit"]}


if __name__ == "__main__":
    app()
