"""A checkpoint in OpenAI's format, of its published size: does it load, run and prune on two cores?

    python -m docs.experiments.interop run    -> docs/results/interop.json

The weights are random and sparse, so that what pruning finds means nothing; size, memory and time do. Logits are held
against a plain forward pass in float64, written from the description of the format. Loading and pruning run in a
process of their own, whose peak of memory is theirs alone.
"""

import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from circuits.files import once, write_results
from circuits.interop.openai import load_openai, read_openai_config
from circuits.interop.openai_config import OpenAIConfig
from circuits.model.sites import SITES
from circuits.pruning import PruneConfig, prune
from tasks import Corpus, from_pairs
from tasks.tokenizer import WordTokenizer

RESULTS, KEPT = Path("docs/results/interop.json"), Path("out/interop")
N_NONZERO = 1_000_000
PUBLISHED: dict[str, Any] = dict(
    block_size=256,
    vocab_size=2048,
    n_layer=8,
    n_head=67,
    d_head=16,
    d_model=1072,
    d_mlp=4288,
    rms_norm=True,
    afrac=0.25,
    afrac_loctypes=",".join(SITES),
    tied_unembed=False,
    enable_bigram_table=True,
    learnable_bigram_table=True,
    sink=True,
)
"""About 118M parameters, in the published proportions."""
FEW = PruneConfig(
    objective="faithful",
    starts=1,
    steps=20,
    batch_size=4,
    n_mean=8,
    n_eval=16,
    n_test=16,
    target_loss=0.5,
    target_accuracy=0.0,
)
"""Every stage of pruning, on few prompts."""

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def run(
    results: Annotated[Path, typer.Option(help="File to write.")] = RESULTS,
    kept: Annotated[Path, typer.Option(help="Folder for the checkpoint and what has been run.")] = KEPT,
) -> dict[str, Any]:
    """Write the checkpoint, load and prune it in a process of its own, compare its logits."""
    started = time.perf_counter()
    if not (kept / "final_model.pt").exists():
        write_checkpoint(kept)
    measured = once(kept / "measured.json", {"config": FEW.to_json()}, lambda: _in_own_process(kept))
    tokens, found = _tokens(), torch.load(kept / "logits.pt", weights_only=True)
    weights = torch.load(kept / "final_model.pt", weights_only=True, mmap=True)
    with torch.no_grad():
        expected = plain_logits(read_openai_config(kept), weights, tokens)
    return write_results(
        results,
        command="python -m docs.experiments.interop run",
        seeds=[0],
        seconds=time.perf_counter() - started,
        numbers={
            "openai_max_abs": float((found.double() - expected).abs().max()),
            "memory_ratio": measured["peak_bytes"] / measured["dense_bytes"],
            **measured,
        },
    )


@app.command()
def measure(folder: Path) -> None:
    """Load and prune the checkpoint of a folder; prints what it took as JSON."""
    before, started = _peak_bytes(), time.perf_counter()
    words = WordTokenizer(name="words", words=tuple(f"w{i}" for i in range(PUBLISHED["vocab_size"])))
    model = load_openai(folder, tokenizer=words)
    loaded = time.perf_counter() - started
    loaded_bytes = _peak_bytes() - before
    with torch.no_grad():
        torch.save(model(_tokens()), folder / "logits.pt")
    stream = torch.randint(0, len(words.words), (20_000,), generator=torch.Generator().manual_seed(1))
    corpus = Corpus(name="noise", tokenizer=words, train=stream, val=stream)
    rows = [(f"w{i} w{i + 1} w1", f"w{i + 1} w{i} w1", f"w{i}", f"w{i + 1}") for i in range(2, 400, 2)]
    started = time.perf_counter()
    circuit = prune(model, from_pairs(rows, words), FEW, corpus=corpus, progress=False)
    report = {
        "seconds": time.perf_counter() - started + loaded,
        "seconds_to_load": loaded,
        "parameters": sum(p.numel() for p in model.parameters()),
        "n_nonzero": model.n_nonzero(),
        "n_candidates": sum(model.widths.values()),
        "n_nodes": circuit.n_nodes,
        "dense_bytes": sum(p.numel() * 4 for p in model.parameters()),
        "loaded_bytes": loaded_bytes,
        "peak_bytes": _peak_bytes() - before,
    }
    sys.stdout.write(json.dumps(report) + "\n")


