"""Time an operation fairly: parity first, then every way in turn, and a copy of as many bytes beside them."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits.bench.operations import Operation

LEAST_REPEATS = 7
"""Rounds from which a median of noisy times means something."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the benchmark. Times are medians in milliseconds, spreads are quartiles over the rounds."""

    name: str
    d_model: int
    density: float
    parity: bool
    "Whether the result is that of naive; where it is not, all times and ratios are None."
    max_difference: float | None
    "Largest difference from naive over naive's largest magnitude; None: not a number, or another shape."
    ratio: float | None
    "Time of naive over time of fast: median over rounds."
    ratio_spread: tuple[float, float] | None
    ratio_plain: float | None
    "Time of plain PyTorch (dense product with the matrix at hand, torch.topk) over time of fast."
    ratio_plain_spread: tuple[float, float] | None
    fast_ms: float | None
    fast_ms_spread: tuple[float, float] | None
    naive_ms: float | None
    plain_ms: float | None
    n_bytes: int | None
    "Bytes the operation must move: each input and each output once. None for whole steps."
    bytes_per_memcpy: float | None
    "Bytes per second over those of a memcpy that moves as many: 1 is as fast as memory. None for whole steps."
    fast_peak: int | None = None
    "Bytes that a whole step takes at its peak, above what is held before it."
    plain_peak: int | None = None
    "The same, of the masked-dense step."


def measure(operation: Operation, *, repeats: int = LEAST_REPEATS, warmup: int = 2) -> Row:
    """Check an operation against naive; if it agrees, time it.

    Raises:
        ValueError: fewer than 1 repeat.

    Examples:
        >>> operation = circuits.bench.operation("project_topk", 16, 0.1, tokens=8)
        >>> circuits.bench.measure(operation, repeats=1, warmup=0).parity
        True
    """
    if repeats < 1:
        raise ValueError(f"repeats: got {repeats}; expected at least 1.")
    difference = max_difference(operation)
    parity = difference <= operation.tolerance
    return Row(
        name=operation.name,
        d_model=operation.d_model,
        density=operation.density,
        parity=parity,
        max_difference=difference if math.isfinite(difference) else None,
        n_bytes=operation.n_bytes,
        **(_timings(operation, repeats, warmup) if parity else dict.fromkeys(_TIMED)),
    )


def max_difference(operation: Operation) -> float:
    """Largest difference of fast from the reference, relative; infinite for NaN or another shape."""
    operation.prepare()
    expected = operation.reference().double().clone()
    operation.prepare()
    got = operation.fast().double()
    if got.shape != expected.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    scale = float(expected.abs().max()) or 1.0
    difference = float((got - expected).abs().max()) / scale
    return difference if math.isfinite(difference) else math.inf


_TIMED = (
    "ratio", "ratio_spread", "ratio_plain", "ratio_plain_spread", "fast_ms", "fast_ms_spread", "naive_ms",
    "plain_ms", "bytes_per_memcpy",
)  # fmt: skip


def _timings(operation: Operation, repeats: int, warmup: int) -> dict[str, float | tuple[float, float]]:
    ways = [operation.fast, operation.naive, operation.plain, _memcpy(operation.n_bytes)]
    fast, naive, plain, copy = interleaved(ways, operation.prepare, repeats=repeats, warmup=warmup)
    over_naive = [n / f for n, f in zip(naive, fast, strict=True)]
    over_plain = [p / f for p, f in zip(plain, fast, strict=True)]
    return {
        "ratio": statistics.median(over_naive),
        "ratio_spread": quartiles(over_naive),
        "ratio_plain": statistics.median(over_plain),
        "ratio_plain_spread": quartiles(over_plain),
        "fast_ms": statistics.median(fast),
        "fast_ms_spread": quartiles(fast),
        "naive_ms": statistics.median(naive),
        "plain_ms": statistics.median(plain),
        "bytes_per_memcpy": statistics.median(c / f for c, f in zip(copy, fast, strict=True)),
    }


def _memcpy(n_bytes: int) -> Callable[[], Tensor]:
    """A copy that moves n_bytes: it reads half of them and writes the other half."""
    source = torch.zeros(max(1, n_bytes // 2), dtype=torch.uint8)
    target = torch.ones_like(source)
    return lambda: target.copy_(source)


def interleaved(
    ways: Sequence[Callable[[], object]],
    prepare: Callable[[], object] = lambda: None,
    *,
    repeats: int = LEAST_REPEATS,
    warmup: int = 2,
) -> list[list[float]]:
    """Milliseconds of each way in each round.

    A round runs every way once, so that a machine that slows down slows them all; the order moves on by one
    from round to round, so that none always finds the caches that the same neighbour left.
    """
    times: list[list[float]] = [[] for _ in ways]
    for round_ in range(warmup + repeats):
        for i in range(len(ways)):
            which = (i + round_) % len(ways)
            prepare()
            started = time.perf_counter()
            ways[which]()
            elapsed = 1e3 * (time.perf_counter() - started)
            if round_ >= warmup:
                times[which].append(elapsed)
    return times


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile; the value itself, twice, where there is only one."""
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third
