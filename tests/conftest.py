"""Shared fixtures. Shapes in every signature are checked by the jaxtyping option in pyproject.toml."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for tokenized text, which nothing has made yet."""
    folder = tmp_path / "kept" / "tokens"
    monkeypatch.setenv("SPARSE_CIRCUITS_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_interrupts() -> Iterator[None]:
    """Ctrl-C is an interrupt, also where the tests run in the background of a shell, which has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
