"""Do rankings find the heads of circuits that are known, in models that our own board did not compile?

    python -m docs.experiments.rankings run     -> docs/results/rankings.json
    python -m docs.experiments.rankings page    -> its table in docs/explanation/other-models.md

Twelve small GPT-2s are trained to a known algorithm by strict interchange-intervention training: answer f(a, b) of two
words of the prompt, a carried by one head and b by another. Swapping in that head's value from another prompt must give
the answer with that prompt's word; swapping in any other head's must change nothing. The heads named beforehand are the
truth. Sources: Geiger et al. 2022 (arXiv 2112.00826); strictness: Gupta et al. 2024 (InterpBench, arXiv 2407.14494).
What has been run is kept under out/rankings and not run again.
"""

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from circuits.files import once, write_results
from circuits.interop import LensSubject
from circuits.model.sites import Site
from circuits.plots.markdown import made_by, markdown_table, write_between
from circuits.ranking import RankConfig, rank
from tasks import Batch
from tasks.tokenizer import WordTokenizer

RESULTS, KEPT = Path("docs/results/rankings.json"), Path("out/rankings")
N_WORDS, N_POS, N_LAYERS, N_HEADS = 8, 6, 2, 4
WORDS = WordTokenizer(name="w", words=tuple(f"w{i}" for i in range(N_WORDS + 1)))
FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda a, b: (a + b) % N_WORDS,
    "difference": lambda a, b: (a - b) % N_WORDS,
    "greater": torch.maximum,
    "less": torch.minimum,
    "same": lambda a, b: (a == b).long(),
    "first": lambda a, b: a,
}
"""What the answer is of the two words; `first` needs one head alone."""
METHODS = (
    "gates",
    "EAP",
    "EAP-IG",
    "attribution patching",
    "activation patching",
    "single ablation",
    "random",
)
"""Of heads; EAP's score of a head, the sum over its outgoing edges, is attribution patching's by definition."""
PAGE = Path("docs/explanation/other-models.md")
MARKS = ("<!-- rankings: begin -->", "<!-- rankings: end -->")
SEEDS = (0, 1)
"""Two models for each function."""
LEAST = 0.95
"""Share of right answers, plain and under every swap, from which on a model counts."""

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@dataclass(frozen=True, kw_only=True)
class Known:
    """A task, and the heads that are to carry its words."""

    function: str
    seed: int
    name: str = "known"
    n_ctx: int = N_POS
    tokenizer: WordTokenizer = WORDS

    @property
    def places(self) -> tuple[int, int]:
        """Where the two words stand."""
        one, two = self._rng("places").sample(range(N_POS - 1), 2)
        return one, two

    @property
    def heads(self) -> tuple[tuple[int, int], ...]:
        """Layer and number of the head that carries the first word, and of that for the second where it counts."""
        every = [(layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)]
        return tuple(self._rng("heads").sample(every, 1 if self.function == "first" else 2))

    def _rng(self, what: str) -> random.Random:
        return random.Random(f"{self.function}/{self.seed}/{what}")

    def answers(self, tokens: Tensor, other: Tensor | None = None, swapped: int | None = None) -> Tensor:
        """The answer to each row; swapped: with this word (0 or 1) taken from `other`."""
        words = [tokens[:, place] for place in self.places]
        if other is not None and swapped is not None:
            words[swapped] = other[:, self.places[swapped]]
        return FUNCTIONS[self.function](*words)

    def prompts(self, n: int, generator: torch.Generator) -> Tensor:
        """Random words, and a last one that asks."""
        words = torch.randint(N_WORDS, (n, N_POS - 1), generator=generator)
        return torch.cat([words, torch.full((n, 1), N_WORDS)], dim=1)

    def solve(self, text: str) -> str:
        """The answer to a prompt."""
        tokens = torch.tensor([[int(word[1:]) for word in text.split()]])
        return f"w{int(self.answers(tokens))}"

    def batch(self, n: int, *, split: str, seed: int) -> Batch:
        """Pairs that differ in one of the two words, and in the answer."""
        generator = torch.Generator().manual_seed(1000 * len(split) + seed)
        clean = self.prompts(16 * n + 64, generator)
        corrupt, rows = clean.clone(), torch.arange(len(clean))
        changed = torch.tensor(self.places)[torch.randint(2, (len(clean),), generator=generator)]
        corrupt[rows, changed] = torch.randint(N_WORDS, (len(clean),), generator=generator)
        answer, foil = self.answers(clean), self.answers(corrupt)
        kept = (answer != foil).nonzero()[:n, 0]
        position = torch.full((n,), N_POS - 1)
        return Batch(
            clean=clean[kept], corrupt=corrupt[kept], answer=answer[kept], foil=foil[kept], position=position
        )


@app.command()
def run(
    steps: Annotated[int, typer.Option(help="Training steps of each model.")] = 3000,
    results: Annotated[Path, typer.Option(help="File to write.")] = RESULTS,
    kept: Annotated[Path, typer.Option(help="Folder for what has been run.")] = KEPT,
) -> dict[str, Any]:
    """Train every model, rank its heads by every method, hold the rankings against the truth."""
    started = time.perf_counter()
    found = []
    for task in (Known(function=name, seed=seed) for name in FUNCTIONS for seed in SEEDS):
        settings = {"function": task.function, "seed": task.seed, "steps": steps, "methods": METHODS}
        path = kept / f"{task.function}-{task.seed}.json"
        found.append(once(path, settings, partial(measured, task, steps)))
        Console().print(found[-1])
    good = [one for one in found if one["least_right"] >= LEAST]
    numbers = {
        "models": len(good),
        "models_left_out": len(found) - len(good),
        "auroc": {method: _mean([one["auroc"][method] for one in good]) for method in METHODS},
        "per_model": found,
    }
    seconds = time.perf_counter() - started
    command = "python -m docs.experiments.rankings run"
    return write_results(results, command=command, seeds=list(SEEDS), seconds=seconds, numbers=numbers)


