"""The command that times the sparse operations: bench."""

from pathlib import Path
from typing import Annotated

import typer

from circuits.commands.shared import AsJson, answer, clear_errors, console, say_replaced, show_table
from circuits.files import check_writable, write_json


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Few sizes and rounds: does it work?")] = False,
    out: Annotated[Path, typer.Option(help="Results to write.")] = Path("out/bench.json"),
    write: Annotated[
        bool, typer.Option("--write", help="Keep the results in docs/ and rewrite docs/benchmarks.md.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Time the sparse operations against plain PyTorch; no ratio without parity."""
    with clear_errors():
        from circuits.bench import BenchConfig, run_bench, write_pages
        from circuits.bench.table import SHORT, short_cells

        if quick and write:
            raise ValueError("write: quick numbers are too rough to keep; leave out --quick.")
        check_writable(out)
        say_replaced(out)
        err = console(stderr=True)
        config = BenchConfig.quick() if quick else BenchConfig()
        report = run_bench(config, log=lambda row: err.print(f"{row.name} {row.d_model} {row.density:.4g}"))
        report = write_pages(report) if write else report
        report = {**report, "results": str(write_json(out, report))}
    if as_json:
        answer(report, as_json, title="Benchmark")
        return
    show_table("Benchmark: medians over rounds", SHORT, [short_cells(row) for row in report["rows"]])
    err.print(f"With quartiles, in {out}.", highlight=False)
