"""The commands about two models: bridge and steer."""

from pathlib import Path
from typing import Annotated

import typer

from circuits.commands.shared import (
    AsJson,
    Force,
    KeepLast,
    KeepMinutes,
    KeepSteps,
    OwnCorpus,
    Seed,
    SeedOver,
    answer,
    check_apart,
    check_free,
    clear_errors,
    configured,
    say_replaced,
)


def bridge(
    dense: Annotated[Path, typer.Argument(help="Checkpoint of the dense model.")],
    sparse: Annotated[
        Path | None,
        typer.Argument(help="Checkpoint of the sparse model; none: train one beside the bridges."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Bridges to write.")] = Path("out/bridges.safetensors"),
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    config: Annotated[Path | None, typer.Option(help="JSON with any fields of BridgeConfig.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="File that was left of the same fit, or (--resume alone) the newest that belongs to --out; where "
            "there is none, from the start."
        ),
    ] = None,
    keep_minutes: KeepMinutes = 1.0,
    keep_steps: KeepSteps = None,
    keep_last: KeepLast = 3,
    corpus: OwnCorpus = None,
    seed: SeedOver = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Fit bridges between a dense and a sparse model, and write a page with what they are worth.

    Ctrl-C leaves a file that --resume takes up. While it runs, numbered ones lie in the folder OUT.checkpoints.
    """
    with clear_errors():
        from circuits.bridges import BridgeConfig
        from circuits.commands.bridge_files import bridge_files
        from circuits.training.numbered import Keep

        settings = configured(BridgeConfig.from_json, config, {"seed": seed})
        made = [] if sparse else [out.with_name(f"{out.stem}-sparse.safetensors")]
        for path in (out, out.with_suffix(".html"), *made):
            check_apart(path, dense, sparse, config)
        check_free(out, *made, force=force or resume is not None)
        say_replaced(out.with_suffix(".html"))
        keep = Keep(steps=keep_steps, minutes=keep_minutes, last=keep_last)
        report = bridge_files(
            dense, sparse, out, config=settings, steps=steps, resume=resume, corpus=corpus, keep=keep
        )
    answer(report, as_json, title="Bridges")


def steer(
    bridges: Annotated[Path, typer.Argument(help="Bridges that `circuits bridge` wrote.")],
    dense: Annotated[Path, typer.Argument(help="Checkpoint of the dense model.")],
    sparse: Annotated[Path, typer.Argument(help="Checkpoint of the sparse model.")],
    location: Annotated[str, typer.Option(help="embed, or a layer's attn or mlp, such as 1.attn.")],
    channel: Annotated[
        list[int] | None,
        typer.Option(help="Sparse channel to move, repeatable; none: the one that moves most."),
    ] = None,
    task: Annotated[str, typer.Option(help="Task whose prompts are steered.")] = "quotes",
    out: Annotated[Path, typer.Option(help="Curves to write.")] = Path("out/steering.json"),
    seed: Seed = 0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Move channels of the sparse model, carry the move across a bridge, and sweep its strength."""
    with clear_errors():
        from circuits.commands.bridge_files import steer_files

        for path in (out, out.with_suffix(".html")):
            check_apart(path, bridges, dense, sparse)
        check_free(out, force=force)
        say_replaced(out.with_suffix(".html"))
        report = steer_files(
            bridges, dense, sparse, out, task=task, location=location, channels=channel or (), seed=seed
        )
    answer(report, as_json, title=f"Steering {task}")
