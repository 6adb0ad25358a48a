"""The pages that teach: their commands and their Python run as they stand, page by page, in an empty folder."""

import sys
from pathlib import Path

import pytest

from docs.experiments.first_hour import JOBS, Block, Done, blocks_of, run_blocks, summary, told

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [DOCS / "getting-started.md", *sorted((DOCS / "how-to").glob("*.md"))]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_a_page_has_blocks_and_they_compile(page):
    found = blocks_of(page)
    assert found
    assert page.read_text().count("```") == 2 * len(found)
    for block in found:
        if block.kind == "python":
            compile(block.text, page.name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_as_it_stands(page):
    done = run_blocks(blocks_of(page))
    assert done.status == 0, done.said[-3000:]
    assert done.failure == ""


STANDS_IN = {
    "circuits.train(circuits.TrainConfig.toy(seed=0))": 'circuits.load("mini-python")',
    "circuits.trust.trust_report(model, shipped.circuit)": "shipped.report",
}
"""Lines of the README that take two minutes each, and what ships of what they make."""


@pytest.mark.slow
def test_the_readme_runs_but_for_its_training_and_its_report():
    shipped = blocks_of(ROOT / "README.md")
    for line, instead in STANDS_IN.items():
        assert sum(line in block.text for block in shipped) == 1
        shipped = [block._replace(text=block.text.replace(line, instead)) for block in shipped]
    done = run_blocks(shipped)
    assert done.status == 0, done.said[-3000:]


def test_every_page_that_teaches_is_part_of_a_job():
    told_of = {ROOT / page for pages in JOBS.values() for page in pages}
    assert set(PAGES) <= told_of
    assert all(page.exists() for page in told_of)


def test_blocks_share_their_names_and_a_folder_and_are_counted():
    blocks = [
        Block("a.md", "sh", "echo 3 > n\ntest -e n\n"),
        Block("a.md", "python", "n = int(open('n').read())\n"),
        Block("b.md", "python", "import os\n\nassert n == 3\nassert sorted(os.listdir()) == ['n']\n"),
    ]
    entry = told(blocks, run_blocks(blocks))
    assert (entry["commands"], entry["python_lines"], entry["failure"]) == (4, 5, "")


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("python", "x = 1\n1 / 0\n", "ZeroDivisionError: division by zero"),
        ("sh", "false\n", "non-zero exit status 1"),
    ],
)
def test_what_fails_is_told(kind, text, said):
    done = run_blocks([Block("a.md", kind, text)], python=sys.executable)
    assert said in done.failure
    jobs = {"a": told([], done), "b": told([], Done(1.0, 0, "a warning"))}
    assert summary(jobs, fresh=False, load=0.0)["tracebacks"] == 1


def test_minutes_beside_other_work_are_marked():
    assert summary({}, fresh=True, load=1.2)["beside_other_work"]
    assert not summary({}, fresh=True, load=0.1)["beside_other_work"]
