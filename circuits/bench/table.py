"""The benchmark as a whole: all operations at all sizes, as a report, a table and the pages that quote it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from circuits.bench.end_to_end import cases, growth, measure_step, projection_share
from circuits.bench.measurement import Row, measure
from circuits.bench.operations import NAMES, operation
from circuits.files import write_results, write_text
from circuits.plots.markdown import around_marks, markdown_table
from circuits.settings import Count, Density, Seed, Settings

BEGIN, END = "<!-- table of circuits bench: begin -->", "<!-- end -->"
COLUMNS = (
    "operation", "d_model", "density", "parity", "ratio to naive", "ratio to plain PyTorch", "fast ms",
    "bytes/s of memcpy's",
)  # fmt: skip

SHORT = ("operation", "d_model", "density", "x naive", "x PyTorch", "ms")
"""The columns that a terminal has room for; "x" is how many times faster."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig(Settings):
    """What is measured."""

    widths: tuple[Count, ...] = (128, 256, 512, 1024, 2048)
    "d_model; matrices are [d_model, 4 d_model]."
    densities: tuple[Density, ...] = (1 / 16, 1 / 64, 1 / 256, 0.001)
    names: tuple[str, ...] = NAMES
    tokens: Count = 2048
    "Columns of the activations."
    repeats: Count = 7
    "Rounds that count."
    warmup: Count = 2
    "Rounds before them."
    seed: Seed = 0
    steps: Literal["none", "quick", "full"] = "full"
    "Whole steps of pruning and training, and how a prune step's cost grows; quick: at a fraction of the size."

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("widths", "densities", "names"):
            if not getattr(self, name):
                raise ValueError(f"{name}: got none; expected at least one.")

    @classmethod
    def quick(cls) -> "BenchConfig":
        """Whether it all works, in well under a minute: too few rounds for numbers to quote."""
        return cls(
            widths=(128, 512), densities=(1 / 16, 1 / 256), tokens=256, repeats=3, warmup=1, steps="quick"
        )


def run_bench(
    config: BenchConfig | None = None, *, log: Callable[[Row], object] = lambda row: None
) -> dict[str, Any]:
    """Measure every operation at every width and density; `log` sees each row when it is done.

    Examples:
        >>> tiny = circuits.bench.BenchConfig(
        ...     widths=(16,), densities=(0.1,), names=("project_topk",), tokens=8, repeats=1, steps="none"
        ... )
        >>> [(row["name"], row["parity"]) for row in circuits.bench.run_bench(tiny)["rows"]]
        [('project_topk', True)]
    """
    config, started = config or BenchConfig(), time.perf_counter()
    rows: list[Row] = []
    for name in config.names:
        for width in config.widths:
            for density in config.densities:
                case = operation(name, width, density, tokens=config.tokens, seed=config.seed)
                rows.append(measure(case, repeats=config.repeats, warmup=config.warmup))
                log(rows[-1])
    quick = config.steps == "quick"
    for one in cases(quick=quick) if config.steps != "none" else []:
        rows.append(measure_step(one, repeats=config.repeats, warmup=config.warmup))
        log(rows[-1])
    return {
        "rows": [asdict(row) for row in rows],
        "growth": growth(quick=quick) if config.steps != "none" else None,
        "projection": projection_share(cases(quick=quick)[-1]) if config.steps != "none" else None,
        "settings": asdict(config),
        "threads": torch.get_num_threads(),
        "seconds": time.perf_counter() - started,
    }


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row as texts, in the order of `COLUMNS`; where parity fails, the difference takes the ratios' place.

    Examples:
        >>> tiny = circuits.bench.BenchConfig(
        ...     widths=(16,), densities=(0.1,), names=("project_topk",), tokens=8, repeats=1, steps="none"
        ... )
        >>> (row,) = circuits.bench.run_bench(tiny)["rows"]
        >>> circuits.bench.cells(row)[:4]
        ['project_topk', '16', '0.1', 'yes']
    """
    head = [row["name"], str(row["d_model"]), _density(row["density"])]
    if not row["parity"]:
        difference = row["max_difference"]
        shown = "not finite, or another shape" if difference is None else f"{difference:.2g}"
        return [*head, f"FAILS: off by {shown}", "", "", "", ""]
    return [
        *head,
        "yes",
        _spread(row["ratio"], row["ratio_spread"]),
        _spread(row["ratio_plain"], row["ratio_plain_spread"]),
        _spread(row["fast_ms"], row["fast_ms_spread"]),
        "" if row["bytes_per_memcpy"] is None else f"{row['bytes_per_memcpy']:.2f}",
    ]


def short_cells(row: Mapping[str, Any]) -> list[str]:
    """A row as texts, in the order of `SHORT`, for 80 columns: medians alone."""
    head = [row["name"], str(row["d_model"]), _density(row["density"])]
    if not row["parity"]:
        return [*head, "FAILS", "", ""]
    return [*head, *(f"{row[key]:.3g}" for key in ("ratio", "ratio_plain", "fast_ms"))]


def _density(density: float) -> str:
    inverse = round(1 / density)
    return f"1/{inverse}" if inverse & (inverse - 1) == 0 else f"{density:g}"


def _spread(middle: float, ends: Sequence[float]) -> str:
    return f"{middle:.3g} ({ends[0]:.3g} to {ends[1]:.3g})"


def markdown(report: Mapping[str, Any]) -> str:
    """The table of a results file in Markdown, with the machine and the command that remake it.

    Examples:
        >>> tiny = circuits.bench.BenchConfig(
        ...     widths=(16,), densities=(0.1,), names=("project_topk",), tokens=8, repeats=1, steps="none"
        ... )
        >>> told = {"command": "circuits bench", "machine": "mine", "date": "today", "minutes": 0.1}
        >>> print(circuits.bench.markdown({**circuits.bench.run_bench(tiny), **told}).splitlines()[0][:16])
        Measured on mine
    """
    table = markdown_table(COLUMNS, [cells(row) for row in report["rows"]], numeric=(1, 2, 4, 5, 6, 7))
    said = (
        f"Measured on {report['machine']} with {report['threads']} threads on {report['date']}, in "
        f"{report['minutes']:.0f} minutes; `{report['command']}` measures again and rewrites this table."
    )
    picture = "![Time of plain PyTorch over ours, over width](benchmarks.png)"
    return "\n\n".join(
        [
            said,
            picture,
            table,
            *_memory(report["rows"]),
            *_growth(report["growth"]),
            *_share(report["projection"]),
        ]
    )


def _memory(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each step takes at its peak, ours and masked-dense."""
    lines = [
        f"- {row['name']}, d_model {row['d_model']}, density {_density(row['density'])}: "
        f"{row['fast_peak'] / 2**20:,.0f} MiB, masked-dense {row['plain_peak'] / 2**20:,.0f} MiB."
        for row in rows
        if row["fast_peak"] is not None and row["plain_peak"] is not None
    ]
    return (
        ["Memory of a whole step at its peak, above what is held between steps:", "\n".join(lines)]
        if lines
        else []
    )


