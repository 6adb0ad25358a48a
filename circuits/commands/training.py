"""The command that trains, in one process or in several that torchrun starts."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from circuits.commands.shared import (
    AsJson,
    Force,
    KeepLast,
    KeepMinutes,
    KeepSteps,
    SeedOver,
    answer,
    beside,
    check_apart,
    check_free,
    clear_errors,
    configured,
    console,
    load_text,
    read_config,
)
from circuits.files import check_writable

Corpus = Annotated[
    str | None,
    typer.Option(
        help="mini (characters; the default), python (the standard library), packages (installed ones), that of a "
        "toy task (circuits tasks lists them), or the path of a file or folder with text of your own."
    ),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(help="tokenizer.json, or a checkpoint that has one (default: a BPE trained on the text)."),
]
DVocab = Annotated[int | None, typer.Option(help="Tokens of the BPE for text of your own (default: 2,048).")]
Resume = Annotated[
    Path | None,
    typer.Option(
        help="Go on with an interrupted run of the same config: its checkpoint, or (--resume alone) the newest that "
        "belongs to --out; where there is none, from the start, and where the run is finished, not at all."
    ),
]
Device = Annotated[str, typer.Option(help="cpu, or cuda: a GPU, for each process its own.")]
TensorBoard = Annotated[Path | None, typer.Option(help="Folder to write TensorBoard's events to.")]
WandB = Annotated[str | None, typer.Option(help="Project on Weights & Biases to log to.")]


def train(
    corpus: Corpus = None,
    tokenizer: Tokenizer = None,
    d_vocab: DVocab = None,
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")] = Path("out/model.safetensors"),
    minutes: Annotated[
        float | None, typer.Option(help="Stop by the clock (then bits are not repeatable).")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    density: Annotated[float | None, typer.Option(help="Final density, in (0, 1].")] = None,
    recipe: Annotated[str, typer.Option(help="toy, paper or dense.")] = "toy",
    config: Annotated[Path | None, typer.Option(help="JSON with any fields of TrainConfig.")] = None,
    resume: Resume = None,
    keep_minutes: KeepMinutes = 1.0,
    keep_steps: KeepSteps = None,
    keep_last: KeepLast = 3,
    device: Device = "cpu",
    tensorboard: TensorBoard = None,
    wandb: WandB = None,
    seed: SeedOver = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Train a weight-sparse transformer and save it; --resume takes up what was interrupted, or killed.

    Ctrl-C, SIGTERM and SIGHUP leave a checkpoint. While it runs, numbered ones lie in the folder OUT.checkpoints.
    On several cores, GPUs or machines: torchrun --nproc-per-node 2 -m circuits train ...
    """
    with clear_errors():
        from circuits.training.config import TrainConfig, with_new_names
        from circuits.training.numbered import Keep
        from circuits.training.ranks import joined

        given = {"corpus": corpus, "steps": steps, "minutes": minutes, "density": density, "seed": seed}
        file = read_config(config, with_new_names)
        named = str(corpus or file.get("corpus") or "mini")
        base = _preset(recipe, named)(corpus=named).to_json()
        settings = configured(TrainConfig.from_json, config, given, base=base, file=file)
        check_apart(out, config, tokenizer, settings.corpus)
        check_free(out, force=force or resume is not None)
        keep = Keep(steps=keep_steps, minutes=keep_minutes, last=keep_last)
        with joined(device) as ranks:
            text = load_text(settings.corpus, tokenizer, d_vocab)
            logged = {"tensorboard": tensorboard, "wandb": wandb}
            result = _trained(settings, text, out, resume, keep, ranks, logged)
    if ranks.leads:
        answer(_of_training(result, text, out), as_json, title=f"Trained on {text.name}")


def _trained(
    settings: Any, text: Any, out: Path, resume: Path | None, keep: Any, ranks: Any, logged: Any
) -> Any:
    """The run, done to its end, and its checkpoint, which rank 0 writes."""
    from circuits.training.loggers import logs
    from circuits.training.loop import train as run

    stopped, numbered, left = beside(out, keep, resume)
    if isinstance(left, list) and (done := _finished(out, left, settings, text)) is not None:
        if ranks.leads:
            said = f"{out} is finished: there is nothing to go on with."
            console(stderr=True).print(said, highlight=False, soft_wrap=True)
        return done
    if ranks.leads:
        check_writable(out)
    with logs(settings, **(logged if ranks.leads else {})) as log:
        result = run(
            settings,
            corpus=text,
            checkpoint=stopped,
            resume=left,
            numbered=numbered,
            ranks=ranks,
            log=log,
        )
    if ranks.leads:
        result.save(out)
        numbered.clear()
    return result


def _finished(out: Path, left: list[Path], settings: Any, text: Any) -> Any:
    """The run of --out where it is finished; None where there is something to go on with, or to start.

    Raises ValueError where what is finished there is a run of another config.
    """
    from circuits.training.loop import Training, with_vocabulary

    newest = max(
        [*left, *([out] if out.exists() else [])], key=lambda path: path.stat().st_mtime_ns, default=None
    )
    if newest != out:
        return None
    done = Training.load(out, corpus=text)
    if done.config != with_vocabulary(settings, text):
        raise ValueError(
            f"resume: {out} is a finished run of another config ({done.config.to_json()}); expected the same. Choose "
            "another --out, or leave --resume out to write over it."
        )
    return done


def _of_training(result: Any, text: Any, out: Path) -> dict[str, Any]:
    """What there is to say of a finished run."""
    return {
        "model": str(out),
        "corpus": text.name,
        "n_tokens": len(text.train),
        "tokenizer": text.tokenizer.name,
        "val_loss": result.val_loss,
        "density": result.model.density(),
        "n_nonzero": result.model.n_nonzero(),
        "steps": result.history[-1]["step"],
        "seconds": result.seconds,
    }


def _preset(recipe: str, corpus: str) -> Callable[..., Any]:
    """What makes the settings of a recipe: for real text, the toy one is that of real Python."""
    from circuits.training.config import TrainConfig
    from tasks.corpus import CORPORA, MACHINE
    from tasks.near import unknown

    presets: dict[str, Callable[..., Any]] = {
        "toy": TrainConfig.toy if corpus in CORPORA and corpus not in MACHINE else TrainConfig.python,
        "paper": TrainConfig.paper,
        "dense": TrainConfig.dense,
    }
    if recipe not in presets:
        raise ValueError(unknown("recipe", recipe, presets))
    return presets[recipe]
