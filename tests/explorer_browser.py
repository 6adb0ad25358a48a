"""The explorer in a real browser, for the tests that drive it: from disk, with the network off."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from circuits.plots.snapshot import find_browser

MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(find_browser() is None, reason="neither chromium nor chrome is installed"),
]
PICK = "E = () => document.getElementById('explorer').explorer"
READY = "() => E().isFitted && (!E().program || E().pairs)"
"""Whether all that the page computes after a change is there."""
PATIENCE = 120_000
"""Milliseconds until a state that does not come fails a test: a machine may be busy."""


def chromium() -> Iterator[Any]:
    """A browser, for a fixture."""
    playwright = pytest.importorskip("playwright.sync_api", reason="drives a browser with playwright")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        yield running
        running.close()


def opened(
    browser: Any, path: Path, errors: list[str], *, hash: str = "", size: tuple[int, int] = (1280, 800)
) -> Any:
    """The page from disk with the network off; whatever goes wrong in it is appended to `errors`."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, offline=True)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri() + hash)
    page.evaluate(PICK)
    page.wait_for_function(READY)
    return page
