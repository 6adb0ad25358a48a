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
