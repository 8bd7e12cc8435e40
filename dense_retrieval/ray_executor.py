"""``executor=ray``: shards are computed by the nodes of a Ray cluster."""

from __future__ import annotations

import functools
import logging
import socket
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dense_retrieval.executor import Advance, Compute, Load, Map, number_of, one_here
from dense_retrieval.processes import Setup, Tries, portable
from dense_retrieval.records import InputError

log = logging.getLogger(__name__)

_SECONDS = 20.0  # until a cluster must have answered
_SAID_EVERY = 60.0  # seconds without a free node


@dataclass(frozen=True)
class Ray:
    """Actors that hold the model, on all nodes: one a GPU, or on a cluster without GPUs about one a node.

    A shard whose actor or node dies is computed by another one; who died is started again where there is room. Inputs
    are read from a folder that all nodes share, results come back through Ray's object store. Nodes of one kind give
    the same bits: another kind of CPU or GPU may round otherwise.

    Args:
        address: ``host:port`` of the cluster's head, or auto: the one that this machine belongs to.
        devices: actors; auto is all that the cluster has room for.
        shared: folder that every node sees under the same path, the cache's.
    """

    address: str = "auto"
    devices: int | str = "auto"
    shared: str = "cache"

    def device(self, wanted: str) -> str:
        if wanted != "auto":
            return wanted
        self._connect()
        import ray

        return "cuda" if ray.cluster_resources().get("GPU") else "cpu"

    def prepare(self, wanted: str) -> None:
        self.places(self.device(wanted))
        _prepared(self)

    def _show_folder(self) -> None:
        folder = Path(self.shared).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        proof = folder / f"shared-{uuid.uuid4().hex}"
        proof.touch()
        try:
            _require_seen([proof], f"cache_dir={folder}")
        finally:
            proof.unlink()

    def places(self, device: str | None) -> list[str]:
        self._connect()
        return self._actors(device)[0]

    @contextmanager
    def workers(self, load: Load, device: str | None) -> Iterator[Map]:
        import torch

        self._connect()
        _prepared(self)
        if paths := [Path(path).absolute() for path in getattr(load, "reads", ())]:
            _require_seen(paths)
        places, options = self._actors(device)
        actors = _Actors(load, places, options)
        here = not places[0].startswith("cuda") or torch.cuda.is_available()
        try:
            if here:
                yield lambda shards, advance: one_here(load, places[0], shards, advance, actors)
            else:
                yield actors.map
        finally:
            actors.stop()

    def _connect(self) -> None:
        connect(self.address, f"executor.address={self.address}")

    def _actors(self, device: str | None) -> tuple[list[str], dict[str, Any]]:
        """Of each actor its device, and the resources that it takes.

        Raises:
            InputError: the cluster has not so many.
        """
        import ray

        n = number_of(self.devices)
        if device is not None and device.startswith("cuda"):
            there = int(ray.cluster_resources().get("GPU", 0))
            if not there or (n or 1) > there:
                raise InputError(f"executor.devices={self.devices}: the cluster has {there} GPUs; lower it")
            return ["cuda"] * (n or there), {"num_cpus": 1, "num_gpus": 1}
        cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        cpus = [number for number in cpus if number]
        if not cpus or (n or 1) > sum(cpus):
            raise InputError(f"executor.devices={self.devices}: the cluster has {sum(cpus)} CPUs; lower it")
        each = max(1, sum(cpus) // n) if n and device else min(cpus)
        return ["cpu"] * (n if n and device else sum(number // each for number in cpus)), {"num_cpus": each}


def connect(address: str, named: str) -> None:
    """Join a cluster, if this process has not.

    Args:
        named: what chose the address, for error messages.

    Raises:
        InputError: Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError(f"{named} needs ray: pip install 'dense_retrieval[ray]'") from error
    if ray.is_initialized():
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), _SECONDS).close()
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(
            f"{named}: no Ray cluster answers there ({reason}); give the head's host:port, or start one with "
            "`ray start --head`"
        ) from error


@functools.cache
def _prepared(executor: Ray) -> None:
    """The nodes are asked once in a process."""
    executor._show_folder()


def _require_seen(paths: Sequence[Path], setting: str = "") -> None:
    """Raise InputError where a node of the cluster does not see a file or folder."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    seen = ray.remote(num_cpus=0, max_retries=0)(_missing)
    nodes = {node["NodeID"]: node["NodeName"] for node in ray.nodes() if node["Alive"]}
    asked = {
        seen.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            list(map(str, paths))
        ): node
        for node in nodes
    }
    for answer, node in asked.items():
        try:
            missing = ray.get(answer, timeout=3 * _SECONDS)
        except ray.exceptions.RayTaskError as error:
            raise InputError(
                f"executor=ray: node {nodes[node]} cannot run dense_retrieval ({error.cause!r}); install the same "
                "version on all nodes"
            ) from None
        except ray.exceptions.RayError:  # it has gone, or does not answer: its shards go to others
            continue
        if missing:
            raise InputError(
                f"executor=ray: node {nodes[node]} does not see {setting or missing[0]}; choose a folder that "
                "all nodes share, such as one on NFS"
            )


def _missing(paths: list[str]) -> list[str]:
    import dense_retrieval  # noqa: F401

    return [path for path in paths if not Path(path).exists()]


class _Worker:
    """The actor."""

    def ready(self, load: Load, place: str, setup: Setup) -> None:
        setup.apply(place)
        self._load, self._place = load, place
        self._compute: Compute | None = None
        self._said: list[str] = []  # warnings: an actor's log is a file of its node
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: self._said.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("dense_retrieval").addHandler(handler)

    def compute(self, shard: Any) -> tuple[Any, int, list[str]]:
        """The result, how much work it was, and what was said of it."""
        done = 0

        def advance(n: int) -> None:
            nonlocal done
            done += n

        try:
            if self._compute is None:
                self._compute = self._load(self._place)
            result = self._compute(shard, advance)
            said, self._said = self._said, []
            return result, done, said
        except Exception as error:
            raise portable(error) from None


class _Actors:
    """Each has one call that is not answered: whether it is ready, at first and after it has died, or a shard."""

    def __init__(self, load: Load, places: Sequence[str], options: dict[str, Any]) -> None:
        self._load, self._places, self._options = load, places, options
        self._actors: list[Any] = []
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._tries = Tries()

    @property
    def started(self) -> bool:
        return bool(self._actors)

    def _start(self) -> None:
        import ray

        worker: Any = ray.remote(_Worker).options(max_restarts=-1, max_task_retries=0, **self._options)
        self._place = ray.put(self._load), self._places[0], Setup(self._options["num_cpus"])
        self._actors = [worker.remote() for _ in self._places]
        self._starting = {self._ready(actor): actor for actor in self._actors}

    def map(self, shards: Iterable[tuple[int, Any]], advance: Advance) -> Iterator[tuple[int, Any]]:
        import ray

        if not self._actors:
            self._start()
        waiting, again = iter(shards), deque[tuple[int, Any]]()
        busy: dict[Any, tuple[Any, int, Any]] = {}
        while True:
            while self._idle:
                given = again.popleft() if again else next(waiting, None)
                if given is None:
                    break
                actor = self._idle.pop()
                busy[actor.compute.remote(given[1])] = actor, *given
            if not (busy or again):
                if self._idle or (given := next(waiting, None)) is None:
                    return
                again.append(given)
            done, _ = ray.wait([*busy, *self._starting], num_returns=1, timeout=_SAID_EVERY)
            if not done and not busy:
                log.warning("executor=ray: no node of the cluster is free; waiting")
            for call in done:
                if call in self._starting:
                    self._started(call)
                    continue
                actor, number, shard = busy.pop(call)
                try:
                    result, work, said = ray.get(call)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except (
                    ray.exceptions.RayError
                ) as error:  # its process or node has died, or the result was lost
                    self._starting[self._ready(actor)] = actor
                    again.append((number, shard))
                    self._tries.again(number, f"was lost ({type(error).__name__})")
                    continue
                self._idle.append(actor)
                for line in said:
                    log.warning("%s", line)
                advance(work)
                yield number, result

    def _ready(self, actor: Any) -> Any:
        return actor.ready.remote(*self._place)

    def _started(self, call: Any) -> None:
        import ray

        actor = self._starting.pop(call)
        try:
            ray.get(call)
            self._idle.append(actor)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError:
            self._starting[self._ready(actor)] = actor

    def stop(self) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)
