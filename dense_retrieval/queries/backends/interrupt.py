"""Ctrl-C, once to stop in good order and twice to stop at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, current_thread, main_thread


@contextmanager
def interruptible(stop: Event, say: Callable[[str], None]) -> Iterator[None]:
    """Sets ``stop`` in the end, and already at the first Ctrl-C, where that would raise KeyboardInterrupt."""
    usual = signal.default_int_handler
    ours = current_thread() is main_thread() and signal.getsignal(signal.SIGINT) is usual

    def first(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, usual)
        say("waiting for the requests in flight; Ctrl-C again leaves them")  # to log here could deadlock

    if ours:
        signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        stop.set()
        if ours:
            signal.signal(signal.SIGINT, usual)
