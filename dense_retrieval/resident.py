"""Memory that work takes: the resident pages of this process and of those that it starts."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_EVERY = 0.2  # seconds


def now() -> int:
    """Bytes that this process and those it started hold now; what two of them share counts twice."""
    import psutil

    own = psutil.Process()
    total = 0
    for process in [own, *own.children(recursive=True)]:
        with suppress(psutil.Error):  # it has ended
            total += process.memory_info().rss
    return total


@contextmanager
def peak() -> Iterator[Callable[[], int]]:
    """Gives a function that says the most bytes held so far, seen five times a second."""
    most = now()
    ended = threading.Event()

    def look() -> int:
        nonlocal most
        most = max(most, now())
        return most

    def watch() -> None:
        while not ended.wait(_EVERY):
            look()

    thread = threading.Thread(target=watch, daemon=True, name="resident memory")
    thread.start()
    try:
        yield look
    finally:
        ended.set()
        thread.join()
