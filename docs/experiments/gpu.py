"""The sparse operations on an NVIDIA GPU: Triton's kernels against cuBLAS in three precisions and against cuSPARSE.

    python -m docs.experiments.gpu run      -> docs/results/gpu.json (needs a GPU)
    python -m docs.experiments.gpu page     -> the table in docs/benchmarks.md

A matrix is [d_model, 4 d_model], activations are [d_model, tokens], all of them normal random numbers. Each way is held
against a product in float64 first. Then all ways of an operation run in turn, each timed by the device's own events,
over and over; a ratio is taken within each round. Caches are cold: before each run a buffer larger than they are is
written over.
"""

import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from circuits import kernels
from circuits.bench.measurement import quartiles
from circuits.files import write_results
from circuits.kernels import SparseWeight
from circuits.plots.markdown import markdown_table, write_between
from circuits.training.projection import budget

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)
RESULTS = Path("docs/results")
WIDTHS, DENSITIES = (512, 1024, 2048, 4096), (1 / 16, 1 / 64, 1 / 256)
TOKENS, REPEATS, WARMUP = 16_384, 15, 3
CACHE = 2**28
"""Bytes that are written over before each run: several times what the chip keeps."""
TOLERANCES = {"float32": 1e-4, "tf32": 5e-3, "bfloat16": 3e-2}
"""Of the difference from float64, by norm, over the norm of what is expected."""
PAGE = Path("docs/benchmarks.md")
BEGIN, END = "<!-- table of the GPU: begin -->", "<!-- end of the GPU -->"
OPPONENTS = (
    *("cublas float32", "cublas tf32", "cublas bfloat16", "cusparse float32", "torch.topk float32"),
    "triton bfloat16",
)
COLUMNS = (
    *("operation", "d_model", "density", "ours, ms", "cuBLAS float32", "cuBLAS TF32", "cuBLAS bf16"),
    *("cuSPARSE float32", "torch.topk", "ours in bf16"),
)
Way = tuple[Callable[[], Tensor], str]
"""What runs, and in which precision."""


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Float32 products on the tensor cores, with 10 bits of mantissa, or in full."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@app.command()
def run(
    results: Annotated[Path, typer.Option(help="File to write.")] = RESULTS / "gpu.json",
    quick: Annotated[bool, typer.Option("--quick", help="One width: whether it all works.")] = False,
) -> None:
    """Measure all operations at all sizes."""
    started = torch.cuda.Event(enable_timing=True)
    started.record()
    rows = []
    for d_model in WIDTHS[:1] if quick else WIDTHS:
        for density in DENSITIES:
            for name, ways, expected in operations(d_model, density):
                rows.append(
                    {"name": name, "d_model": d_model, "density": density, **measured(ways, expected)}
                )
                Console().print(rows[-1], soft_wrap=True)
    ended = torch.cuda.Event(enable_timing=True)
    ended.record()
    ended.synchronize()
    numbers = {"gpu": torch.cuda.get_device_name(), "tokens": TOKENS, "repeats": REPEATS, "rows": rows}
    write_results(
        results,
        command="python -m docs.experiments.gpu run",
        seeds=[0],
        seconds=started.elapsed_time(ended) / 1e3,
        numbers=numbers,
    )


def operations(d_model: int, density: float) -> Iterator[tuple[str, dict[str, Way], Tensor]]:
    """Each operation with the ways to run it, and what is right: in float64, or a mask."""
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (d_model, 4 * d_model)
    full = torch.randn(shape, device="cuda", generator=generator)
    mask = kernels.topk_mask(full, budget(full.numel(), density), impl="naive")
    dense = full * mask
    weight = SparseWeight.from_dense(dense)
    x, dy = (torch.randn(width, TOKENS, device="cuda", generator=generator) for width in shape)
    yield "spmm_forward", _products(weight, dense, x, "spmm"), dense.double().t() @ x.double()
    yield "spmm_backward", _products(weight, dense, dy, "spmm_t"), dense.double() @ dy.double()
    yield "sddmm", _sampled(weight, x, dy), (x.double() @ dy.double().t())[mask]
    k = budget(full.numel(), density)
    yield "project_topk", _projections(full, k), mask
    kept = budget(d_model, density)
    rows = x.t().contiguous()
    expected = kernels.abs_topk(rows, kept, impl="naive")
    yield "abs_topk", _selections(rows, kept), expected


def _products(weight: SparseWeight, dense: Tensor, x: Tensor, op: str) -> dict[str, Way]:
    """W^T x or W dy. cuBLAS and cuSPARSE get the matrix as they like it best: laid out for this product."""
    run = getattr(kernels, op)
    laid = (dense.t() if op == "spmm" else dense).contiguous()
    rows, half = laid.to_sparse_csr(), laid.bfloat16()
    small, narrow = weight.to(dtype=torch.bfloat16), x.bfloat16()
    return {
        "triton float32": (lambda: run(weight, x, impl="triton"), "float32"),
        "triton bfloat16": (lambda: run(small, narrow, impl="triton"), "bfloat16"),
        "cublas float32": (lambda: laid @ x, "float32"),
        "cublas tf32": (_in_tf32(lambda: laid @ x), "tf32"),
        "cublas bfloat16": (lambda: half @ narrow, "bfloat16"),
        "cusparse float32": (lambda: rows @ x, "float32"),
    }


