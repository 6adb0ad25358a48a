"""Trained models from files, ready to be asked: in eval mode, with the tokenizer of the text they were trained on."""

from pathlib import Path

from circuits.model.checkpoint import Checkpoint, load_checkpoint
from circuits.model.text import text_of
from circuits.model.transformer import SparseTransformer
from circuits.reading import demand, reading
from tasks import Corpus, TextId


def load_trained(
    path: str | Path, *, corpus: Corpus | str | Path | None = None
) -> tuple[SparseTransformer, Corpus]:
    """The model of any checkpoint, and the text that it was trained on.

    corpus: the text itself, or where it is now, a name or a path (see `circuits.model.text.text_of`). Of older files,
    which carry no tokenizer, the text is the one that their settings name, mini-Python where they name none, and its
    tokenizer is the model's.
    Raises UnreadableError (a ValueError) for a file that is no checkpoint, and where the text is not found, is another
    one, or has another tokenizer. For the model alone, whatever became of its text: `load_checkpoint(path).model`.

    Examples:
        >>> model, corpus = circuits.training.load_trained(circuits.load("quotes-128").path)
        >>> corpus.name, model.tokenizer == corpus.tokenizer
        ('mini', True)
    """
    return with_corpus(path, load_checkpoint(path), corpus)


def load_model_alone(path: str | Path) -> SparseTransformer:
    """The model of a checkpoint, its tokenizer attached; its text is looked for only where an older file needs it.

    Raises ValueError for a run that was interrupted.
    """
    saved = load_checkpoint(path)
    check_finished(path, saved)
    if saved.model.tokenizer is None:
        return with_corpus(path, saved)[0]
    return saved.model.eval()


def check_finished(path: str | Path, saved: Checkpoint) -> None:
    """Raise ValueError for a run that was interrupted: its density has not yet fallen to what it is to be."""
    if "step" in saved.meta and saved.extra:
        raise ValueError(
            f"model: {path} is a run that was interrupted at step {saved.meta['step']}, with density "
            f"{saved.model.density():.2%}; expected a finished one. Go on with it: circuits train --resume {path} and "
            "the options that it had."
        )


def with_corpus(
    path: str | Path, saved: Checkpoint, corpus: Corpus | str | Path | None = None
) -> tuple[SparseTransformer, Corpus]:
    """What `load_trained` gives, from a checkpoint that has been read."""
    model = saved.model
    with reading(path, "a checkpoint of a model that was trained here"):
        known = _named(saved)
    text = text_of(model, corpus, remembered=known)
    if model.tokenizer is None or model.tokenizer == text.tokenizer:  # one object, and what it has computed
        model.tokenizer = text.tokenizer
    return model.eval(), text


def _named(saved: Checkpoint) -> TextId | None:
    """What a file says of its text: in words of its own, or, in older ones, by the name in its settings."""
    if saved.model.trained_on is not None:
        return saved.model.trained_on
    settings = saved.meta.get("train", {})
    name = settings.get("corpus", "") if isinstance(settings, dict) else None
    demand(isinstance(name, str), f"train: got {settings!r}", "settings that name a corpus")
    return TextId(name=str(name), fingerprint="") if name else None
