"""A language model on several devices: each writes the answers of some batches."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from dense_retrieval.executor import Advance, Compute, Executor, Map
from dense_retrieval.queries.generate import Backend, Completion, Request
from dense_retrieval.stage import Folder


@dataclass(frozen=True)
class Writer:
    """From requests to their positions and completions, wherever it is loaded.

    Args:
        backend: ``_target_`` and arguments.
    """

    backend: Mapping[str, Any]
    reads: Sequence[Path]

    def __call__(self, device: str) -> Compute:
        backend: Backend = instantiate(self.backend, device=device)

        def write(requests: list[Request], advance: Advance) -> list[tuple[int, Completion]]:
            return list(backend.complete(requests))

        return write


class Split(Backend):
    """A backend's batches of requests, each written by one device.

    Args:
        computed: of a batch of requests, its positions and completions.
        devices: that work at the same time.
    """

    def __init__(self, backend: Any, computed: Map, devices: int) -> None:
        self._backend, self._computed = backend, computed
        self.at_once, self.devices = backend.at_once, devices

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """See :class:`~dense_retrieval.queries.generate.Backend`."""
        batches = self._backend.batches(requests)
        shards = ((n, [requests[i] for i in batch]) for n, batch in enumerate(batches))
        for number, answers in self._computed(shards, lambda _: None):
            yield from ((int(batches[number][position]), completion) for position, completion in answers)


@contextmanager
def dealt_out(
    backend: Mapping[str, Any], model: Folder[Path] | None, executor: Executor
) -> Iterator[Backend]:
    """A backend, on all of the executor's devices if it is one that cuts its requests into batches."""
    alone: Any = instantiate(backend)
    if model is None or not hasattr(alone, "batches"):
        yield alone
        return
    path = model.path.absolute()
    device = executor.device(backend["device"])
    load = Writer({**backend, "path": str(path)}, [path])
    with executor.workers(load, device) as computed:
        yield Split(alone, computed, len(executor.places(device)))
