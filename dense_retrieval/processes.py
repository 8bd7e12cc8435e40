"""Processes of this machine that compute shards, and what all who compute shards have in common."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import traceback
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import connection, get_context, parent_process
from threading import Thread
from typing import TYPE_CHECKING, Any

from dense_retrieval.records import InputError

if TYPE_CHECKING:
    from dense_retrieval.executor import Advance, Compute, Load

log = logging.getLogger(__name__)

TRIES = 3  # of a shard that took down who computed it


class Setup:
    """What a process that computes has to have as this one has it, for the same bits at the same speed."""

    def __init__(self, threads: int) -> None:
        import torch

        self.threads = threads
        self.flush_denormal = (torch.tensor(1e-39) * 1.0).item() == 0.0

    def apply(self, place: str) -> None:
        import torch

        if place.startswith("cuda:"):  # else what names no GPU takes memory of the first one
            torch.cuda.set_device(place)
        torch.set_flush_denormal(self.flush_denormal)
        torch.set_num_threads(self.threads)


class Tries:
    """Counts how often a shard took down who computed it."""

    def __init__(self) -> None:
        self._lost: Counter[int] = Counter()

    def again(self, number: int, how: str) -> None:
        """Raises InputError when it was once too often."""
        self._lost[number] += 1
        if self._lost[number] == TRIES:
            raise InputError(
                f"shard {number} took down {TRIES} processes, the last one {how}; if the machine's memory was full, "
                "lower executor.devices"
            )
        log.warning("a process that computed shard %d %s; another one computes it again", number, how)


class Processes:
    """At most one a place, started when there is a shard for it."""

    def __init__(self, load: Load, places: Sequence[str]) -> None:
        import torch

        self._load, self._free = load, deque(places)
        self._setup = Setup(max(1, torch.get_num_threads() // len(places)))
        self._idle: list[_Process] = []
        self._busy: dict[connection.Connection, _Process] = {}
        self._tries = Tries()

    def map(self, shards: Iterable[tuple[int, Any]], advance: Advance) -> Iterator[tuple[int, Any]]:
        waiting, again = iter(shards), deque[tuple[int, Any]]()
        while True:
            while self._idle or self._free:
                shard = again.popleft() if again else next(waiting, None)
                if shard is None:
                    break
                self._give(*shard)
            if not self._busy:
                return
            for ready in connection.wait(list(self._busy)):
                process = self._busy[ready]  # type: ignore[index]
                try:
                    kind, value = process.connection.recv()
                except (EOFError, ConnectionError):
                    del self._busy[process.connection]
                    self._free.append(process.place)
                    self._tries.again(process.number, process.end())
                    again.append((process.number, process.shard))
                    continue
                if kind == "advance":
                    advance(value)
                    continue
                if kind == "failed":
                    raise value
                del self._busy[process.connection]
                self._idle.append(process)
                process.shard = None
                yield process.number, value

    def _give(self, number: int, shard: Any) -> None:
        process = self._idle.pop() if self._idle else _Process(self._load, self._free.popleft(), self._setup)
        process.number, process.shard = number, shard
        self._busy[process.connection] = process
        with suppress(ConnectionError):  # it has died: found when its answer is read
            process.connection.send((number, shard))

    @property
    def started(self) -> bool:
        return bool(self._idle or self._busy)

    def stop(self) -> None:
        for process in [*self._idle, *self._busy.values()]:
            process.end()


class _Process:
    number: int
    shard: Any

    def __init__(self, load: Load, place: str, setup: Setup) -> None:
        self.place = place
        context = get_context("spawn")  # CUDA cannot be forked
        self.connection, other = context.Pipe()
        arguments = other, pickle.dumps((load, place, setup))
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        other.close()

    def end(self) -> str:
        """Returns how it ended."""
        self.connection.close()
        self._process.join(0.1)
        self._process.terminate()
        self._process.join()
        code = self._process.exitcode or 0
        return f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"


def _serve(asked: connection.Connection, pickled: bytes) -> None:
    """A process's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the first one ends the others
    Thread(target=_end_with_parent, daemon=True).start()
    compute: Compute | None = None
    try:
        while True:
            _, shard = asked.recv()
            try:
                if compute is None:
                    load, place, setup = pickle.loads(pickled)
                    setup.apply(place)
                    compute = load(place)
                answer = "done", compute(shard, lambda n: asked.send(("advance", n)))
            except (BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:
                answer = "failed", portable(error)
            asked.send(answer)
    except (EOFError, ConnectionError):
        pass


def _end_with_parent() -> None:
    """In the midst of a shard, too: whoever starts the work again wants the device."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def portable(error: Exception) -> Exception:
    """An error that another process can raise, with where it was raised here."""
    if not isinstance(error, InputError):
        error.add_note("in another process:\n" + traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{error!r}\n{traceback.format_exc()}")
