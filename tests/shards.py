"""Work for executors, which other processes import: nothing heavy is needed for it."""

import logging
import os
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dense_retrieval.records import InputError


@dataclass(frozen=True)
class Watched:
    """Writes down who computes what, and kills the process that begins a certain shard."""

    load: Any
    folder: Path
    fatal: int | None = None  # the shard that is the n-th of all to begin
    always: bool = False
    seconds: float = 0.0  # that each takes longer

    @property
    def tokens(self) -> Path:
        return self.load.tokens

    def __call__(self, device):
        compute = self.load(device)

        def watched(shard, advance):
            begun = len(self.processes())
            (self.folder / f"begun-{begun}-{os.getpid()}").touch()
            if self.always or begun == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self.seconds)
            return compute(shard, advance)

        return watched

    def processes(self) -> list[int]:
        return [int(file.name.rpartition("-")[2]) for file in self.folder.glob("begun-*")]


class Squares:
    def __call__(self, device):
        def compute(part, advance):
            advance(len(part))
            if (part < 0).any():
                raise InputError("a negative number")
            if (part > 100).any():
                raise KeyError("large")
            if (part == 7).any():
                logging.getLogger("dense_retrieval.tests").warning("seven")
            return part**2

        return compute


@dataclass(frozen=True)
class Interrupted:
    """An executor during whose work something happens after some results."""

    executor: Any
    after: int
    happens: Any

    @contextmanager
    def workers(self, load, device):
        with self.executor.workers(load, device) as computed:

            def interrupted(shards, advance):
                for n, found in enumerate(computed(shards, advance)):
                    if n == self.after:
                        self.happens()
                    yield found

            yield interrupted


def watched_teacher(path: str, watched: Watched):
    """A teacher of which each call is a shard of ``watched``."""
    from dense_retrieval.teacher.sequence_classifier import SequenceClassifier

    teacher = SequenceClassifier.load(path, max_length=64)
    score = teacher.score
    compute = replace(watched, load=lambda _: lambda call, _: score(*call[0], **call[1]))("cpu")
    teacher.score = lambda *pairs, **settings: compute((pairs, settings), None)  # type: ignore[method-assign]
    return teacher


def driver(folder: Path) -> None:
    """Two processes compute until they are ended."""
    from dense_retrieval.executor import Local, in_shards

    in_shards(folder, [np.arange(1)] * 4, Watched(Squares(), folder, seconds=600), executor=Local(2))


if __name__ == "__main__":
    driver(Path(sys.argv[1]))
