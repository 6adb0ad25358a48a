"""The page about text of one's own: its commands and its Python run as they stand."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from circuits.__main__ import app

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/explanation/own-text.md").read_text()
COMMANDS = [
    line.strip()
    for line in PAGE.splitlines()
    if re.match(r" {4}(circuits|echo) ", line) and "packages" not in line
]
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_has_what_is_run():
    assert [command.split()[0] for command in COMMANDS] == ["echo", "circuits", "circuits"]
    assert len(PYTHON) == 1


@pytest.mark.slow
def test_commands_and_python_run_as_they_stand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSE_CIRCUITS_CACHE", str(tmp_path / "cache"))
    for name in ("explanation", "reference"):  # pages alone: pictures are no text, which is said in a warning
        (tmp_path / "docs" / name).mkdir(parents=True)
        for page in (ROOT / "docs" / name).glob("*.md"):
            (tmp_path / "docs" / name / page.name).write_text(page.read_text())
    said, _, file = COMMANDS[0].removeprefix("echo ").partition(" > ")
    Path(file).write_text(shlex.split(said)[0])
    for command in COMMANDS[1:]:
        told = CliRunner().invoke(app, shlex.split(command)[1:])
        assert told.exit_code == 0, told.output
    exec(compile(PYTHON[0], "own-text.md", "exec"), {})
