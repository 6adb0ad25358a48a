"""Time whole steps: parity first, then both ways in turn; their memory; and how the cost grows."""

import ctypes
import gc
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from circuits.bench.measurement import Row, interleaved, quartiles
from circuits.bench.steps import STEP_TOLERANCE, StepConfig, gradients, projection, step, toy
from circuits.kernels.cpu.memory import release

REPEATS = 7
GROWTH_DENSITIES = (1 / 256, 1 / 128, 1 / 64, 1 / 32)
GROWTH_WIDTHS = (256, 512, 1024)
PER_UNIT = 4
"""Nonzeros for each column of a [d, d] matrix while the width grows."""


def cases(*, quick: bool) -> list[StepConfig]:
    """The steps of the benchmark; quick: the same at a fraction of the size."""
    size: dict[str, Any] = dict(d_model=128, n_layers=1, pos=32, d_vocab=64) if quick else dict(d_model=1024)
    densities = {
        "prune_step": (1 / 256, 1 / 64),
        "train_step_exact": (1 / 256,),
        "train_step_support": (1 / 256,),
    }
    floor = 1 / 64 if quick else 0.0
    steps = [
        StepConfig(name=name, density=max(density, floor), **size)
        for name, values in densities.items()
        for density in values
    ]
    return [*steps, toy(density=1 / 64) if quick else toy()]


def measure_step(config: StepConfig, *, repeats: int = REPEATS, warmup: int = 1) -> Row:
    """Check a step against masked-dense in float64; if it agrees, time both and take their memory."""
    fast, plain = (gradients(config, way).double() for way in ("fast", "plain"))
    difference = float((fast - plain).abs().max() / plain.abs().max())
    parity = difference <= STEP_TOLERANCE
    timed: dict[str, Any] = dict.fromkeys(
        (
            "ratio",
            "ratio_spread",
            "ratio_plain",
            "ratio_plain_spread",
            "fast_ms",
            "fast_ms_spread",
            "plain_ms",
        )
    )
    if parity:
        timed = _timings(config, repeats, warmup)
    return Row(
        name=config.name,
        d_model=config.d_model,
        density=config.density,
        parity=parity,
        max_difference=difference if math.isfinite(difference) else None,
        naive_ms=timed["plain_ms"],
        n_bytes=None,
        bytes_per_memcpy=None,
        **timed,
    )


def _timings(config: StepConfig, repeats: int, warmup: int) -> dict[str, Any]:
    ways = [step(config, "fast"), step(config, "plain")]
    fast, plain = interleaved(ways, repeats=repeats, warmup=warmup)
    ratios = [b / a for a, b in zip(fast, plain, strict=True)]
    middle, spread = statistics.median(ratios), quartiles(ratios)
    return {
        "ratio": middle,
        "ratio_spread": spread,
        "ratio_plain": middle,
        "ratio_plain_spread": spread,
        "fast_ms": statistics.median(fast),
        "fast_ms_spread": quartiles(fast),
        "plain_ms": statistics.median(plain),
        "fast_peak": peak_bytes(ways[0]),
        "plain_peak": peak_bytes(ways[1]),
    }


def peak_bytes(run: Callable[[], object]) -> int | None:
    """How much more resident memory a call takes at its peak than before it; None where Linux does not tell."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not (status.exists() and reset.exists()):
        return None
    gc.collect()
    release()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        reset.write_text("5")  # the peak starts again from here
    except OSError:
        return None
    before = _resident(status, "VmRSS")
    run()
    return max(0, _resident(status, "VmHWM") - before)


def _resident(status: Path, key: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def growth(*, quick: bool, repeats: int = 5) -> dict[str, Any]:
    """Time of a prune step against nonzeros at one width, and against width at fixed nonzeros per unit.

    Exponents are those of a power law fitted by least squares: 1 is proportional.
    """
    width = 128 if quick else 1024
    widths = (64, 128) if quick else GROWTH_WIDTHS
    shape: dict[str, Any] = dict(n_layers=1, pos=32, d_vocab=64) if quick else dict(n_layers=2, d_vocab=64)
    densities = GROWTH_DENSITIES[2:] if quick else GROWTH_DENSITIES
    by_nonzeros = [StepConfig(name="prune_step", d_model=width, density=d, **shape) for d in densities]
    by_width = [StepConfig(name="prune_step", d_model=w, density=PER_UNIT / w, **shape) for w in widths]
    times = [
        [statistics.median(one) for one in interleaved([step(c, "fast") for c in part], repeats=repeats)]
        for part in (by_nonzeros, by_width)
    ]
    return {
        "nonzeros": {
            "d_model": width,
            "density": list(densities),
            "ms": times[0],
            "exponent": exponent(densities, times[0]),
        },
        "width": {
            "nonzeros_per_unit": PER_UNIT,
            "d_model": list(widths),
            "ms": times[1],
            "exponent": exponent(widths, times[1]),
        },
    }


def projection_share(config: StepConfig, *, repeats: int = REPEATS) -> dict[str, float]:
    """How much of a whole training step its projection takes."""
    project, prepare = projection(config)
    whole, part = interleaved([step(config, "fast"), project], prepare, repeats=repeats)
    shares = [b / a for a, b in zip(whole, part, strict=True)]
    return {"share": statistics.median(shares), "ms": statistics.median(part)}


def exponent(sizes: Sequence[int | float], times: Sequence[float]) -> float:
    """The power with which times grow, by least squares on logarithms."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (sizes, times))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / x.square().sum())
