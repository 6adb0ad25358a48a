"""Near-duplicates: texts of which half stands in others already, found by fingerprints of their stretches.

A stretch is `WIDTH` bytes, white space counted as one space. Of the hashes of all stretches, those that 2**`SAMPLE`
divides are kept, and the smallest one of each text: the same stretch is kept wherever it stands, so that shares of
fingerprints are shares of text. Source: fingerprinting by 0 mod p, Manber 1994; Schleimer, Wilkerson and Aiken 2003
("Winnowing", SIGMOD), section 3.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, UInt64

WIDTH = 32
"""Bytes of a stretch, a power of two: about one line of code."""
SAMPLE = 5
"""One in 2**SAMPLE stretches is kept."""
SHARE = 0.5
"""A text of which this share stands in others is a near-duplicate."""
_BASE = 0x9E3779B97F4A7C15

Prints = UInt64[np.ndarray, " _"]


def fingerprints(pieces: Iterable[str]) -> Prints:
    """Fingerprints of one text, ascending, each once; at least one, so that every text can be compared."""
    parts = [_hashes(piece) for piece in pieces]
    every = np.concatenate(parts) if parts else np.zeros(1, np.uint64)
    kept = every[every >> np.uint64(64 - SAMPLE) == 0]
    return np.unique(np.append(kept, every.min()))


def _hashes(piece: str) -> Prints:
    """Hashes of all stretches of a piece; of the whole piece where it is shorter than one."""
    data = np.frombuffer(b" ".join(piece.encode("utf-8", "surrogatepass").split()), np.uint8)
    data = np.pad(data, (0, max(0, WIDTH - len(data))))
    found, length = data.astype(np.uint64) + np.uint64(1), 1
    while length < WIDTH:  # hash of 2n bytes = hash of the first n * base**n + hash of the next n
        factor = np.uint64(pow(_BASE, length, 2**64))
        found = found[:-length] * factor + found[length:]
        length *= 2
    return _mixed(found)


def _mixed(values: Prints) -> Prints:
    """The finaliser of MurmurHash3: every bit of the input moves every bit of the output."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(factor)
    return values ^ (values >> np.uint64(33))


def repeats(texts: Sequence[Prints]) -> Bool[np.ndarray, " texts"]:
    """Which texts are near-duplicates of what comes before them: of one text, or of several together."""
    if not texts:
        return np.zeros(0, bool)
    owner = np.repeat(np.arange(len(texts)), [len(own) for own in texts])
    _, first, back = np.unique(np.concatenate(texts), return_index=True, return_inverse=True)
    seen_before = owner[first][back] < owner
    return np.bincount(owner, weights=seen_before, minlength=len(texts)) >= SHARE * np.bincount(owner)


def overlap(texts: Sequence[Prints], others: Sequence[Prints]) -> np.ndarray:
    """The share of each text's fingerprints that stand in `others`, all of them together."""
    every = np.unique(np.concatenate(others)) if others else np.zeros(0, np.uint64)
    return np.array([np.isin(own, every, assume_unique=True).mean() for own in texts])


def apart(val: Sequence[Prints], train: Sequence[Prints]) -> tuple[np.ndarray, np.ndarray]:
    """Which texts of val and of train to keep, so that none repeats another: two masks.

    First goes what repeats something before it, val being first: so the validation text stays the same whatever else
    there is to train on. Then goes what of val stands in a longer text of train.
    """
    repeated = repeats([*val, *train])
    keep_val, keep_train = ~repeated[: len(val)], ~repeated[len(val) :]
    kept = [own for own, keep in zip(train, keep_train, strict=True) if keep]
    return keep_val & (overlap(val, kept) < SHARE), keep_train
