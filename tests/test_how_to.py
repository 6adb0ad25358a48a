"""The pages that teach: their commands and their Python run as they stand, page by page, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [DOCS / "getting-started.md", *sorted((DOCS / "how-to").glob("*.md")), DOCS / "peers.md"]
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
RUNNER = """
import shlex, subprocess, sys
from pathlib import Path

def shell(text):
    for line in text.splitlines():
        command = line.replace("circuits ", f"{shlex.quote(sys.executable)} -m circuits ", line.startswith("circuits "))
        subprocess.run(command, shell=True, check=True)

space = {"__name__": "__main__"}
for kind, text in BLOCKS:
    exec(compile(text, PAGE, "exec"), space) if kind == "python" else shell(text)
"""
"""Runs the blocks of a page in turn; those of Python share their names, as in one session."""


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_blocks_and_they_compile(page):
    found = blocks(page)
    assert found
    assert page.read_text().count("```") == 2 * len(found)
    for kind, text in found:
        if kind == "python":
            compile(text, page.name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_as_it_stands(page, tmp_path):
    code = RUNNER.replace("BLOCKS", repr(blocks(page))).replace("PAGE", repr(page.name))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SPARSE_CIRCUITS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
