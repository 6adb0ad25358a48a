"""What counting alone achieves: a trigram to compare losses with, a bigram table to start a model from."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from tasks.base import Corpus

Counts = Int64[np.ndarray, " kinds"]
_AT_ONCE = 2**23
"""Tokens that are counted in one go: a stream may be longer than memory."""


def bigram_log_probs(corpus: Corpus, *, alpha: float = 0.05) -> Float[Tensor, "d_vocab d_vocab"]:
    """log P(next | current) in nats on the training stream; row = current token, float32.

    `alpha` > 0 is added to every count. ValueError otherwise.

    Examples:
        >>> corpus = tasks.load_corpus("induction")
        >>> tasks.bigram_log_probs(corpus).shape
        torch.Size([27, 27])
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be a positive number of counts, got {alpha}")
    d_vocab = corpus.tokenizer.d_vocab
    counts = torch.full((d_vocab**2,), alpha, dtype=torch.float64)
    for first in range(0, len(corpus.train) - 1, _AT_ONCE):
        stream = corpus.train[first : first + _AT_ONCE + 1].long()
        counts += torch.bincount(stream[:-1] * d_vocab + stream[1:], minlength=d_vocab**2)
    counts = counts.view(d_vocab, d_vocab)
    return (counts / counts.sum(1, keepdim=True)).log().float()


def trigram_loss(corpus: Corpus) -> float:
    """Nats per token of the validation stream, its first two tokens left out, under an interpolated trigram.

    Modified Kneser-Ney, three discounts per order, estimated from the training stream (Chen and Goodman, "An
    Empirical Study of Smoothing Techniques for Language Modeling", 1999). ValueError for streams too short.

    Examples:
        >>> round(tasks.trigram_loss(tasks.load_corpus("induction")), 1)
        3.4
    """
    log_probs = np.log(trigram_probs(corpus.train.numpy(), corpus.val.numpy(), corpus.tokenizer.d_vocab))
    return float(-log_probs.mean())


def trigram_probs(
    train: Int[np.ndarray, " n_train"], tokens: Int[np.ndarray, " n"], d_vocab: int
) -> Float64[np.ndarray, " n_minus_2"]:
    """P(token | the two before it) for each of `tokens` from the third on; over all ids they sum to 1."""
    if len(train) < 3 or len(tokens) < 3:
        raise ValueError(f"a trigram needs streams of at least 3 tokens, got {len(train)} and {len(tokens)}")
    trigrams, counts = np.unique(_join(train, 3, d_vocab), return_counts=True)
    # Below the highest order, what counts is in how many different contexts something was seen.
    bigrams, bigram_counts = np.unique(trigrams % d_vocab**2, return_counts=True)
    unigrams, unigram_counts = np.unique(bigrams % d_vocab, return_counts=True)
    probs = np.full(len(tokens) - 2, 1 / d_vocab)
    for order, kinds, kind_counts in (
        (1, unigrams, unigram_counts),
        (2, bigrams, bigram_counts),
        (3, trigrams, counts),
    ):
        level = _Level.count(kinds, kind_counts, d_vocab)
        probs = level.interpolate(_join(tokens, order, d_vocab)[3 - order :], probs, d_vocab)
    return probs


@dataclass(frozen=True, kw_only=True)
class _Level:
    """One order of the model: n-grams as ascending integers, their last token the lowest digit."""

    kinds: np.ndarray
    discounted: np.ndarray
    """Count of each kind less its discount."""
    contexts: np.ndarray
    totals: np.ndarray
    """Sum of the counts in each context."""
    freed: np.ndarray
    """Sum of the discounts in each context, to be shared out by the order below."""

    @classmethod
    def count(cls, kinds: Counts, counts: Counts, d_vocab: int) -> "_Level":
        discount = _discounts(counts)[np.minimum(counts, 3)]
        contexts, first = np.unique(kinds // d_vocab, return_index=True)
        return cls(
            kinds=kinds,
            discounted=counts - discount,
            contexts=contexts,
            totals=np.add.reduceat(counts, first),
            freed=np.add.reduceat(discount, first),
        )

    def interpolate(
        self,
        ngrams: Int64[np.ndarray, " n"],
        lower: Float64[np.ndarray, " n"],
        d_vocab: int,
    ) -> Float64[np.ndarray, " n"]:
        """Probability of each n-gram's last token; `lower` where the context was never seen."""
        kind, known = _find(self.kinds, ngrams)
        context, seen = _find(self.contexts, ngrams // d_vocab)
        own = np.where(known, self.discounted[kind], 0.0)
        return np.where(seen, (own + self.freed[context] * lower) / self.totals[context], lower)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """What to take off a count of 0, 1, 2, and 3 or more."""
    n = np.bincount(np.minimum(counts, 5), minlength=5)[:5].astype(float)
    shrink = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.0
    k = np.arange(1, 4)
    raw = k - (k + 1) * shrink * n[2:] / np.maximum(n[1:4], 1)
    # A toy stream may hold no rare kind at all; something must still be left for the unseen.
    return np.concatenate([[0.0], np.clip(raw, 0.05, k - 0.05)])


def _join(tokens: np.ndarray, order: int, d_vocab: int) -> np.ndarray:
    """Every run of `order` tokens as one integer."""
    n = len(tokens) - order + 1
    joined = np.zeros(n, dtype=np.int64)
    for i in range(order):
        joined = joined * d_vocab + tokens[i : i + n]
    return joined


def _find(ascending: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of each wanted value, and whether it is there at all."""
    index = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return index, ascending[index] == wanted
