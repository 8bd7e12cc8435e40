"""Work that splits: a function over numbered shards, on all devices of this machine or of a cluster.

::

    with executor.workers(load, device) as computed:
        for number, result in computed(shards, advance):  # in the order in which they are finished
            ...

``load(device)`` loads a model and gives the function that computes a shard's result. Shards are cut before they are
dealt out, and each device computes a whole one: the results do not depend on how many devices there are.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from dense_retrieval.processes import Processes
from dense_retrieval.records import InputError

log = logging.getLogger(__name__)

Advance: TypeAlias = Callable[[int], None]  # told how much more of the work is done
Compute: TypeAlias = Callable[[Any, Advance], Any]  # a shard -> its result
# A device -> what computes there. Of several processes or nodes it is pickled; the paths in ``reads``, if it has them,
# are what it will open.
Load: TypeAlias = Callable[[str], Compute]
Map: TypeAlias = Callable[[Iterable[tuple[int, Any]], Advance], Iterator[tuple[int, Any]]]


class Executor(Protocol):
    """Where shards are computed."""

    def device(self, wanted: str) -> str:
        """cpu or cuda, for a wanted device that may be auto."""

    def prepare(self, wanted: str) -> None:
        """Raise InputError where there is not enough to compute on; ``wanted`` is a device, or auto."""

    def places(self, device: str | None) -> list[str]:
        """Of each that computes its device; ``device`` is as for :meth:`workers`."""

    def workers(self, load: Load, device: str | None) -> AbstractContextManager[Map]:
        """What maps shards, while the block lasts; models are loaded when they are first needed, and once.

        Args:
            device: None is for work that uses all cores of a machine by itself.

        Raises:
            InputError: see :meth:`prepare`; a shard that took down its process several times. What ``load``
                or its function raises is raised here.
        """


@dataclass(frozen=True)
class Local:
    """The devices of this machine, one process each; a single one computes in this process.

    A process that dies is replaced, and only its shard computed again.

    Args:
        devices: GPUs, or processes that share a CPU's cores; auto is all GPUs, and one process on a CPU.
    """

    devices: int | str = "auto"

    def device(self, wanted: str) -> str:
        import torch

        return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"

    def prepare(self, wanted: str) -> None:
        self.places(self.device(wanted))

    def places(self, device: str | None) -> list[str]:
        """Of each process its device.

        Raises:
            InputError: there are not so many.
        """
        if device is None:
            return ["cpu"]
        n = number_of(self.devices)
        if not device.startswith("cuda"):
            return [device] * (n or 1)
        import torch

        there = torch.cuda.device_count() if device == "cuda" else 1
        if n and n > there:
            raise InputError(f"executor.devices={n}: this machine has {there} for device={device}; lower it")
        n = n or there
        return [device] if n == 1 else [f"cuda:{number}" for number in range(n)]

    @contextmanager
    def workers(self, load: Load, device: str | None) -> Iterator[Map]:
        places = self.places(device)
        if len(places) == 1:
            yield _Here(load, places[0]).map
            return
        processes = Processes(load, places)
        try:
            yield lambda shards, advance: one_here(load, places[0], shards, advance, processes)
        finally:
            processes.stop()


HERE = Local(1)


def number_of(devices: int | str) -> int | None:
    """``executor.devices``; None is auto.

    Raises:
        InputError: neither a number nor auto.
    """
    if devices == "auto" or (isinstance(devices, int) and devices >= 1):
        return None if devices == "auto" else int(devices)
    raise InputError(f"executor.devices={devices} is neither a number, 1 or more, nor auto")


def in_shards(
    folder: Path,
    parts: Sequence[Any],
    load: Load,
    *,
    executor: Executor = HERE,
    device: str | None = "cpu",
    advance: Advance = lambda _: None,
    shard: Callable[[Any], Any] = lambda part: part,
) -> list[Path]:
    """The file of each part's array, which ``numpy.load`` reads, in ``folder``; written as soon as it is computed.

    A second call, after a kill, computes only what is missing. The parts must be the same.

    Args:
        load: gives the function from a shard to its array.
        shard: of a part, what is computed with; made when its turn has come.
    """
    files = [folder / f"shard-{number:05d}-of-{len(parts):05d}.npy" for number in range(len(parts))]
    missing = ((i, shard(part)) for i, part in enumerate(parts) if not files[i].exists())
    with executor.workers(load, device) as computed:
        for number, result in computed(missing, advance):
            unfinished = files[number].with_suffix(".tmp")
            with unfinished.open("wb") as stream:
                np.save(stream, result)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(unfinished, files[number])
    return files


def remove_shards(folder: Path) -> None:
    """What :func:`in_shards` left, when it is of no more use."""
    for file in folder.glob("shard-*.npy"):
        file.unlink()


class _Here:
    def __init__(self, load: Load, device: str) -> None:
        self._load, self._device = load, device
        self._compute: Compute | None = None

    def map(self, shards: Iterable[tuple[int, Any]], advance: Advance) -> Iterator[tuple[int, Any]]:
        for number, shard in shards:
            if self._compute is None:
                self._compute = self._load(self._device)
            yield number, self._compute(shard, advance)


class _Others(Protocol):
    """Who computes elsewhere."""

    @property
    def started(self) -> bool: ...

    def map(self, shards: Iterable[tuple[int, Any]], advance: Advance) -> Iterator[tuple[int, Any]]: ...


def one_here(
    load: Load, device: str, shards: Iterable[tuple[int, Any]], advance: Advance, others: _Others
) -> Iterator[tuple[int, Any]]:
    """A single shard in this process: it is not worth the seconds in which others start; more by them."""
    given = iter(shards)
    first = list(islice(given, 2))
    if len(first) < 2 and not others.started:
        return _Here(load, device).map(first, advance)
    return others.map(chain(first, given), advance)


def even(total: int, most: int) -> list[np.ndarray]:
    """Rows 0..total-1 in parts of ``most`` rows, the last one smaller; one empty part of no rows.

    >>> [part.tolist() for part in even(5, 2)]
    [[0, 1], [2, 3], [4]]
    """
    return np.array_split(np.arange(total), range(most, total, most)) if total else [np.arange(0)]
