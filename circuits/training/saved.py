"""Trained models from files, ready to be asked: in eval mode, with the tokenizer of the text they were trained on."""

from pathlib import Path

from circuits.model.checkpoint import Checkpoint, load_checkpoint
from circuits.model.transformer import SparseTransformer
from circuits.reading import demand, reading
from tasks import Corpus, load_corpus


def load_trained(path: str | Path) -> tuple[SparseTransformer, Corpus]:
    """The model of any checkpoint, and its corpus: mini-Python where the file names none.

    Raises UnreadableError (a ValueError) for a file that is no checkpoint, or that names a corpus which
    `tasks.load_corpus` does not know.
    """
    saved = load_checkpoint(path)
    with reading(path, "a checkpoint of a model that was trained here"):
        return with_corpus(saved)


def with_corpus(saved: Checkpoint) -> tuple[SparseTransformer, Corpus]:
    """What `load_trained` gives, from a checkpoint that has been read."""
    settings = saved.meta.get("train", {})
    name = settings.get("corpus", "mini") if isinstance(settings, dict) else None
    demand(isinstance(name, str), f"train: got {settings!r}", "settings that name a corpus")
    corpus = load_corpus(name, 0)
    saved.model.tokenizer = corpus.tokenizer
    return saved.model.eval(), corpus
