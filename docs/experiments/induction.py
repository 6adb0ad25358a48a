"""Induction heads of small dense models: found from weights, from patterns, and by path patching, do they agree?

    python -m docs.experiments.induction heads --seeds 5        -> docs/results/induction_heads.json

A model of two layers learns sequences of random letters that come again and again, at a distance that varies from
one sequence to the next. Only the part that repeats is scored: everything else is chance.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from jaxtyping import Bool, Int64
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from circuits.composition import composition_on_data
from circuits.files import mean, once, write_results
from circuits.heads import head_report, induction_scores, repeated_tokens
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer
from circuits.statistics import spearman
from circuits.training.config import TrainConfig
from circuits.training.updates import Updates
from tasks.tokenizer import LETTERS, WordTokenizer

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)
RESULTS, OUT = Path("docs/results"), Path("out/induction")
TOKENIZER = WordTokenizer(name="letters", words=tuple(LETTERS))
MODEL = ModelConfig(
    d_vocab=len(LETTERS), n_layers=2, d_model=64, n_heads=4, d_head=16, d_mlp=64, n_ctx=40, bigram=False
)
SHORTEST_ROUND = 4
AGREE = ("heads_agree", "paths_agree", "strongest_agree", "pairs_agree")
"""The last two ask for the very same head among several that do the same, the first two for the same circuit."""
STEPS = 800
"""About 25 seconds on one core."""


@app.callback()
def main() -> None:
    """Induction heads of small dense models."""


@app.command()
def heads(seeds: Annotated[int, typer.Option(help="Models, each trained anew.")] = 5) -> None:
    """Train models, find their induction heads in three ways, and compare."""
    Console().print({k: v for k, v in run_heads(seeds).items() if k != "runs"})


def run_heads(n_seeds: int, *, results: Path = RESULTS / "induction_heads.json") -> dict[str, Any]:
    """One run a seed; writes the results file after each."""
    runs: list[dict[str, Any]] = []
    for seed in range(n_seeds):
        settings = {"train": induction_config(seed).to_json()}
        found = once(OUT / f"{seed}.json", settings, partial(_one, seed))
        runs.append({"seed": seed, **found, "paths_agree": paths_agree(found)})
        numbers = {
            "accuracy": min(run["accuracy"] for run in runs),
            **{name: sum(run[name] for run in runs) for name in AGREE},
            "rank_correlation": mean([run["rank_correlation"] for run in runs]),
            "models": len(runs),
            "runs": runs,
        }
        command = f"python -m docs.experiments.induction heads --seeds {n_seeds}"
        seconds = sum(run["seconds"] for run in runs)
        report = write_results(
            results, command=command, seeds=range(n_seeds), seconds=seconds, numbers=numbers
        )
    return report


def induction_config(seed: int = 0, *, steps: int = STEPS) -> TrainConfig:
    """Dense, without weight decay; the learning rate rises for 50 steps and falls linearly to 0."""
    return TrainConfig.dense(
        model=MODEL, steps=steps, seed=seed, batch_size=64, weight_decay=0.0, warmup=50 / steps
    )


def train_induction(seed: int = 0, *, steps: int = STEPS) -> SparseTransformer:
    """A dense model of two layers, trained on `repeated_letters`; the same seed gives the same bits."""
    config = induction_config(seed, steps=steps)
    model = SparseTransformer(config.model, seed=seed, tokenizer=TOKENIZER)
    updates, generator = Updates(model, config), torch.Generator().manual_seed(seed)
    for step in range(steps):
        tokens, again = repeated_letters(config.batch_size, generator)
        where = again[:, 1:]
        updates(F.cross_entropy(model(tokens)[:, :-1][where], tokens[:, 1:][where]), step / steps)
    return model.eval()


def repeated_letters(
    n: int, generator: torch.Generator
) -> tuple[Int64[Tensor, "n pos"], Bool[Tensor, "n pos"]]:
    """Sequences of random letters over and over, 4 to 20 a round, and where they repeat what was said before."""
    n_ctx, d_vocab = MODEL.n_ctx, len(LETTERS)
    length = torch.randint(SHORTEST_ROUND, n_ctx // 2 + 1, (n, 1), generator=generator)
    letters = torch.randint(d_vocab, (n, n_ctx), generator=generator)
    at = torch.arange(n_ctx)[None]
    return letters.gather(1, at % length), at >= length


def accuracy(model: SparseTransformer, *, n: int = 256) -> float:
    """Share of repeated letters that get the highest logit, on sequences that training does not draw."""
    tokens, again = repeated_letters(n, torch.Generator().manual_seed(10_000))
    with torch.no_grad():
        right = model(tokens)[:, :-1].argmax(-1) == tokens[:, 1:]
    return float(right[again[:, 1:]].float().mean())


def compare_ways(model: SparseTransformer) -> dict[str, Any]:
    """Induction heads, and the strongest pair of an earlier head and an induction head, found in each way.

    From weights: heads with at least half the largest induction score; the pair with the largest. From patterns:
    heads that `head_report` calls induction heads. By path patching: the path, over all pairs of heads and all of
    Q, K and V, that changes the later head's output most.
    """
    report = head_report(model)
    best = report.top("induction_nats", 1)[0]
    by_weights = [row.label for row in report.rows if row.induction_nats >= best.induction_nats / 2 > 0]
    by_patterns = [row.label for row in report.rows if row.kind == "induction"]
    pairs = _pairs(model)
    return {
        "induction_heads_by_weights": by_weights,
        "induction_heads_by_patterns": by_patterns,
        "heads_agree": by_weights == by_patterns,
        "strongest_by_weights": best.label,
        "strongest_by_patterns": report.top("induction", 1)[0].label,
        "strongest_agree": best.label == report.top("induction", 1)[0].label,
        "previous_by_weights": report.top("previous_from_weights", 1)[0].label,
        "previous_by_patterns": report.top("previous", 1)[0].label,
        **pairs,
    }


def paths_agree(ways: dict[str, Any]) -> bool:
    """Whether weights and path patching find the same circuit: the head that both weights and patterns call the
    strongest previous-token head, read through K by one of the induction heads.
    """
    starts = {ways["previous_by_weights"], ways["previous_by_patterns"]}
    ends = {f"{head}.K" for head in ways["induction_heads_by_patterns"]}
    pairs = [ways[name].split(" -> ") for name in ("pair_by_weights", "pair_by_patching")]
    return all({writer} == starts and reader in ends for writer, reader in pairs)


def _pairs(model: SparseTransformer) -> dict[str, Any]:
    """The strongest pair from weights and by path patching, and the rank correlation over all K-paths."""
    data = composition_on_data(model, repeated_tokens(model, n=8))
    names, scores = [f"{writer} -> {reader}" for writer, reader in data.pairs], induction_scores(model)
    keys = [i for i, (_, reader) in enumerate(data.pairs) if reader.port == "K"]
    from_weights = torch.stack(
        [scores[w.layer, w.number, r.layer, r.number] for w, r in (data.pairs[i] for i in keys)]
    )
    by_weights, by_patching = names[keys[int(from_weights.argmax())]], names[int(data.effect.argmax())]
    return {
        "pair_by_weights": by_weights,
        "pair_by_patching": by_patching,
        "pairs_agree": by_weights == by_patching,
        "rank_correlation": spearman(from_weights, data.effect[keys]),
    }


def _one(seed: int) -> dict[str, Any]:
    model = train_induction(seed)
    return {"accuracy": accuracy(model), **compare_ways(model)}


if __name__ == "__main__":
    app()