def _sampled(weight: SparseWeight, x: Tensor, dy: Tensor) -> dict[str, Way]:
    """x dy^T at the nonzeros. cuBLAS makes the whole product, of which the rest is thrown away."""
    small, narrow, narrow_dy = weight.to(dtype=torch.bfloat16), x.bfloat16(), dy.bfloat16()
    rows, columns = weight.rows_of_values(), weight.column.long()
    return {
        "triton float32": (lambda: kernels.sddmm(weight, x, dy, impl="triton"), "float32"),
        "triton bfloat16": (lambda: kernels.sddmm(small, narrow, narrow_dy, impl="triton"), "bfloat16"),
        "cublas float32": (lambda: (x @ dy.t())[rows, columns], "float32"),
        "cublas tf32": (_in_tf32(lambda: (x @ dy.t())[rows, columns]), "tf32"),
        "cublas bfloat16": (lambda: (narrow @ narrow_dy.t())[rows, columns], "bfloat16"),
    }


def _projections(w: Tensor, k: int) -> dict[str, Way]:
    def plain() -> Tensor:
        mask = torch.zeros(w.numel(), dtype=torch.bool, device=w.device)
        mask[w.flatten().abs().topk(k).indices] = True
        return mask.view(w.shape)

    return {
        "triton float32": (lambda: kernels.topk_mask(w, k, impl="triton"), "float32"),
        "torch.topk float32": (plain, "float32"),
    }


def _selections(x: Tensor, k: int) -> dict[str, Way]:
    def plain() -> Tensor:
        places = x.abs().topk(k, dim=-1).indices
        return torch.zeros_like(x).scatter_(-1, places, x.gather(-1, places))

    return {
        "triton float32": (lambda: kernels.abs_topk(x, k, impl="triton"), "float32"),
        "torch.topk float32": (plain, "float32"),
    }


def _in_tf32(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def faster() -> Tensor:
        with tf32(True):
            return run()

    return faster


def measured(ways: dict[str, Way], expected: Tensor) -> dict[str, Any]:
    """Differences, median milliseconds with quartiles, and each way's time over that of ours in float32."""
    differences = {name: difference(run(), expected) for name, (run, _) in ways.items()}
    for name, (_, precision) in ways.items():
        assert differences[name] <= TOLERANCES[precision], (name, differences[name])
    times = timed({name: run for name, (run, _) in ways.items()})
    ours = times["triton float32"]
    return {
        "difference": differences,
        "ms": {name: statistics.median(found) for name, found in times.items()},
        "ms_spread": {name: quartiles(found) for name, found in times.items()},
        "ratio": {
            name: statistics.median(other / own for other, own in zip(found, ours, strict=True))
            for name, found in times.items()
            if name != "triton float32"
        },
    }


def difference(got: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of what is expected; of masks, the share that differs."""
    if expected.dtype == torch.bool:
        return float((got != expected).double().mean())
    return float((got.double() - expected).norm() / expected.norm())


def timed(ways: dict[str, Callable[[], Tensor]]) -> dict[str, list[float]]:
    """Milliseconds of each way in each round, by the device's events, from a cold cache."""
    buffer = torch.empty(CACHE, dtype=torch.uint8, device="cuda")
    marks: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in ways}
    for round_ in range(WARMUP + REPEATS):
        for name, run in ways.items():
            buffer.zero_()
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            run()
            after.record()
            if round_ >= WARMUP:
                marks[name].append((before, after))
    torch.cuda.synchronize()
    return {name: [before.elapsed_time(after) for before, after in pairs] for name, pairs in marks.items()}


@app.command()
def page() -> None:
    """Write the table of docs/results/gpu.json into docs/benchmarks.md."""
    report = json.loads((RESULTS / "gpu.json").read_text())
    said = f"Measured on one {report['gpu']}, torch {report['versions']['torch']}, on {report['date']}."
    rows = [_cells(row) for row in report["rows"]]
    write_between(PAGE, BEGIN, END, f"{said}\n\n{markdown_table(COLUMNS, rows)}")


def _cells(row: dict[str, Any]) -> list[str]:
    ratios = row["ratio"]
    plain = [f"{ratios[way]:.2f}" if way in ratios else "" for way in OPPONENTS]
    density = f"1/{round(1 / row['density'])}"
    return [row["name"], f"{row['d_model']:,}", density, f"{row['ms']['triton float32']:.3f}", *plain]


if __name__ == "__main__":
    app()
