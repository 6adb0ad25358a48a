"""The commands `circuits bridge` and `circuits steer`: files in, files out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from circuits.bridges import BridgeConfig, bridge_metrics, chain_losses, fit_bridges, load_bridges
from circuits.bridges.steering import channel_effects, steer
from circuits.circuit.score import check_task
from circuits.commands.shared import beside, load_model
from circuits.files import check_writable, write_json
from circuits.model.checkpoint import save_checkpoint
from circuits.model.transformer import SparseTransformer
from circuits.plots import bridge_figure, chain_figure, headline, table, write_page
from circuits.training.config import TrainConfig
from circuits.training.numbered import Keep
from circuits.training.saved import load_model_alone
from tasks import load_task_for

HEADLINES = {
    "p_foil_before": "probability of the foil before",
    "p_foil_after": "and after the move",
    "control_change": "its change under controls",
}
"""What of a steering is set large on its page, in words."""


def bridge_files(
    dense: Path,
    sparse: Path | None,
    out: Path,
    *,
    config: BridgeConfig,
    steps: int | None = None,
    resume: Path | None = None,
    corpus: str | None = None,
    keep: Keep | None = None,
) -> dict[str, Any]:
    """Fit bridges between two checkpoints, or train the sparse model beside; write them and a page of figures.

    sparse: None trains a model by the toy recipe (for `steps`) and saves it beside `out`. resume, keep: see
    `circuits.commands.shared.beside`. corpus: where the dense model's text is now, if not where it was. Returns the
    report.
    """
    for path in (out, out.with_suffix(".html")):
        check_writable(path)
    model, text = load_model(dense, corpus)
    trained = out.with_name(f"{out.stem}-sparse.safetensors")
    other: SparseTransformer | TrainConfig
    if sparse is None:
        other = TrainConfig.toy(seed=config.seed, corpus=text.name)
        other = replace(
            other, steps=steps or other.steps, model=replace(other.model, n_ctx=model.config.n_ctx)
        )
    else:
        other = load_model_alone(sparse)
        config = replace(config, steps=steps or config.steps)
    stopped, numbered, left = beside(out, keep or Keep(), resume)
    bridges = fit_bridges(model, other, text, config, checkpoint=stopped, resume=left, numbered=numbered)
    bridges.save(out)
    numbered.clear()
    if isinstance(other, TrainConfig):
        save_checkpoint(trained, bridges.sparse, meta={"train": other.to_json()})
    n_pos = min(model.config.n_ctx, bridges.sparse.config.n_ctx)
    tokens = text.windows(64, n_pos, split="val", generator=torch.Generator().manual_seed(1))
    chains = chain_losses(bridges, tokens).tolist()
    plain = bridge_metrics(replace(bridges, pairs=(), maps=torch.nn.ModuleList()), tokens)["loss_dense"]
    summary = bridges.summary()
    figures = [
        bridge_figure(bridges.metrics["locations"]),
        chain_figure(chains, [str(pair) for pair in bridges.pairs], plain=plain),
        table(bridges.metrics["locations"]),
    ]
    page = write_page(out.with_suffix(".html"), title="Bridges", blocks=figures)
    saved = {"bridges": str(out), "sparse": str(sparse or trained), "page": str(page)}
    return {**saved, **{key: value for key, value in summary.items() if value is not None}}


def steer_files(
    bridges: Path,
    dense: Path,
    sparse: Path,
    out: Path,
    *,
    task: str = "quotes",
    location: str,
    channels: Sequence[int] = (),
    n: int = 128,
    seed: int = 0,
) -> dict[str, Any]:
    """Steer a task's test prompts; write the curves as JSON to `out`, and a page of figures. Returns the summary.

    channels: none given takes the one that moves the sparse model furthest on validation prompts.
    """
    for path in (out, out.with_suffix(".html")):
        check_writable(path)
    dense_model, sparse_model = load_model_alone(dense), load_model_alone(sparse)
    prompts = load_task_for(sparse_model.tokenizer, task)
    for model in (dense_model, sparse_model):
        check_task(model, prompts)
    found = load_bridges(bridges, dense=dense_model, sparse=sparse_model)
    pair, _ = found.at(location)
    if not channels:
        effects = channel_effects(sparse_model, prompts.batch(32, split="val", seed=seed), pair.sparse)
        channels = [int(effects.argmax())]
    result = steer(found, prompts.batch(n, split="test", seed=seed), pair, channels, seed=seed)
    write_json(out, result.to_json())
    summary = result.summary()
    numbers = {words: f"{summary[key]:.3f}" for key, words in HEADLINES.items()}
    blocks = [headline(numbers), result.plot()]
    page = write_page(out.with_suffix(".html"), title=f"Steering: {task}", blocks=blocks)
    return {"curves": str(out), "page": str(page), **summary}
