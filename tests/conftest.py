"""Shared fixtures. Shapes in every signature are checked by the jaxtyping option in pyproject.toml."""

import importlib
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


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training starts from models of float64: in float32 rounding may decide a near tie, and curves part for good."""
    loop = importlib.import_module("circuits.training.loop")
    new_model = loop.new_model
    monkeypatch.setattr(loop, "new_model", lambda *given: new_model(*given).double())


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_interrupts() -> Iterator[None]:
    """Ctrl-C is an interrupt, also where the tests run in the background of a shell, which has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