def write_checkpoint(folder: Path, seed: int = 0) -> None:
    """Random weights of the published size: a million nonzeros, spread evenly; the bigram table is dense."""
    generator = torch.Generator().manual_seed(seed)
    config = OpenAIConfig.read(PUBLISHED)
    shapes = _shapes(config)
    density = N_NONZERO / sum(math.prod(shape) for shape in shapes.values())
    weights = {name: _sparse(shape, density, generator) for name, shape in shapes.items()}
    d, v = config.d_model, config.vocab_size
    for i in range(config.n_layer):
        at = f"transformer.h.{i}."
        weights |= {f"{at}ln_{j}.weight": torch.ones(d) for j in (1, 2)}
        weights[at + "attn.attn_imp.sink_logit"] = torch.zeros(config.n_head)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            weights[f"{at}{name}.bias"] = torch.zeros(len(weights[f"{at}{name}.weight"]))
    weights |= {"transformer.ln_f.weight": torch.ones(d), "final_logits_bias": torch.zeros(v)}
    weights["bigram_table"] = 0.1 * torch.randn(v, v, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "beeg_config.json").write_text(json.dumps(PUBLISHED), encoding="utf-8")
    torch.save(weights, folder / "final_model.pt")


def plain_logits(config: OpenAIConfig, weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits by the description of the format, in float64."""
    wte, wpe = (weights[f"transformer.{name}.weight"].double() for name in ("wte", "wpe"))
    x = wte[tokens] + wpe[: tokens.shape[1]]
    for i in range(config.n_layer):
        own = {
            name.removeprefix(f"transformer.h.{i}."): value.double()
            for name, value in weights.items()
            if name.startswith(f"transformer.h.{i}.")
        }
        x = x + _largest(_attention(config, own, x), config)
        hidden = F.gelu(_affine(own, "mlp.c_fc", _largest(_normed(x), config)))
        x = x + _largest(_affine(own, "mlp.c_proj", _largest(hidden, config)), config)
    logits = _normed(x) @ weights["lm_head.weight"].double().T
    return logits + weights["final_logits_bias"].double() + weights["bigram_table"].double()[tokens]


def _attention(config: OpenAIConfig, own: dict[str, Tensor], x: Tensor) -> Tensor:
    rows, n_pos, _ = x.shape
    read = _affine(own, "attn.c_attn", _largest(_normed(x), config))
    q, k, v = (
        _largest(part.contiguous(), config).view(rows, n_pos, config.n_head, -1).transpose(1, 2)
        for part in read.chunk(3, dim=-1)
    )
    scores = q @ k.transpose(2, 3) / math.sqrt(config.channels)
    grown = scores.exp().tril()
    sink = own["attn.attn_imp.sink_logit"].exp().view(1, -1, 1, 1)
    z = grown / (sink + grown.sum(-1, keepdim=True)) @ v
    return _affine(own, "attn.c_proj", z.transpose(1, 2).flatten(2))


def _affine(own: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ own[f"{name}.weight"].T + own[f"{name}.bias"]


def _normed(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()


def _largest(x: Tensor, config: OpenAIConfig) -> Tensor:
    assert config.afrac is not None, "the published models have AbsTopK"
    k = int(config.afrac * x.shape[-1])
    return torch.zeros_like(x).scatter(-1, x.abs().topk(k).indices, x.gather(-1, x.abs().topk(k).indices))


def _shapes(config: OpenAIConfig) -> dict[str, tuple[int, int]]:
    """Of the matrices whose nonzeros are counted."""
    d, h, m = config.d_model, config.n_head * config.channels, config.neurons
    shapes = {"transformer.wte.weight": (config.vocab_size, d), "lm_head.weight": (config.vocab_size, d)}
    shapes["transformer.wpe.weight"] = (config.block_size, d)
    for at in (f"transformer.h.{i}." for i in range(config.n_layer)):
        shapes |= {f"{at}attn.c_attn.weight": (3 * h, d), f"{at}attn.c_proj.weight": (d, h)}
        shapes |= {f"{at}mlp.c_fc.weight": (m, d), f"{at}mlp.c_proj.weight": (d, m)}
    return shapes


def _sparse(shape: tuple[int, int], density: float, generator: torch.Generator) -> Tensor:
    """Normal entries of size 0.5 at random places."""
    n, total = round(density * math.prod(shape)), math.prod(shape)
    flat = torch.zeros(total)
    flat[torch.randint(0, total, (n,), generator=generator)] = 0.5 * torch.randn(n, generator=generator)
    return flat.view(shape)


def _tokens() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, PUBLISHED["vocab_size"], (2, 32), generator=generator)


def _in_own_process(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "docs.experiments.interop", "measure", str(folder)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return found


def _peak_bytes() -> int:
    """The most memory that this process has held (Linux counts in kilobytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    app()
