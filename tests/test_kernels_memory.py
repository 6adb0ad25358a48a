"""Blocks are reused when nobody can still see them, and only then."""

from collections.abc import Iterator

import pytest
import torch

from circuits.kernels.cpu import memory

SHAPE = torch.Size((512, 1024))


@pytest.fixture(autouse=True)
def _nothing_idle() -> Iterator[None]:
    memory.release()
    yield
    memory.release()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_block_is_reused_once_its_last_tensor_is_dead(dtype: torch.dtype) -> None:
    first = memory.empty(SHAPE, dtype)
    assert first.shape == SHAPE
    assert first.dtype == dtype
    assert first.is_contiguous()
    address = first.data_ptr()
    view = first[3:].t()
    del first
    assert memory.empty(SHAPE, dtype).data_ptr() != address
    del view
    memory.release()
    again = memory.empty(SHAPE, dtype)
    address = again.data_ptr()
    del again
    assert memory.empty(SHAPE, dtype).data_ptr() == address


def test_a_tensor_saved_for_the_backward_pass_keeps_its_block() -> None:
    x = memory.empty(SHAPE, torch.float32).fill_(2.0).requires_grad_()
    y = memory.empty(SHAPE, torch.float32).fill_(3.0)
    loss = (x * y).sum()
    del y
    memory.empty(SHAPE, torch.float32).fill_(5.0)
    loss.backward()
    assert (x.grad == 3.0).all()


def test_another_size_gets_another_block() -> None:
    memory.empty(SHAPE, torch.float32).fill_(1.0)
    assert memory.empty(torch.Size((512, 1023)), torch.float32).shape == (512, 1023)
    assert memory.empty(torch.Size((3, 0)), torch.float32).shape == (3, 0)


def test_idle_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "KEPT", 5 * 2**20)
    alive = [memory.empty(SHAPE, torch.float32) for _ in range(4)]
    assert memory._idle == []
    alive.clear()
    assert len(memory._idle) == 2