def _growth(growth: Mapping[str, Any] | None) -> list[str]:
    if growth is None:
        return []
    return [
        "Time of a prune step grows with the number of nonzeros at fixed width to the power "
        f"{growth['nonzeros']['exponent']:.2f}, and with width at {growth['width']['nonzeros_per_unit']} nonzeros "
        f"per unit to the power {growth['width']['exponent']:.2f} (1: proportional)."
    ]


def _share(projection: Mapping[str, float] | None) -> list[str]:
    if projection is None:
        return []
    share, ms = projection["share"], projection["ms"]
    return [f"The projection is {share:.1%} of the toy training step ({ms:.1f} ms)."]


def write_pages(report: Mapping[str, Any], docs: Path = Path("docs")) -> dict[str, Any]:
    """Write results/bench.json, the table inside benchmarks.md and its picture; returns the results.

    Raises:
        ValueError: benchmarks.md is missing, lacks the two marks between which the table goes, or (after everything
            else is written) there is no browser to draw the picture.

    Examples:
        >>> from pathlib import Path
        >>> from circuits.bench.table import BEGIN, END
        >>> _ = Path("benchmarks.md").write_text(f"{BEGIN} {END}")
        >>> tiny = circuits.bench.BenchConfig(
        ...     widths=(16,), densities=(0.1,), names=("project_topk",), tokens=8, repeats=1, steps="none"
        ... )
        >>> circuits.bench.write_pages(circuits.bench.run_bench(tiny), Path())["command"]
        'circuits bench --write'
    """
    page = docs / "benchmarks.md"
    before, after = around_marks(page, BEGIN, END)
    from circuits.plots import bench_figure, figure_to_png

    kept = write_results(
        docs / "results" / "bench.json",
        command="circuits bench --write",
        seeds=[report["settings"]["seed"]],
        seconds=report["seconds"],
        numbers={key: report[key] for key in ("rows", "growth", "projection", "settings", "threads")},
    )
    write_text(page, f"{before}\n\n{markdown(kept)}\n\n{after}")
    figure = bench_figure([row for row in kept["rows"] if row["name"] in NAMES])
    figure_to_png(figure, docs / "benchmarks.png", width=1100)
    return kept
