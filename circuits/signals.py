"""Signals that ask a process to stop: held back while something is written, heeded afterwards, never lost."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a process to stop: Ctrl-C, a cluster or the system, a terminal that closes."""


@contextmanager
def unbroken() -> Iterator[None]:
    """Inside, Ctrl-C and its like (`STOPPING`) wait; they go to the handlers there were when the block has ended."""
    waiting: list[tuple[int, FrameType | None]] = []
    with handled(lambda number, frame: waiting.append((number, frame))) as before:
        yield
    if waiting:
        passed_on(before, *waiting[0])


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[dict[int, Any]]:
    """Inside, `handler` gets the signals that ask to stop; yields the handlers that there were, by signal.

    None is set off the main thread, which no signal reaches, nor for one that the process ignores, nor for a Ctrl-C
    that kills it.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in STOPPING}
        before = {number: own for number, own in before.items() if callable(own) or _deadly(number, own)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield before
    finally:
        for number, own in before.items():
            signal.signal(number, own)


def _deadly(number: int, handler: Any) -> bool:
    return handler is signal.SIG_DFL and number != signal.SIGINT


def passed_on(before: Mapping[int, Any], number: int, frame: FrameType | None) -> None:
    """Let a signal do what it would have done under the handlers of `before`."""
    own = before.get(number)
    if callable(own):
        own(number, frame)
        return
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


@contextmanager
def heeding_interrupts() -> Iterator[Callable[[], None]]:
    """Yields what to call now and then: it raises KeyboardInterrupt if Ctrl-C came where Python swallows it.

    A KeyboardInterrupt raised inside a finaliser (`__del__`) is printed and forgotten; any other acts as ever.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: None
        return
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        try:
            before(number, frame)
        except KeyboardInterrupt:
            came.append(number)
            raise

    def heed() -> None:
        if came:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield heed
        heed()
    finally:
        signal.signal(signal.SIGINT, before)
