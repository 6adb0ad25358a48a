"""The command that times the sparse operations: bench."""

from typing import Annotated

import typer
from rich.table import Table

from circuits.commands.shared import AsJson, answer, clear_errors, console


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Few sizes and rounds: does it work?")] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Keep the results in docs/ and rewrite docs/benchmarks.md.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Time the sparse operations against plain PyTorch; no ratio without parity."""
    with clear_errors():
        from circuits.bench import BenchConfig, cells, run_bench, write_pages
        from circuits.bench.table import COLUMNS

        if quick and write:
            raise ValueError("write: quick numbers are too rough to keep; leave out --quick.")
        err = console(stderr=True)
        config = BenchConfig.quick() if quick else BenchConfig()
        report = run_bench(config, log=lambda row: err.print(f"{row.name} {row.d_model} {row.density:.4g}"))
        report = write_pages(report) if write else report
    if as_json:
        answer(report, as_json, title="Benchmark")
        return
    table = Table(*COLUMNS, title="Benchmark: medians, quartiles in brackets")
    for row in report["rows"]:
        table.add_row(*cells(row))
    console().print(table)
