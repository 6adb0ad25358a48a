"""The explorer's weight and speed in a real browser, and how far its logits are from run_circuit's.

    python -m docs.experiments.explorer                   -> docs/results/explorer.json, docs/explorer.png
    python -m docs.experiments.explorer --picture-only    -> docs/explorer.png

Circuits: a handmade one that closes quotes, one of induction (two layers, composed heads), and random
ones of 300 and of 2,000 nodes with AbsTopK. Times are medians of five fresh pages.
Needs playwright and a Chromium or Chrome on PATH.
"""

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from circuits.circuit.ablation import mean_values
from circuits.circuit.circuit import Circuit
from circuits.circuit.criterion import Criterion
from circuits.circuit.masked import run_circuit
from circuits.circuit.nodes import Node
from circuits.circuit.parts import edges_between
from circuits.decompile.folded import answers_of
from circuits.explorer import to_html
from circuits.explorer.page import code
from circuits.files import write_results
from circuits.handmade import Handmade, induction, quotes
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer
from circuits.plots.snapshot import find_browser
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.zoo import load
from tasks import load_task

RESULTS = Path("docs/results/explorer.json")
PICTURE = Path("docs/explorer.png")
SEED, PAGES, PAIRS = 1, 5, 50
FIRST = "() => performance.getEntriesByType('paint').at(-1).startTime"
RUN = (
    "rows => rows.map(row => [...forward(document.getElementById('explorer').explorer.program, row).logits])"
)
PAN = """() => new Promise((done) => {
  const svg = document.querySelector('.picture'), gaps = []; let last = performance.now(), n = 0;
  const at = (type) => svg.dispatchEvent(new PointerEvent(type, {clientX: 300 + 3 * n, clientY: 500, pointerId: 1}));
  svg.setPointerCapture = () => {}; at('pointerdown');
  const step = (now) => { gaps.push(now - last); last = now; n += 1; at('pointermove');
    n < 60 ? requestAnimationFrame(step) : done(gaps.slice(2)); };
  requestAnimationFrame(step);
})"""


app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def main(
    numbers_only: Annotated[bool, typer.Option("--numbers-only", help="Leave the picture as it is.")] = False,
    picture_only: Annotated[bool, typer.Option("--picture-only", help="Measure nothing.")] = False,
) -> None:
    """Measure and write the results, and draw the picture."""
    from playwright.sync_api import sync_playwright

    started = time.perf_counter()
    made = {} if picture_only else circuits()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        runs = {name: measured(browser, one, Path(folder) / f"{name}.html") for name, one in made.items()}
        if not numbers_only:
            picture(browser, Path(folder) / "shipped.html")
        browser.close()
    if picture_only:
        return
    numbers = {
        "code_bytes": len(code().encode()),
        "data_bytes": runs["quotes"]["page_bytes"] - len(code().encode()),
        "seconds_300": runs["300"]["seconds"],
        "seconds_2000": runs["2000"]["seconds"],
        "seconds_python_300": runs["300"]["seconds_python"],
        "seconds_python_2000": runs["2000"]["seconds_python"],
        "worst_frame_ms": runs["300"]["worst_frame_ms"],
        "max_logit_difference": max(run["max_logit_difference"] for run in runs.values()),
        "runs": runs,
    }
    seconds = time.perf_counter() - started
    command = "python -m docs.experiments.explorer"
    print(write_results(RESULTS, command=command, seeds=[SEED], seconds=seconds, numbers=numbers))


def circuits() -> dict[str, Handmade]:
    """What is measured, by name."""
    return {"quotes": quotes(SEED), "induction": induction(SEED), "300": wide(300), "2000": wide(2000)}


def wide(n_nodes: int) -> Handmade:
    """A circuit of this many nodes of a random model of two layers with sparse weights, on the induction prompts."""
    made = induction(SEED)
    sizes: dict[str, Any] = {
        "d_model": 128,
        "n_heads": 8,
        "d_head": 16,
        "d_mlp": 512,
        "n_ctx": made.task.n_ctx,
    }
    model = SparseTransformer(ModelConfig(d_vocab=made.task.tokenizer.d_vocab, **sizes), seed=SEED)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            kept = torch.rand(parameter.shape, generator=generator) < 0.03
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * kept)
    every = [Node.of(site, i) for site, width in model.widths.items() for i in range(width)]
    nodes = [every[i] for i in torch.randperm(len(every), generator=generator)[:n_nodes].tolist()]
    values = mean_values(model, made.task.batch(64, split="train", seed=0).clean)
    circuit = Circuit(
        nodes=tuple(nodes),
        edges=tuple(edges_between(model, nodes)),
        widths=model.widths,
        n_layers=2,
        d_head=16,
        criterion=Criterion.of(made.task),
        model_hash=model.fingerprint(),
        values=values,
    )
    return replace(made, model=model, circuit=circuit)


def measured(browser: Any, made: Handmade, path: Path) -> dict[str, Any]:
    """Size of a page, seconds to its first picture, frames while it is panned, and its logits against Python's."""
    begun = time.perf_counter()
    to_html(path, made.model, made.circuit, made.task)
    writing = time.perf_counter() - begun
    firsts, frames, difference = [], [], 0.0
    for _ in range(PAGES):
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(path.as_uri())
        page.wait_for_function("() => performance.getEntriesByType('paint').length > 0")
        firsts.append(page.evaluate(FIRST) / 1000)
        frames += page.evaluate(PAN)
        difference = max(difference, _difference(page, made))
        page.close()
    return {
        "n_nodes": made.circuit.n_nodes,
        "n_edges": made.circuit.n_edges,
        "page_bytes": path.stat().st_size,
        "seconds_python": writing,
        "seconds": statistics.median(firsts),
        "frames_per_second": 1000 / statistics.median(frames),
        "worst_frame_ms": max(frames),
        "max_logit_difference": difference,
    }


def picture(browser: Any, path: Path) -> None:
    """The page of the shipped model's quote circuit, which is pruned anew (minutes), as the README shows it."""
    found, task = load("mini-python").training, load_task("quotes")
    config = PruneConfig(seed=found.config.seed)
    to_html(path, found.model, prune(found.model, task, config, corpus=found.corpus), task)
    page = browser.new_page(viewport={"width": 1280, "height": 800}, device_scale_factor=1.5)
    page.goto(path.as_uri())
    page.wait_for_function("() => document.getElementById('explorer').explorer.pairs")
    page.screenshot(path=PICTURE)
    page.close()


def _difference(page: Any, made: Handmade) -> float:
    targets = made.task.batch(PAIRS, split="test", seed=5).tokens_and_targets()
    with torch.no_grad():
        logits = run_circuit(made.model, made.circuit, targets.tokens)
    ends = zip(targets.tokens.tolist(), targets.position.tolist(), strict=True)
    shown = torch.tensor(page.evaluate(RUN, [row[: end + 1] for row, end in ends]))
    own = logits[torch.arange(len(logits)), targets.position][:, answers_of(made.task)]
    return float((shown - own).abs().max())


if __name__ == "__main__":
    app()
