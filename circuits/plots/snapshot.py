"""Figures as PNG files, drawn by a Chromium or Chrome that the user has."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from circuits.plots.page import figure_html

__all__ = ["figure_to_png"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=5000",
)
PATIENCE = 600
"""Seconds after which a browser is taken to hang; drawing takes a few, on a busy machine more."""


def find_browser() -> str | None:
    """Path of a Chromium or Chrome on PATH, or None."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def figure_to_png(figure: go.Figure, path: str | Path, *, width: int = 1000, scale: int | float = 2) -> Path:
    """Draw a figure to a PNG, `width` pixels wide (times `scale`), with a Chromium or Chrome found on PATH.

    Raises ValueError when none is found, RuntimeError when it draws nothing.

    Examples:
        >>> figure = circuits.load("quotes-128").circuit.plot()
        >>> circuits.plots.figure_to_png(figure, "circuit.png").stat().st_size > 0
        True
    """
    browser = find_browser()
    if browser is None:
        raise ValueError(
            f"figure_to_png: found none of {BROWSERS} on PATH; install chromium, or use write_page."
        )
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    height = round(figure.layout.height or 450)
    with tempfile.TemporaryDirectory() as folder:
        page, drawn = Path(folder, "figure.html"), Path(folder, "figure.png")
        script = f"<style>body {{ margin: 0 }}</style><script>{get_plotlyjs()}</script>"
        drawing = figure_html(figure, "figure", "{staticPlot: true}")
        page.write_text(f'<!doctype html><meta charset="utf-8">{script}{drawing}', encoding="utf-8")
        command = [
            browser,
            *BROWSER_OPTIONS,
            f"--user-data-dir={folder}/profile",
            f"--window-size={width},{height}",
        ]
        command += [f"--force-device-scale-factor={scale:g}", f"--screenshot={drawn}", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if not drawn.exists():
            raise RuntimeError(f"figure_to_png: {browser} drew nothing. It said: {done.stderr[-500:]}")
        shutil.copyfile(drawn, path)
    return path