@app.command()
def page() -> None:
    """Write the table of the results file into the page on other people's models."""
    write_between(PAGE, *MARKS, table(json.loads(RESULTS.read_text())))


def table(report: Mapping[str, Any]) -> str:
    """Every method's AUROC over the models that count, the worst beside the mean."""
    good = [one for one in report["per_model"] if one["least_right"] >= LEAST]
    rows = [
        [method, f"{report['auroc'][method]:.2f}", f"{min(one['auroc'][method] for one in good):.2f}"]
        for method in METHODS
    ]
    head = markdown_table(["method", "AUROC of heads, mean", "worst model"], rows, numeric=range(1, 3))
    left = f"{report['models']} models count, {report['models_left_out']} did not come to be what it should."
    return f"{head}\n\n{left}\n\n{made_by(report)}"


def measured(task: Known, steps: int) -> dict[str, Any]:
    """A model for the task: whether it came to be what it should, and the AUROC of each method's heads."""
    subject = trained(task, steps)
    right = shares_right(subject, task)
    config = RankConfig(seed=task.seed)
    scores = {method: rank(subject, task, method=method, config=config).scores for method in METHODS}
    return {
        "function": task.function,
        "seed": task.seed,
        "heads": [f"L{layer}H{head}" for layer, head in task.heads],
        "least_right": min(right.values()),
        "right": right,
        "auroc": {method: auroc(own, task.heads) for method, own in scores.items()},
    }


def trained(task: Known, steps: int, batch_size: int = 128) -> LensSubject:
    """A small GPT-2 under strict interchange-intervention training; each step: the plain loss and that of one swap."""
    torch.manual_seed(task.seed)
    subject = LensSubject(_bridge(), sites=("attn_head",))
    optimizer = torch.optim.AdamW(subject.bridge.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)
    generator, rng = torch.Generator().manual_seed(task.seed), random.Random(task.seed)
    every = [(layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)]
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        base, other = (task.prompts(batch_size, generator) for _ in range(2))
        head = rng.choice(task.heads) if step % 2 else rng.choice(every)
        plain = F.cross_entropy(subject(base)[:, -1], task.answers(base))
        loss = plain + F.cross_entropy(swapped(subject, head, base, other), expected(task, head, base, other))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return subject


def swapped(subject: LensSubject, head: tuple[int, int], base: Tensor, other: Tensor) -> Tensor:
    """Logits at the last token while one head carries what it carries on another prompt."""
    name, number = subject.hook_name(Site(head[0], "attn_head")), head[1]
    seen: list[Tensor] = []

    def put(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, :, number] = seen[0][:, :, number]
        return z

    with subject.hooks([(name, lambda z, hook: seen.append(z))]):
        subject(other)
    with subject.hooks([(name, put)]):
        logits: Tensor = subject(base)[:, -1]
    return logits


def expected(task: Known, head: tuple[int, int], base: Tensor, other: Tensor) -> Tensor:
    """The algorithm's answer under such a swap."""
    return task.answers(base, other, task.heads.index(head) if head in task.heads else None)


def shares_right(subject: LensSubject, task: Known, n: int = 512) -> dict[str, float]:
    """Shares of right answers on new prompts: plain, and under a swap of each head."""
    base, other = (task.prompts(n, torch.Generator().manual_seed(10_000 + i)) for i in range(2))
    with torch.no_grad():
        found = {"plain": _share(subject(base)[:, -1], task.answers(base))}
        for head in ((layer, number) for layer in range(N_LAYERS) for number in range(N_HEADS)):
            logits = swapped(subject, head, base, other)
            found[f"L{head[0]}H{head[1]}"] = _share(logits, expected(task, head, base, other))
    return found


def auroc(scores: Any, heads: Sequence[tuple[int, int]]) -> float:
    """Chance that a true head scores above another one; ties count half."""
    rows = [(float(s), (site.layer, i) in heads) for site, own in scores.items() for i, s in enumerate(own)]
    true, rest = ([s for s, is_true in rows if is_true is kind] for kind in (True, False))
    wins = sum((t > r) + 0.5 * (t == r) for t in true for r in rest)
    return wins / (len(true) * len(rest))


def _bridge() -> Any:
    shape: dict[str, Any] = dict(
        n_layer=N_LAYERS, n_head=N_HEADS, n_embd=32, vocab_size=N_WORDS + 1, n_positions=N_POS
    )
    model: Any = GPT2LMHeadModel(GPT2Config(**shape, initializer_range=0.08)).eval()
    return wrapped(model, N_WORDS + 1)


def wrapped(model: Any, n_words: int) -> Any:
    """A Hugging Face model in TransformerLens's wrapper, in eval mode, with words w0, w1, ... for its tokens."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(n_words)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = dict.fromkeys(("eos_token", "pad_token", "unk_token"), "w0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **marks)
    model.config.architectures = [type(model).__name__]
    return TransformerBridge.boot_transformers("local", hf_model=model.eval(), tokenizer=tokenizer).eval()


def _share(logits: Tensor, answers: Tensor) -> float:
    return float((logits.argmax(-1) == answers).float().mean())


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


if __name__ == "__main__":
    app()
