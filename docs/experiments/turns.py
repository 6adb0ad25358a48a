"""Two versions of the code against one another: every row of the benchmark, step by step in turn.

    python -m docs.experiments.turns ../older     -> docs/results/turns.json

`../older` is a working tree of another commit (`git worktree add ../older COMMIT`) whose bench has the same functions.
Each version runs in a process of its own that waits while the other one measures, so whatever slows the machine down
slows both. A row is unchanged where the quartiles of the two versions' times overlap.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from circuits.bench.measurement import quartiles
from circuits.files import commit, write_results

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)
RESULTS = Path("docs/results")
WIDTHS, DENSITIES = (128, 512, 1024), (1 / 16, 1 / 256)
# Runs in either version: nothing here but what both have.
WORKER = """
import json, sys, time
from circuits.bench.end_to_end import cases
from circuits.bench.operations import NAMES, operation
from circuits.bench.steps import step

def nothing():
    pass

for line in sys.stdin:
    asked = json.loads(line)
    if "row" in asked:
        name, *at = asked["row"]
        if name in NAMES:
            one = operation(name, at[0], at[1], tokens=2048, seed=0)
            run, prepare = one.fast, one.prepare
        else:
            run, prepare = step(cases(quick=False)[at[0]], "fast"), nothing
        took = 0.0
    else:
        prepare()
        started = time.perf_counter()
        run()
        took = 1e3 * (time.perf_counter() - started)
    print(json.dumps(took), flush=True)
"""


@app.command()
def compare(
    older: Path,
    rounds: Annotated[int, typer.Option(help="Times that each version runs each row.")] = 25,
    results: Annotated[Path, typer.Option(help="File to write.")] = RESULTS / "turns.json",
) -> None:
    """Time every row of this version and of another working tree in turn."""
    from circuits.bench.end_to_end import cases
    from circuits.bench.operations import NAMES

    rows: list[tuple[Any, ...]] = [(n, w, d) for n in NAMES for w in WIDTHS for d in DENSITIES]
    rows += [(case.name, i, case.density) for i, case in enumerate(cases(quick=False))]
    found = []
    with ExitStack() as stack:
        both = [stack.enter_context(_worker(tree)) for tree in (older, Path.cwd())]
        for row in rows:
            found.append({"row": list(row), **_row([both[0], both[1]], row, rounds)})
            Console().print(found[-1])
    slower = [one["row"] for one in found if one["slower"]]
    write_results(
        results,
        command=f"python -m docs.experiments.turns ../older --rounds {rounds}",
        seeds=[0],
        seconds=sum(one["seconds"] for one in found),
        numbers={"rows": found, "n_rows": len(found), "slower": slower, "older": commit(older)},
    )


def _row(both: list[Any], row: tuple[Any, ...], rounds: int) -> dict[str, Any]:
    """Quartiles of each version's milliseconds, and of new over old, round by round."""
    for worker in both:
        _ask(worker, {"row": row})
        _ask(worker, {})
        _ask(worker, {})
    times: list[list[float]] = [[], []]
    for round_ in range(rounds):
        for which in (0, 1) if round_ % 2 else (1, 0):
            times[which].append(_ask(both[which], {}))
    old, new = (quartiles(one) for one in times)
    over = [b / a for a, b in zip(*times, strict=True)]
    return {
        "old_ms": old,
        "new_ms": new,
        "new_over_old": statistics.median(over),
        "new_over_old_spread": quartiles(over),
        "slower": new[0] > old[1],
        "faster": old[0] > new[1],
        "seconds": sum(map(sum, times)) / 1e3,
    }


@contextmanager
def _worker(tree: Path) -> Iterator[subprocess.Popen]:
    environment = os.environ | {"PYTHONPATH": str(tree.resolve())}
    command = [sys.executable, "-c", WORKER]
    with subprocess.Popen(
        command, cwd=tree, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def _ask(worker: subprocess.Popen, what: dict[str, Any]) -> float:
    assert worker.stdin is not None
    assert worker.stdout is not None
    print(json.dumps(what), file=worker.stdin, flush=True)
    return float(json.loads(worker.stdout.readline()))


if __name__ == "__main__":
    app()
