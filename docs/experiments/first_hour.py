"""What a new user needs for each job, with the pages alone: minutes and commands, and whether anything fails.

    python -m docs.experiments.first_hour run            -> docs/results/first_hour.json, in the environment at hand
    python -m docs.experiments.first_hour run --fresh    in a clone with an environment of its own, `make demo` first

The commands are those of the pages, run as they stand, in order, each job in an empty folder. A command is a line of a
shell block, or a block of Python: what is pasted at once.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console

from circuits.files import write_results

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)
ROOT = Path(__file__).parent.parent.parent
RESULTS = Path("docs/results/first_hour.json")
JOBS = {
    "getting started": ("docs/getting-started.md",),
    "train sparse models": ("docs/how-to/train.md",),
    "extract, trust and plot circuits": ("docs/how-to/extract.md", "docs/how-to/trust-report.md"),
    "intervene on dense models": ("docs/how-to/bridges.md",),
    "probe how heads compose": ("docs/how-to/heads.md",),
    "my own task": ("docs/how-to/own-task.md",),
    "my own text": ("docs/how-to/own-text.md",),
    "my own model": ("docs/how-to/own-model.md",),
    "the README, with its training": ("README.md",),
}
"""The pages of each job, in the order in which they are read."""
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BUSY = 0.5
"""Processes at work before the first command from which on minutes are those of a machine with other work."""
RUNNER = """
import json, shlex, subprocess, sys

def shell(text):
    for line in text.splitlines():
        command = line.replace("circuits ", f"{shlex.quote(sys.executable)} -m circuits ", line.startswith("circuits "))
        subprocess.run(command, shell=True, check=True)

space = {"__name__": "__main__"}
for page, kind, text in json.load(sys.stdin):
    exec(compile(text, page, "exec"), space) if kind == "python" else shell(text)
"""
"""Runs the blocks of a job in turn; those of Python share their names, as in one session."""


class Block(NamedTuple):
    """What is pasted at once."""

    page: str
    kind: str
    text: str

    @property
    def commands(self) -> int:
        """Lines of a shell block; a block of Python is one."""
        return 1 if self.kind == "python" else len(self.text.splitlines())


class Done(NamedTuple):
    """How a job went."""

    seconds: float
    status: int
    said: str

    @property
    def failure(self) -> str:
        """The last line of what a failing command said; empty for a job that went well."""
        lines = self.said.strip().splitlines() or ["it said nothing"]
        return lines[-1] if self.status or "Traceback" in self.said else ""


@app.callback()
def main() -> None:
    """A stranger's first hour."""


@app.command()
def run(
    fresh: Annotated[
        bool, typer.Option("--fresh", help="In a clone with an environment of its own, `make demo` first.")
    ] = False,
    results: Annotated[Path, typer.Option(help="File to write.")] = RESULTS,
) -> None:
    """Do every job once, and write how long it took, of how many commands, and what failed: after each job anew."""
    load, started = os.getloadavg()[0], time.perf_counter()
    jobs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root, python = (ROOT, sys.executable) if not fresh else cloned(Path(scratch), jobs)
        for name, pages in JOBS.items():
            blocks = [block for page in pages for block in blocks_of(root / page)]
            jobs[name] = {"pages": list(pages), **told(blocks, run_blocks(blocks, python=python, root=root))}
            report = write_results(
                results,
                command="python -m docs.experiments.first_hour run" + (" --fresh" if fresh else ""),
                seeds=[],
                seconds=time.perf_counter() - started,
                numbers=summary(jobs, fresh=fresh, load=load),
            )
            Console().print(name, jobs[name])
    Console().print({key: report[key] for key in ("tracebacks", "commands", "beside_other_work")})


def summary(jobs: Mapping[str, Mapping[str, Any]], *, fresh: bool, load: int | float) -> dict[str, Any]:
    """What the results file says of all jobs. load: processes at work before the first command."""
    return {
        "tracebacks": sum(job["failure"] != "" for job in jobs.values()),
        "commands": sum(job["commands"] for job in jobs.values()),
        "fresh_environment": fresh,
        "beside_other_work": load > BUSY,
        "jobs": dict(jobs),
    }


def blocks_of(page: Path) -> list[Block]:
    """What a page asks to be typed: its blocks of Python and of the shell."""
    return [Block(page.name, *found) for found in BLOCK.findall(page.read_text(encoding="utf-8"))]


def run_blocks(blocks: Sequence[Block], *, python: str = sys.executable, root: Path = ROOT) -> Done:
    """Run blocks in turn, in one session and an empty folder, with texts tokenized anew; nothing is shown."""
    with tempfile.TemporaryDirectory() as folder:
        kept = {"SPARSE_CIRCUITS_CACHE": str(Path(folder) / ".cache"), "PLOTLY_RENDERER": "json"}
        started = time.perf_counter()
        done = subprocess.run(
            [python, "-c", RUNNER],
            input=json.dumps(blocks),
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(root), **kept},
            capture_output=True,
            text=True,
        )
    return Done(time.perf_counter() - started, done.returncode, done.stderr)


def told(blocks: Sequence[Block], done: Done) -> dict[str, Any]:
    """A job's entry in the results file."""
    return {
        "minutes": round(done.seconds / 60, 2),
        "commands": sum(block.commands for block in blocks),
        "python_lines": sum(len(b.text.strip().splitlines()) for b in blocks if b.kind == "python"),
        "failure": done.failure,
    }


def cloned(folder: Path, jobs: dict[str, Any]) -> tuple[Path, str]:
    """A clone of this checkout after `make demo`, whose time goes into `jobs`; and the Python of its environment."""
    clone = folder / "sparse-circuits"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    started = time.perf_counter()
    make = shutil.which("make") or "make"
    done = subprocess.run([make, "demo"], cwd=clone, capture_output=True, text=True)
    block = [Block("README.md", "sh", "make demo")]
    jobs["install, and make demo"] = {
        "pages": ["README.md"],
        **told(block, Done(time.perf_counter() - started, done.returncode, done.stderr)),
    }
    return clone, str(clone / ".venv" / "bin" / "python")


if __name__ == "__main__":
    app()
