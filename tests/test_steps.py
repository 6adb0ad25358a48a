"""Steps: Ctrl-C waits, a second one does not, and an optimiser goes on from tensors to the same bits."""

import signal
import threading

import pytest
import torch

from circuits.training.steps import optimizer_tensors, restore_optimizer, whole_steps


def test_ctrl_c_waits_until_it_is_asked_for():
    before = signal.getsignal(signal.SIGINT)
    with whole_steps() as asked_to_stop:
        assert not asked_to_stop()
        signal.raise_signal(signal.SIGINT)
        assert asked_to_stop()
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_second_ctrl_c_goes_to_the_handler_there_was():
    heard = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with whole_steps() as asked_to_stop:
            signal.raise_signal(signal.SIGINT)
            assert heard == []
            signal.raise_signal(signal.SIGINT)
            assert heard == [signal.SIGINT]
            assert asked_to_stop()
    finally:
        signal.signal(signal.SIGINT, before)
    with whole_steps():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with whole_steps() as asked_to_stop:
            signal.raise_signal(signal.SIGINT)
            assert not asked_to_stop()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_off_the_main_thread_no_handler_is_set():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with whole_steps() as asked_to_stop:
            seen.extend([signal.getsignal(signal.SIGINT), asked_to_stop()])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, False]


def stepped(optimizer, weight):
    optimizer.zero_grad()
    (weight - 1).square().sum().backward()
    optimizer.step()


def test_an_optimiser_goes_on_from_its_tensors_under_its_own_name():
    weight = torch.nn.Parameter(torch.arange(3.0))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    stepped(optimizer, weight)
    kept = {name: value.clone() for name, value in optimizer_tensors("adam", optimizer).items()}
    assert set(kept) == {"adam.0.step", "adam.0.exp_avg", "adam.0.exp_avg_sq"}
    copy = torch.nn.Parameter(weight.detach().clone())
    stepped(optimizer, weight)
    again = torch.optim.Adam([copy], lr=0.1)
    restore_optimizer(
        "adam", again, {**kept, "adam_maps.0.step": torch.tensor(99.0), "generator": torch.ones(1)}
    )
    stepped(again, copy)
    assert torch.equal(copy, weight)
