"""Attention in few bits once more, from the equations of docs/explanation/turbo.md, a number at a time in float64.

It shares no code with `circuits.kernels`: it reads nothing but the settings of a `TurboConfig`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits.model.mixers.turbo import TurboConfig


@dataclass(frozen=True, kw_only=True)
class NaiveTurbo:
    """What the settings say, applied to heads one by one."""

    config: TurboConfig

    def query(self, q: Tensor) -> Tensor:
        """Queries [batch, pos, head, d_head] in whole steps of their tile."""
        return q if self.config.quant == "none" else self._by_tiles(q, lambda tile, head: steps(tile))

    def stored(self, x: Tensor) -> Tensor:
        """Keys or values [batch, pos, head, d_head] as they are read."""
        if "kv" not in self.config.quant:
            return self.query(x)
        bits = bits_of(x, x.shape[2] // 2 if self.config.quant == "int8+kv42" else 0)
        return self._by_tiles(x, lambda tile, head: coded(tile, bits[head]))

    def pattern(self, scores: Tensor, sink: Tensor | None, *, rounded: bool) -> Tensor:
        """Weights of scores [batch, head, query, key], -inf where masked; rounded: as they multiply values."""
        out = torch.zeros_like(scores)
        for b in range(scores.shape[0]):
            for h in range(scores.shape[1]):
                first = None if sink is None else float(sink[h])
                out[b, h] = self._of_head(scores[b, h], first, rounded and self.config.quant != "none")
        return out

    def composed(self, pattern: Tensor) -> Tensor:
        """Composed patterns in whole steps, tile by tile of queries and keys."""
        if self.config.quant == "none":
            return pattern
        out, n = pattern.clone(), self.config.tile
        for b in range(out.shape[0]):
            for h in range(out.shape[1]):
                for i in range(0, out.shape[2], n):
                    for j in range(0, out.shape[3], n):
                        whole, scale = steps(out[b, h, i : i + n, j : j + n])
                        out[b, h, i : i + n, j : j + n] = whole * scale
        return out

    def _by_tiles(self, x: Tensor, kept: object) -> Tensor:
        out = x.clone()
        for b in range(x.shape[0]):
            for h in range(x.shape[2]):
                for first in range(0, x.shape[1], self.config.tile):
                    own = slice(first, first + self.config.tile)
                    whole, scale = kept(x[b, own, h], h)  # type: ignore[operator]
                    out[b, own, h] = whole * scale
        return out

    def _exp(self, x: float) -> float:
        if self.config.softmax == "exact":
            return math.exp(x)
        if x < self.config.n_r:
            return 0.0
        n = math.floor(-x)
        f = -x - n
        return math.exp(-n) * (-0.1025 * f**3 + 0.4626 * f**2 - 0.9922 * f + 0.9996)

    def _of_head(self, scores: Tensor, sink: float | None, rounded: bool) -> Tensor:
        """Tile by tile of keys: the largest so far, what it leaves of earlier tiles, and the sum."""
        n, (n_query, n_key) = self.config.tile, scores.shape
        p, total = torch.zeros_like(scores), [0.0 if sink is None else self._exp(0.0)] * n_query
        largest = [-math.inf if sink is None else sink] * n_query
        for begin in range(0, n_key, n):
            own = slice(begin, min(begin + n, n_key))
            for i in range(n_query):
                seen = [float(score) for score in scores[i, own]]
                above = max([largest[i], *seen])
                if above > largest[i] > -math.inf:
                    fade = self._exp(largest[i] - above)
                    p[i, :begin] *= fade
                    total[i] *= fade
                largest[i] = above
                for j, score in enumerate(seen):
                    p[i, begin + j] = 0.0 if score == -math.inf else self._exp(score - above)
                total[i] += float(p[i, own].sum())
            for first in range(0, n_query if rounded else 0, n):
                whole, scale = steps(p[first : first + n, own])
                p[first : first + n, own] = whole * scale
        return p / torch.tensor(total)[:, None]


def steps(x: Tensor) -> tuple[Tensor, float]:
    """Whole numbers up to 119 and what 1 is worth."""
    scale = float(x.abs().max()) / 119 or 1.0
    return (x / scale).round(), scale


def coded(x: Tensor, bits: int) -> tuple[Tensor, float]:
    """A tile [pos, d_head] in steps, and each channel's steps in codes of so many bits."""
    whole, scale = steps(x)
    for channel in range(x.shape[1]):
        own = whole[:, channel]
        low, most = float(own.min()), float(own.max())
        step = max(1, math.ceil((most - low) / (2**bits - 1)))
        whole[:, channel] = low + step * ((own - low) / step).round()
    return whole, scale


def bits_of(x: Tensor, n_low: int) -> list[int]:
    """2 for the heads of lowest priority."""
    priority = []
    for h in range(x.shape[2]):
        entries = x[:, :, h].flatten(0, 1)
        ranges = [float(c.max() - c.min()) for c in entries.T]
        mean = sum(ranges) / len(ranges)
        spread = math.sqrt(sum((r - mean) ** 2 for r in ranges) / len(ranges))
        priority.append(float(entries.max() - entries.min()) * spread)
    low = sorted(range(x.shape[2]), key=lambda h: priority[h])[:n_low]
    return [2 if h in low else 4 for h in range(x.shape[2])]
