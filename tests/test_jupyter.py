"""The widget in JupyterLab itself, driven in a real browser: it draws, answers a click, and its state outlives it."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import nbformat
import pytest

from circuits.plots.snapshot import find_browser

playwright = pytest.importorskip("playwright.sync_api", reason="drives a browser with playwright")
pytest.importorskip("jupyterlab", reason="opens JupyterLab: pip install sparse-circuits[notebooks]")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="neither chromium nor chrome is installed"),
]
CELL = (
    "from circuits.handmade import quotes\n"
    "made = quotes(1)\n"
    "made.circuit.explore(made.model, made.task, n_prompts=4)"
)
SECONDS = 120


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address of a JupyterLab of its own, and the notebook in it; all its files are in the temporary folder."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "page.ipynb")
    kept = tmp_path / "settings" / "@jupyter-widgets" / "jupyterlab-manager" / "plugin.jupyterlab-settings"
    kept.parent.mkdir(parents=True)
    kept.write_text('{"saveState": true}')  # as Settings > Save Widget State Automatically does
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    homes = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    env = {
        **os.environ, **homes, "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"), "HOME": str(tmp_path),
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"), "IPYTHONDIR": str(tmp_path / "ipython"),
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    options = [
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=",
        "--no-browser",
    ]
    options += ["--ServerApp.allow_root=True", f"--ServerApp.root_dir={tmp_path}", "--LabApp.news_url="]
    log = (tmp_path / "server.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options], env=env, stdout=log, stderr=subprocess.STDOUT
    )
    address = f"http://127.0.0.1:{port}"
    try:
        answering(f"{address}/api/status", server, tmp_path / "server.log")
        yield address, tmp_path / "page.ipynb"
    finally:
        server.terminate()
        try:
            server.wait(SECONDS)
        finally:
            server.kill()
            log.close()


def answering(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until a server answers."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and server.poll() is None:
        try:
            with urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start. It said: {log.read_text()[-2000:]}")


def test_the_widget_works_in_jupyterlab_and_stands_in_an_exported_notebook(lab: tuple[str, Path]) -> None:
    address, notebook = lab
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(1000 * SECONDS)
        node, value = played(page, f"{address}/lab/tree/page.ipynb?reset", notebook)
        page.close()
        browser.close()
    assert chosen_in(notebook) == [node]
    assert value == node
    kept = re.search(
        r'<script type="application/vnd.jupyter.widget-state\+json">\s*(.*?)</script>',
        exported(notebook),
        re.DOTALL,
    )
    assert kept is not None
    assert node in json.dumps(
        [state["state"] for state in widget_states_of(json.loads(kept[1])) if "view" in state]
    )


def played(page: Any, url: str, notebook: Path) -> tuple[str, str]:
    """Run the cell, choose a node of the picture, save; returns the node and what the panel says was chosen."""
    page.goto(url)
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').first.wait_for()
    run_first_cell(page)
    page.locator(".explorer .picture .node").first.wait_for()
    mark = page.locator(".explorer .node").nth(2)
    node = mark.get_attribute("data-id")
    mark.locator(".dot").click()
    said = page.locator(".explorer .panel p.faint").first.inner_text()
    page.evaluate("() => document.activeElement.blur()")

    def save() -> None:
        page.locator(".jp-Notebook").first.focus()
        page.keyboard.press("Control+s")

    until_it_is_so(page, save, lambda: node in json.dumps(chosen_in(notebook)))
    return node, said


def run_first_cell(page: Any) -> None:
    """Run the cell until it has a number or a star: JupyterLab drops a run that comes before its session is up."""
    prompt = page.locator(".jp-CodeCell .jp-InputPrompt").first

    def run() -> None:
        page.locator(".jp-CodeCell").first.click()
        page.keyboard.press("Shift+Enter")

    until_it_is_so(page, run, lambda: prompt.inner_text().strip() not in ("[ ]:", ""))


def until_it_is_so(page: Any, does: Callable[[], None], is_so: Callable[[], bool]) -> None:
    """Do something, and again where it was not heeded after a while, until a state is reached."""
    until = time.monotonic() + 2 * SECONDS
    while time.monotonic() < until:
        does()
        for _ in range(20):
            if is_so():
                return
            page.wait_for_timeout(250)
    pytest.fail(f"{does.__name__} was not heeded within {2 * SECONDS} seconds")


def chosen_in(notebook: Path) -> list[Any]:
    """What the explorers that a notebook was saved with had chosen."""
    states = [
        state["state"] for state in widget_states(nbformat.read(notebook, as_version=4)) if "view" in state
    ]
    return [state.get("chosen") for state in states]


def widget_states(notebook: Any) -> list[dict[str, Any]]:
    """States of the widgets that a notebook was saved with."""
    saved = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    return widget_states_of(saved)


def widget_states_of(saved: Any) -> list[dict[str, Any]]:
    return [model["state"] for model in saved.get("state", {}).values()]


def exported(notebook: Path) -> str:
    """The notebook as HTML."""
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter().from_notebook_node(nbformat.read(notebook, as_version=4))
    return str(body)
