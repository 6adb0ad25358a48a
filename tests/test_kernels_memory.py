"""Blocks are reused when nobody can still see them, and only then; the process's allocator changes when asked to."""

import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from circuits import BridgeConfig, ModelConfig, SparseTransformer, TrainConfig, fit_bridges, prune, train
from circuits.bench.steps import step, toy
from circuits.kernels.cpu import memory
from circuits.model.compute import compact, sparse_compute
from tasks import load_task
from tasks.corpus import mini_corpus

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


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Calls of mallopt, which are noted and not made."""
    calls: list[tuple[int, int]] = []

    def mallopt(parameter: int, value: int) -> int:
        calls.append((parameter, value))
        return 1

    monkeypatch.setattr(memory, "_mallopt", lambda: mallopt)
    return calls


PAGES = [(-3, 2**30), (-1, 2**31 - 1)]
"""M_MMAP_THRESHOLD and M_TRIM_THRESHOLD."""
SMALL = ModelConfig(d_vocab=7, n_layers=1, d_model=32, n_heads=2, d_head=8, d_mlp=48, n_ctx=16)


def test_keeping_pages_is_two_settings_and_says_whether_it_can(
    asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert memory.keep_pages()
    assert asked == PAGES
    monkeypatch.setattr(memory, "_mallopt", lambda: None)
    assert not memory.keep_pages()


def test_a_pass_on_the_nonzeros_leaves_the_allocator_alone(asked: list[tuple[int, int]]) -> None:
    model, tokens = SparseTransformer(SMALL, seed=0), torch.randint(7, (2, 16))
    for matrix in model.matrices():
        matrix.parameter.data *= torch.rand_like(matrix.parameter) < 0.1
    with sparse_compute(model) as chosen:
        assert "cpu" in chosen.values()
        model(tokens, return_type="loss").backward()
    compact(model)(tokens)
    assert asked == []


@pytest.mark.slow
def test_importing_the_package_and_a_pass_on_the_nonzeros_never_look_for_mallopt() -> None:
    script = """
import ctypes
looked, plain = [], ctypes.CDLL.__getitem__
ctypes.CDLL.__getitem__ = lambda self, name: (looked.append(name), plain(self, name))[1]
import circuits, circuits.bench, torch
from circuits import fit_bridges, kernels, prune, train
from circuits.kernels.cpu.memory import keep_pages
weight = kernels.SparseWeight.from_dense(torch.eye(300))
kernels.sparse_linear(weight, torch.ones(300, 900, requires_grad=True)).sum().backward()
assert 'GOMP_parallel' in looked  # the loops ran, and looking is noted
assert 'mallopt' not in looked
keep_pages()
assert 'mallopt' in looked
"""
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]


def trains() -> None:
    config = TrainConfig(model=SMALL, steps=1, batch_size=2, density=0.3, n_val=2)
    train(config, corpus=mini_corpus(n_train_lines=50, n_val_lines=10), progress=False)


def prunes() -> None:
    with pytest.raises(ValueError, match="the model one of 7"):
        prune(SparseTransformer(SMALL, seed=0), load_task("quotes"), progress=False)


def fits() -> None:
    model, text = SparseTransformer(SMALL, seed=0), mini_corpus(n_train_lines=50, n_val_lines=10)
    with pytest.raises(ValueError, match="vocabulary"):
        fit_bridges(model, model, text, BridgeConfig(steps=1), progress=False)


def times() -> None:
    step(toy(d_model=16, n_layers=1, pos=4, batch=1, density=0.5), "fast")


@pytest.mark.parametrize("work", [trains, prunes, fits, times])
def test_what_trains_asks_for_its_pages_first(work: Callable[[], None], asked: list[tuple[int, int]]) -> None:
    work()
    assert asked[:2] == PAGES
