"""The original Transformer: is it torch's, does it copy, reverse and translate, and is there a circuit in a sparse one?

    python -m docs.experiments.encdec run --first 4 --seeds 3    -> docs/results/encdec.json

Copy and reverse: the model and recipe of 2017, small and dense. Translation: a weight-sparse model whose words have
genders; adjectives that it never saw beside a noun decide whether it put the rule together. Then a circuit for the one
word that only the source decides, by the usual pruning and the usual checks. Nothing was tuned on seeds from 4 on.
"""

from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from circuits.composition import composition
from circuits.files import once, write_results
from circuits.heads import stack_head_report
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer
from circuits.model.translate import translate
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.training.config import TrainConfig, published_lr
from circuits.trust.config import TrustConfig
from circuits.trust.procedure import trust_report
from docs.experiments.encdec_page import write_table
from docs.experiments.runs import kept_training
from docs.experiments.torch_twin import parity
from tasks import load_corpus, load_task
from tasks.transduction import END, LONGEST, START, Transduction, Which, rows

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)
RESULTS, OUT = Path("docs/results"), Path("out/encdec")
N_TEST = 500
"""Sources that translations are judged on."""
STEPS = {"copy": 3000, "reverse": 3000, "translate": 1500}
PRUNINGS = {
    "margins": PruneConfig(n_eval=512),
    "task": PruneConfig(objective="task", calibrate=False, target_loss=0.15),
}
"""By the margins of the model, the default, and by right answers alone, without calibration."""
BEAM = 4
"""Hypotheses of a beam search (2017)."""


@app.callback()
def main() -> None:
    """The original Transformer."""


@app.command()
def run(
    first: Annotated[int, typer.Option(help="The first seed.")] = 4,
    seeds: Annotated[int, typer.Option(help="Models of each kind, each trained anew.")] = 3,
) -> None:
    """Train, translate, prune and check; what has been done before is read from out/encdec."""
    report = run_all(range(first, first + seeds))
    Console().print({key: value for key, value in report.items() if key != "runs"})


@app.command()
def page() -> None:
    """Write the results into docs/explanation/encdec.md."""
    Console().print(str(write_table()))


def run_all(seeds: range, *, results: Path = RESULTS / "encdec.json") -> dict[str, Any]:
    """Writes the results file after each seed."""
    apart = {position: _parity(position) for position in ("post", "pre")}
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        strings = {name: _strings(name, seed) for name in ("copy", "reverse")}
        circuits = {name: _circuit(seed, name) for name in PRUNINGS}
        runs.append({"seed": seed, **strings, "translate": _translation(seed), "circuits": circuits})
        report = write_results(
            results,
            command=f"python -m docs.experiments.encdec run --first {seeds.start} --seeds {len(seeds)}",
            seeds=seeds[: len(runs)],
            seconds=sum(map(_seconds, runs)),
            numbers=_headlines(apart, runs),
        )
    return report


