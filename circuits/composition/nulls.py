"""Null models of composition, p-values from them, and false-discovery control.

- `permute`: the residual channels of the writers are permuted. Right for models whose channels mean something,
  and with no assumption about how large or how many the weights are.
- `redraw`: in every matrix that touches the residual stream the weights are put at random places: the same
  number of nonzeros, the same values, also within a channel of the head.
- `rotate`: the residual stream is rotated at random. Right for dense models without a preferred basis; the root
  mean square score is exactly 1 / sqrt(d_model) for any rank. For axis-aligned sparse weights it is the wrong one.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scipy import stats
from torch import Tensor

from circuits.composition.parts import Matrices, Parts, divided, norms, product_norms

Null = Literal["permute", "redraw", "rotate"]
"""The name of a null model: what is drawn at random, as the top of this file says."""
NULLS: tuple[Null, ...] = get_args(Null)
"""The null models, by name."""

TIE = 1e-5
"""Relative difference below which a score counts as reached: sums in another order differ by rounding."""
ENOUGH = 10
"""Draws at or above the observed score after which no more are needed."""
CHUNK = 2**24
"""Numbers held at a time."""
LONG = 10.0
"""Seconds of draws from which on a bar is shown where nobody said."""


@dataclass(frozen=True, kw_only=True)
class NullSummary:
    """What a null model says about every pair."""

    mean: Float[Tensor, "writer reader"]
    std: Float[Tensor, "writer reader"]
    rms: Float[Tensor, "writer reader"]
    p: Float[Tensor, "writer reader"]
    "One-sided: (1 + draws at or above the score) / (1 + draws)."


def null_summary(
    parts: Parts,
    scores: Float[Tensor, "writer reader"],
    *,
    null: Null,
    n_null: int,
    max_null: int,
    seed: int,
    progress: bool | None = False,
) -> NullSummary:
    """Draw `n_null` times for all pairs, then up to `max_null` times for pairs that few draws have reached.

    progress: show a bar, with what the rest will take; None: where the first draw says that it is long.

    Further draws make small p-values exact instead of stopping them at 1 / (1 + n_null). Source: Besag and
    Clifford 1991, "Sequential Monte Carlo p-values".
    """
    if null not in NULLS:
        raise ValueError(f"null: got {null!r}; expected one of {NULLS}.")
    if not 1 <= n_null <= max_null:
        raise ValueError(f"n_null: got {n_null} (max_null {max_null}); expected 1 <= n_null <= max_null.")
    draw = _Draws(null, seed)
    sizes = norms([m.factors for m in parts.written])[:, None] * norms([m.factors for m in parts.read])
    total, squares, reached = (torch.zeros_like(scores, dtype=torch.float64) for _ in range(3))
    for _ in _watched(n_null, progress):
        left, right = draw.once(parts)
        drawn = divided(product_norms(left, right), sizes)
        total += drawn
        squares += drawn.double().square()
        reached += drawn >= scores * (1 - TIE)
    draws = torch.full_like(total, n_null)
    _refine(parts, scores, draw, reached, draws, max_null)
    mean, square = total / n_null, squares / n_null
    p = (1 + reached) / (1 + draws)
    p = torch.where((scores > 0) & parts.later, p, torch.ones_like(p))
    std = (square - mean.square()).clamp_min(0).sqrt()
    return NullSummary(mean=mean.float(), std=std.float(), rms=square.sqrt().float(), p=p)


def _watched(n: int, progress: bool | None) -> Iterator[int]:
    """Numbers of draws; the first is timed, so that a bar can say what the others will take before they begin."""
    started = time.perf_counter()
    yield 0
    seconds = (n - 1) * (time.perf_counter() - started)
    shown = seconds > LONG if progress is None else progress
    columns = (TextColumn("null models"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not shown, console=Console(stderr=True)) as bar:
        line = bar.add_task("draws", total=n, completed=1)
        if shown:
            bar.console.print(
                f"composition: about {seconds:.0f} s for {n} draws of all pairs; pairs that few of them reach take more"
            )
        for i in range(1, n):
            yield i
            bar.advance(line)


def benjamini_hochberg(p: Float[Tensor, " test"]) -> Float[Tensor, " test"]:
    """Smallest false-discovery rate at which each test is significant (q-values).

    Source: Benjamini and Hochberg 1995; independent or positively dependent tests.

    Examples:
        >>> circuits.composition.benjamini_hochberg(torch.tensor([0.01, 0.02, 0.9]))
        tensor([0.0300, 0.0300, 0.9000])
    """
    return torch.from_numpy(stats.false_discovery_control(p.cpu().numpy())).to(p)


class _Draws:
    """Factors under a null model; one generator, so that a seed gives the same draws."""

    def __init__(self, null: Null, seed: int) -> None:
        self.null: Null = null
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def once(self, parts: Parts) -> tuple[list[Tensor], list[Tensor]]:
        """One draw of all factors, writers and readers."""
        if self.null == "redraw":
            return (
                [m.inner @ self._shuffled(m.outer) for m in parts.written],
                [m.inner @ self._shuffled(m.outer) for m in parts.read],
            )
        move = self._mover(parts.written[0].outer.shape[-1])
        return [move(m.factors) for m in parts.written], [m.factors for m in parts.read]

    def reached(
        self, left: Matrices, right: Matrices, limit: Float[Tensor, " pair"], n: int
    ) -> Float[Tensor, " pair"]:
        """How many of `n` draws of `||L R^T||` are at or above `limit`, for matched writers and readers."""
        step = max(1, CHUNK // (left.outer.numel() + right.outer.numel()))
        count = torch.zeros_like(limit)
        for start in range(0, n, step):
            moved, fixed = self._moved(left, right, min(step, n - start))
            product = moved @ fixed.transpose(-2, -1)
            count += (product.flatten(-2).norm(dim=-1) >= limit).sum(0)
        return count

    def _moved(self, left: Matrices, right: Matrices, k: int) -> tuple[Tensor, Tensor]:
        if self.null == "redraw":
            L, R = (m.outer.expand(k, *m.outer.shape).contiguous() for m in (left, right))
            return left.inner @ self._shuffled(L), right.inner @ self._shuffled(R)
        width = left.outer.shape[-1]
        return torch.stack([self._mover(width)(left.factors) for _ in range(k)]), right.factors

    def _shuffled(self, outer: Float[Tensor, "*part rank d_model"]) -> Float[Tensor, "*part rank d_model"]:
        flat = outer.flatten(-2).flatten(0, -2).cpu().numpy()
        return torch.from_numpy(self.rng.permuted(flat, axis=1)).to(outer).view(outer.shape)

    def _mover(self, width: int) -> Callable[[Tensor], Tensor]:
        if self.null == "permute":
            order = torch.randperm(width, generator=self.generator)
            return lambda factors: factors[..., order]
        Q, R = torch.linalg.qr(torch.randn(width, width, generator=self.generator))
        # Without these signs QR does not draw uniformly from the rotations.
        Q = Q * R.diagonal().sign()
        return lambda factors: factors @ Q.to(factors)


def _refine(
    parts: Parts, scores: Tensor, draw: _Draws, reached: Tensor, draws: Tensor, max_null: int
) -> None:
    """More draws, doubling, for pairs that too few have reached; adds to `reached` and `draws` in place."""
    done = int(draws.max())
    while done < max_null:
        n = min(done, max_null - done)
        open_pairs = parts.later & (scores > 0) & (reached < ENOUGH)
        for left, w0 in _offsets(parts.written):
            for right, r0 in _offsets(parts.read):
                block = open_pairs[w0 : w0 + len(left.outer), r0 : r0 + len(right.outer)]
                w, r = block.nonzero().unbind(1)
                if not len(w):
                    continue
                a, b = left.rows(w), right.rows(r)
                sizes = a.factors.flatten(1).norm(dim=1) * b.factors.flatten(1).norm(dim=1)
                limit = scores[w0 + w, r0 + r] * sizes * (1 - TIE)
                reached[w0 + w, r0 + r] += draw.reached(a, b, limit, n)
                draws[w0 + w, r0 + r] += n
        done += n


def _offsets(groups: tuple[Matrices, ...]) -> list[tuple[Matrices, int]]:
    out, at = [], 0
    for group in groups:
        out.append((group, at))
        at += len(group.outer)
    return out
