"""Shared fixtures. Shapes in every signature are checked by the jaxtyping option in pyproject.toml."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
