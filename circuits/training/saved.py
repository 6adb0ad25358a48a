"""Trained models from files, ready to be asked: in eval mode, with the tokenizer of the text they were trained on."""

from pathlib import Path

from circuits.model.checkpoint import Checkpoint, load_checkpoint
from circuits.model.transformer import SparseTransformer
from tasks import Corpus, load_corpus


def load_trained(path: str | Path) -> tuple[SparseTransformer, Corpus]:
    """The model of any checkpoint, and its corpus: mini-Python where the file names none.

    Raises ValueError for a file that is no checkpoint, or that names a corpus which `tasks.load_corpus` does not know.
    """
    return with_corpus(load_checkpoint(path))


def with_corpus(saved: Checkpoint) -> tuple[SparseTransformer, Corpus]:
    """What `load_trained` gives, from a checkpoint that has been read."""
    corpus = load_corpus(saved.meta.get("train", {}).get("corpus", "mini"), 0)
    saved.model.tokenizer = corpus.tokenizer
    return saved.model.eval(), corpus
