"""What an encoder-decoder says to a source: greedily, or by beam search with a length penalty.

With `cache` each step runs the new tokens alone, on remembered keys and values; without it, the target so far. Both
run the model's own layers, hooks included.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.model.kinds import of_ours
from circuits.model.mixers.past import Past
from circuits.model.tokens import check_tokens
from circuits.model.transformer import SparseTransformer


class Said(NamedTuple):
    """One translation."""

    tokens: list[int]
    """What was said, without the first token and without the end."""
    log_prob: float
    """Of these tokens, and of the end where it was said, in nats."""
    score: float
    """log_prob over the length penalty; what a beam search ranks by."""
    ended: bool
    """Whether the end was said, or the room ran out first."""


@of_ours
def translate(
    model: SparseTransformer,
    source: Int[Tensor, "batch source"],
    *,
    start: int,
    end: int,
    beam: int = 1,
    length_penalty: float = 0.6,
    max_tokens: int | None = None,
    cache: bool = True,
) -> list[Said]:
    """The best translation that was found of each source [batch, n_source], padding included.

    start, end: the tokens that a target begins and ends with. beam: hypotheses that are kept; 1 is greedy. A finished
    one of n tokens, its end counted, ranks by `log_prob / ((5 + n) / 6) ** length_penalty`; the search stops when no
    open one can still win. max_tokens: room, end included (default: all that the model's rows have). Raises
    ValueError for a model without an encoder, a source of another width, or settings out of range.
    Source: Vaswani et al. 2017, section 6.1; Wu et al. 2016 (arXiv 1609.08144), equation 14.
    """
    room = _room(model, source, max_tokens)
    _check(model, source, beam, length_penalty, start, end)
    with torch.inference_mode(False), torch.no_grad(), model.turn:
        if beam == 1:
            return _greedy(_Steps(model, source, start, cache), end, room, length_penalty)
        return [
            _beam(_Steps(model, row[None], start, cache), end, room, beam, length_penalty) for row in source
        ]


def penalty(n_tokens: int, power: float) -> float:
    """`((5 + n) / 6) ** power`: what log-probabilities of n tokens are divided by."""
    return float(((5 + n_tokens) / 6) ** power)


class _Steps:
    """Hypotheses in parallel, and the log-probabilities of their next tokens."""

    def __init__(self, model: SparseTransformer, source: Tensor, start: int, cache: bool) -> None:
        self.model, self.past = model, Past() if cache else None
        self.memory = model.encode(source)
        self.real = model.given.real
        self.targets = torch.full((len(source), 1), start, device=source.device)

    def next(self) -> Float[Tensor, "row d_vocab"]:
        """Log-probabilities of what comes next, for every hypothesis."""
        with _remembering(self.model, self.past, self.real):
            if self.past is None:
                logits = self.model.decode(self.targets, self.memory)
            else:
                first = self.targets.shape[1] - 1
                logits = self.model.decode(self.targets[:, -1:], self.memory, first=first)
        return logits[:, -1].log_softmax(-1)

    def grow(self, rows: Tensor, tokens: Tensor) -> None:
        """Go on with these hypotheses, each with one more token."""
        self.targets = torch.cat([self.targets[rows], tokens[:, None]], dim=1)
        self.memory = self.memory[rows]
        self.real = None if self.real is None else self.real[rows]
        if self.past is not None:
            self.past.reorder(rows)


def _greedy(steps: _Steps, end: int, room: int, power: float) -> list[Said]:
    n = len(steps.targets)
    total, length, open = torch.zeros(n), torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.bool)
    for _ in range(room):
        best, token = steps.next().cpu().max(-1)
        total, length = total + best * open, length + open
        open = open & (token != end)
        steps.grow(torch.arange(n), token.to(steps.targets))
        if not open.any():
            break
    return [
        _said(row[1 : 1 + int(size)].tolist(), float(sum), end, power)
        for row, size, sum in zip(steps.targets, length, total, strict=True)
    ]


def _beam(steps: _Steps, end: int, room: int, width: int, power: float) -> Said:
    """One source: of all continuations the `width` likeliest; those that end are put aside, the others go on."""
    total = torch.zeros(1, device=steps.targets.device)
    best: Said | None = None
    for _ in range(room):
        scores = total[:, None] + steps.next()
        top, flat = scores.flatten().topk(min(width, scores.numel()))
        rows, tokens = flat // scores.shape[1], flat % scores.shape[1]
        over = tokens == end
        for row, log_prob in zip(rows[over].tolist(), top[over].tolist(), strict=True):
            said = _said([*steps.targets[row, 1:].tolist(), end], log_prob, end, power)
            best = said if best is None or said.score > best.score else best
        total = top[~over]
        if not len(total) or (best is not None and best.score >= float(total[0]) / penalty(room, power)):
            break  # log-probabilities only fall, and no penalty is greater than that of the longest
        steps.grow(rows[~over], tokens[~over])
    return best or _said(steps.targets[0, 1:].tolist(), float(total[0]), end, power)


def _said(tokens: list[int], log_prob: float, end: int, power: float) -> Said:
    ended = bool(tokens) and tokens[-1] == end
    score = log_prob / penalty(len(tokens), power)
    return Said(tokens[:-1] if ended else tokens, log_prob, score, ended)


@contextmanager
def _remembering(model: SparseTransformer, past: Past | None, real: Tensor | None) -> Iterator[None]:
    """Inside, attention layers see this padding, and go on from what they remember."""
    given = model.given
    before = given.past, given.real
    try:
        given.past, given.real = past, real
        yield
    finally:
        given.past, given.real = before


def _room(model: SparseTransformer, source: Tensor, max_tokens: int | None) -> int:
    whole = model.config.n_ctx - model.config.n_source
    room = whole if max_tokens is None else max_tokens
    if not 1 <= room <= whole:
        raise ValueError(f"max_tokens: got {room}; expected 1 to {whole}, the places of the model's targets.")
    return room


def _check(
    model: SparseTransformer, source: Tensor, beam: int, length_penalty: float, start: int, end: int
) -> None:
    if model.encoder is None:
        raise ValueError(
            "model: it has arch='decoder'; expected 'encdec'. A decoder alone has no source to translate."
        )
    check_tokens(source)
    n, d_vocab = model.config.n_source, model.d_vocab
    if source.shape[1] != n:
        raise ValueError(
            f"source: got {source.shape[1]} places; expected n_source = {n}. Fill up with pad = {model.config.pad}."
        )
    if source.numel() and not 0 <= int(source.min()) <= int(source.max()) < d_vocab:
        raise ValueError(
            f"source: got ids {int(source.min())} to {int(source.max())}; expected 0 to {d_vocab - 1}."
        )
    for name, token in (("start", start), ("end", end)):
        if not 0 <= token < d_vocab:
            raise ValueError(f"{name}: got {token}; expected a token from 0 to {d_vocab - 1}.")
    if beam < 1 or length_penalty < 0:
        raise ValueError(
            f"beam, length_penalty: got {beam}, {length_penalty}; expected at least 1 and at least 0."
        )
