"""The pages: every link leads somewhere, and every name of the project that they mention exists."""

import re
from pathlib import Path

import pytest
from names_used import exists, missing

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
DOTTED = re.compile(r"`((?:circuits|tasks)(?:\.\w+)+)")
MODULE_PATH = re.compile(r"\b(?:circuits|tasks|docs|tests|notebooks)/[\w./-]+\w")


def broken_links(page: Path) -> list[str]:
    """Links to files that are not there, or to headings that the page does not have."""
    return [link for link in LINK.findall(page.read_text()) if "://" not in link and not _leads(page, link)]


def _leads(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    return target.exists() and (not anchor or anchor in _anchors(target.read_text()))


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def unknown_names(text: str) -> list[str]:
    """Names in code marks or import lines that do not exist."""
    imports = re.findall(r"^\s*((?:from|import) (?:circuits|tasks|docs)\b.*)$", text, re.MULTILINE)
    return [name for name in DOTTED.findall(text) if not exists(name)] + [
        n for line in imports for n in missing(line)
    ]


def gone_files(text: str) -> list[str]:
    """Paths in the repository, as a page writes them, that are not there; links are seen to by `broken_links`."""
    return [path for path in MODULE_PATH.findall(LINK.sub("]", text)) if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_names_exist(page):
    # The log tells what was, under the names that it had.
    if page.name != "log.md":
        assert unknown_names(page.read_text()) == []
        assert gone_files(page.read_text()) == []


def test_names_in_comments_and_docstrings_exist():
    for top in ("circuits", "tasks", "docs"):
        for path in (ROOT / top).rglob("*.py"):
            assert [name for name in DOTTED.findall(path.read_text()) if not exists(name)] == [], path


def test_what_leads_nowhere_is_found(tmp_path):
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# One thing: `a`\n")
    page.write_text(
        "# Here\n[a](other.md) [b](other.md#one-thing-a) [c](#here) [d](https://x.org/y) ![](no.png)\n"
    )
    assert broken_links(page) == ["no.png"]
    page.write_text("[a](gone.md#x) [b](other.md#another) [c](#there)")
    assert broken_links(page) == ["gone.md#x", "other.md#another", "#there"]


def test_names_that_do_not_exist_are_found():
    text = "`circuits.prune(model)`, `circuits.trust.Bench`, `circuits.faithfulness.evaluate`\n\n"
    text += "    from circuits.model import compact, expand\n    import tasks.nothing\n"
    assert unknown_names(text) == ["circuits.faithfulness.evaluate", "circuits.model.expand", "tasks.nothing"]
    assert gone_files("in circuits/files.py and circuits/topk.py, docs/log.md") == ["circuits/topk.py"]
    assert gone_files("[from here](notebooks/gone.md), not notebooks/gone.md") == ["notebooks/gone.md"]
