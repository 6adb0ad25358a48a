"""The gallery: every picture that the package draws is in it, and is a figure."""

import plotly.graph_objects as go
import pytest

from circuits import plots
from docs.experiments.pictures import GALLERY, page


def test_every_picture_is_in_the_gallery_and_on_its_page() -> None:
    drawn = {name.removesuffix("_figure") for name in plots.__all__ if name.endswith("_figure")}
    assert set(GALLERY) == drawn
    assert all(f"](pictures/{name}.png)" in page() for name in GALLERY)


@pytest.mark.slow
@pytest.mark.parametrize("name", GALLERY)
def test_the_gallery_draws(name: str) -> None:
    figure = GALLERY[name]()
    assert isinstance(figure, go.Figure)
    assert figure.data


def test_the_figure_of_widths_joins_no_means_by_a_line():
    run = {"width": 64, "val_loss": 2.0, "circuits": {"quotes": {"solved": True, "n_edges": 9}}}
    report = {
        "widths": [64, 128],
        "n_edges": [9.0, 7.0],
        "val_loss": [2.0, 1.9],
        "n_nonzero": [3000, 3000],
        "runs": [run],
    }
    figure = plots.frontier_figure(report)
    assert len(figure.data) == 2
    assert all("lines" not in trace.mode for trace in figure.data)
