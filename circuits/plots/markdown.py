"""Tables in Markdown, and their places in the pages of docs/, between two marks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from circuits.files import write_text


def markdown_table(head: Sequence[str], body: Sequence[Sequence[Any]], *, numeric: Sequence[int] = ()) -> str:
    """A Markdown table; the columns whose indices are in `numeric` are set flush right."""
    rule = ["---:" if i in numeric else "---" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (head, rule, *body))


def around_marks(page: Path, begin: str, end: str) -> tuple[str, str]:
    """A page up to its first mark and from its second one on, both marks included.

    Raises ValueError when the page is missing or lacks the marks.
    """
    text = page.read_text() if page.exists() else ""
    before, found, rest = text.partition(begin)
    if not found or end not in rest:
        raise ValueError(
            f"{page}: expected {begin!r} and {end!r} in it, between which the table goes; add both, or run the "
            "command at the top of the repository."
        )
    return before + begin, end + rest.partition(end)[2]


def write_between(page: Path, begin: str, end: str, text: str) -> Path:
    """Put text between the two marks of a page, in one step; returns its path. Raises ValueError as `around_marks`."""
    before, after = around_marks(page, begin, end)
    return write_text(page, f"{before}\n\n{text}\n\n{after}")


def made_by(report: Mapping[str, Any]) -> str:
    """How the numbers of a results file came about, in one line."""
    return (
        f"`{report['command']}` (seeds {', '.join(map(str, report['seeds']))}; {report['minutes']:.0f} minutes on one "
        f"core of: {report['machine']}; {report['date']})"
    )