def original(name: str, seed: int) -> TrainConfig:
    """The recipe of 2017 for copy or reverse: warm-up over a fifth of the steps, smoothed labels, dense."""
    shape = ModelConfig.original(
        **Transduction().shape(), n_layers=2, d_model=64, n_heads=4, d_head=16, d_mlp=128
    )
    peak = published_lr(64, STEPS[name] // 5)
    return TrainConfig.original(
        model=shape, corpus=name, steps=STEPS[name], batch_size=64, warmup=0.2, lr=peak, seed=seed
    )


def sparse(seed: int) -> TrainConfig:
    """The toy recipe for one layer of each stack, 8 % of the weights, smoothed labels, without a bigram table.

    Smoothed, a model is about equally sure of every answer; without, its margins are wherever training left them.
    """
    shape = ModelConfig(
        arch="encdec",
        **load_task("gender").shape(),  # type: ignore[attr-defined]
        n_layers=1,
        d_model=64,
        n_heads=8,
        d_head=8,
        d_mlp=128,
        bigram=False,
    )
    return TrainConfig(
        model=shape,
        corpus="translate",
        steps=STEPS["translate"],
        density=0.08,
        embed_density=0.08,
        lr=1e-2,
        label_smoothing=0.1,
        seed=seed,
    )


def exact(model: SparseTransformer, name: str, *, beam: int = 1, which: Which = "seen") -> float:
    """Share of test sources that become the very target, end included."""
    tokens, tokenizer = rows(name, N_TEST, split="test", seed=1, which=which), load_corpus(name).tokenizer
    start, end = tokenizer.id(START), tokenizer.id(END)
    said = translate(model, tokens[:, :LONGEST], start=start, end=end, beam=beam)
    asked = [row[: row.index(end)] for row in tokens[:, LONGEST + 1 :].tolist()]
    return sum(s.ended and s.tokens == a for s, a in zip(said, asked, strict=True)) / len(asked)


def _parity(position: Any) -> dict[str, float]:
    config = ModelConfig.original(
        **Transduction().shape(),
        norm_position=position,
        n_layers=3,
        d_model=64,
        n_heads=4,
        d_head=16,
        d_mlp=128,
    )
    return parity(config, rows("copy", 64, split="test"))


def _strings(name: str, seed: int) -> dict[str, Any]:
    config = original(name, seed)
    settings = {"train": config.to_json(), "n_test": N_TEST}
    return once(OUT / f"{name}-{seed}.json", settings, partial(_learned, name, config))


def _learned(name: str, config: TrainConfig) -> dict[str, Any]:
    training = kept_training(OUT / f"{name}-{config.seed}.safetensors", config)
    accuracy = {f"beam_{beam}": exact(training.model, name, beam=beam) for beam in (1, BEAM)}
    return {"accuracy": accuracy["beam_1"], **accuracy, "val_loss": training.val_loss}


def _translation(seed: int) -> dict[str, Any]:
    config = sparse(seed)
    settings = {"train": config.to_json(), "n_test": N_TEST}
    return once(OUT / f"translate-{seed}.json", settings, partial(_translated, config))


def _translated(config: TrainConfig) -> dict[str, Any]:
    training = kept_training(OUT / f"translate-{config.seed}.safetensors", config)
    model, kinds = training.model, ("seen", "held_out")
    looked = stack_head_report(model, rows("translate", N_TEST, split="test"))
    edges = composition(model, n_null=1000).edges
    crossing = [edge for edge in edges if edge.writer.stack != edge.reader.stack]
    return {
        **{which: exact(model, "translate", which=which) for which in kinds},  # type: ignore[arg-type]
        **{f"{which}_beam_{BEAM}": exact(model, "translate", beam=BEAM, which=which) for which in kinds},  # type: ignore[arg-type]
        "val_loss": training.val_loss,
        "n_nonzero": model.n_nonzero(),
        "density": model.density(),
        "cross_heads": {row.label: row.looks._asdict() for row in looked.rows if row.kind == "cross"},
        "encoder_to_decoder": [[str(e), e.score, e.z, e.q] for e in crossing[:5]],
    }


def _seconds(run: dict[str, Any]) -> float:
    parts = [run["copy"], run["reverse"], run["translate"], *run["circuits"].values()]
    return float(sum(part["seconds"] for part in parts))


def _circuit(seed: int, name: str) -> dict[str, Any]:
    settings = {
        "train": sparse(seed).to_json(),
        "prune": PRUNINGS[name].to_json(),
        "trust": TrustConfig().to_json(),
    }
    return once(OUT / f"circuit-{seed}-{name}.json", settings, partial(_extracted, seed, name))


def _extracted(seed: int, name: str) -> dict[str, Any]:
    model = kept_training(OUT / f"translate-{seed}.safetensors", sparse(seed)).model
    task = load_task("gender")
    text = load_corpus("translate")
    circuit = prune(model, task, PRUNINGS[name], corpus=text, progress=False)
    circuit.save(OUT / f"gender-{seed}-{name}.json")
    report = trust_report(model, circuit, task, corpus=text)
    kept = {"n_nodes": circuit.n_nodes, "n_edges": circuit.n_edges, "n_io_edges": len(circuit.io_edges)}
    measured = {
        k: circuit.metrics[k]
        for k in (
            "margin_error",
            "margin_ratio",
            "task_loss",
            "task_accuracy",
            "one_minimal",
            "full_task_loss",
        )
    }
    verdicts = {entry.name: entry.verdict for entry in report.entries}
    failed = sorted(name for name, verdict in verdicts.items() if verdict == "fail")
    return {
        **kept,
        **measured,
        "stacks": {s: sum(n.stack == s for n in circuit.nodes) for s in ("encoder", "decoder")},
        "nodes": [str(node) for node in circuit.nodes],
        "verdicts": verdicts,
        "failed": failed,
        "trusted": not failed,
    }


def _headlines(apart: dict[str, dict[str, float]], runs: list[dict[str, Any]]) -> dict[str, Any]:
    circuits = [circuit for run in runs for circuit in run["circuits"].values()]
    by_pruning = {name: [run["circuits"][name] for run in runs] for name in PRUNINGS}
    return {
        "parity_max_abs": max(value for kind in apart.values() for value in kind.values()),
        "parity": apart,
        "copy_accuracy": min(run["copy"]["accuracy"] for run in runs),
        "reverse_accuracy": min(run["reverse"]["accuracy"] for run in runs),
        "translate_accuracy": min(run["translate"]["seen"] for run in runs),
        "held_out_accuracy": min(run["translate"]["held_out"] for run in runs),
        **{
            name: {pruning: median(c[name] for c in own) for pruning, own in by_pruning.items()}
            for name in ("n_nodes", "n_edges", "task_loss", "task_accuracy")
        },
        "one_minimal": sum(c["one_minimal"] for c in circuits),
        "trusted": {name: sum(c["trusted"] for c in own) for name, own in by_pruning.items()},
        "circuits": len(circuits),
        "runs": runs,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    app()
