"""Several processes that torchrun or srun started with one command: the first runs it, the others join it to train.

Process 0 runs the command as if it were alone: it alone writes, logs and prints. The others wait. For each training
process 0 calls them, with what the command is and the folder that the training is in; they read what it reads, share
its steps, and wait again, until process 0 ends. So they do no stage twice, follow a sweep from job to job, and are not
called for a training that is in the cache.
"""

import os
import pickle
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from dense_retrieval.records import InputError

T = TypeVar("T")

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_LEADER = "DENSE_RETRIEVAL_LEADER"  # process 0's id, for its child processes
_TO_START = timedelta(minutes=10)
_TO_ANSWER = timedelta(minutes=15)
_TO_END = timedelta(seconds=10)


@dataclass(frozen=True)
class Place:
    """Which of several processes this is, as its launcher says."""

    rank: int
    world: int
    local: int  # rank on this node
    launcher: str


def started() -> Place | None:
    """The place that torchrun or srun gave this process; None if it was started alone, in a SLURM job or not.

    srun says how many tasks its step has. Where nothing says so, a batch script (which SLURM counts as task 0 of as
    many as the job has) and a shell are alone.
    """
    env = os.environ
    if all(name in env for name in _TORCHRUN):
        return Place(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_RANK"]), "torchrun")
    alone = "SLURM_PROCID" not in env or env.get("ENVIRONMENT") == "BATCH"
    tasks = int(env.get("SLURM_STEP_NUM_TASKS") or ("1" if alone else env.get("SLURM_NTASKS", "1")))
    if tasks == 1:
        return None
    return Place(int(env["SLURM_PROCID"]), tasks, int(env.get("SLURM_LOCALID", 0)), "srun")


def processes(devices: int | str, num_nodes: int, gpus: Callable[[], int | None]) -> int:
    """How many share a training: those that were started together, else one a device.

    Args:
        devices: of a node; "auto" is all GPUs, or one process on a CPU.
        gpus: counts those of this machine; None is to train on its CPU.
    """
    place = started()
    if place:
        return place.world
    return ((gpus() or 1) if devices == "auto" else int(devices)) * num_nodes


def check(devices: int | str, num_nodes: int, gpus: Callable[[], int | None]) -> None:
    """Raise InputError where so many processes as :func:`processes` takes were not started, or have no GPU."""
    place = started()
    asked = f"trainer.num_nodes={num_nodes} trainer.devices={devices}"
    if place and devices != "auto" and int(devices) * num_nodes not in (1, place.world):
        raise InputError(
            f"{asked} is {int(devices) * num_nodes} processes, {place.launcher} started {place.world}; leave both "
            "settings out, or start as many"
        )
    if place:
        return
    if num_nodes > 1:
        raise InputError(
            f"{asked} needs a process for each device of each node: start this command on all nodes at once, by srun "
            "with one task a device, or by torchrun --nnodes"
        )
    there = gpus() if devices not in (1, "auto") else None
    if there is not None and int(devices) > there:
        raise InputError(f"{asked}: there are {there} GPUs here; use trainer.devices=auto or device=cpu")


@dataclass(frozen=True)
class _Look:
    """Asks a process whether it sees a file, and a GPU."""

    file: Path
    cuda: bool


class Ranks:
    """This process among those that were started together.

    Attributes:
        job: what the others need to know of the command that process 0 runs.
    """

    job: Any = None

    def __init__(self, place: Place) -> None:
        import torch.distributed as dist

        self.place = place
        self.rank, self.world = place.rank, place.world
        self._number = 0  # of the training
        if place.launcher == "srun":
            _name_the_first_node()
        try:
            self._store, _, _ = next(dist.rendezvous("env://", self.rank, self.world, timeout=_TO_START))
        except RuntimeError as error:
            raise InputError(
                f"not all of {self.world} processes of {place.launcher} met at {os.environ['MASTER_ADDR']}:"
                f"{os.environ['MASTER_PORT']}: {str(error).splitlines()[0]}"
            ) from error

    def require(self, shared: Path, cuda: bool) -> None:
        """Process 0: raise InputError where another process does not see this one's folder, or has no GPU."""
        shared.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=shared, prefix="seen-by-all-") as file:
            self._ask(_Look(Path(file.name).resolve(), cuda))

    def call(self, folder: Path, device: str) -> None:
        """Process 0: call the others to the training in a folder; another process: nothing, it has been called.

        Raises:
            InputError: one of them cannot take part.
        """
        if self.rank == 0:
            self._ask((self.job, folder.resolve(), device))

    def _ask(self, message: Any) -> None:
        self._number += 1
        self._put(f"call {self._number}", message)
        for other in range(1, self.world):
            problem = self._get(f"answer {self._number} of {other}", _TO_ANSWER)
            if problem:
                raise InputError(f"process {other} of {self.world}: {problem}")

    def calls(self) -> Iterator[tuple[Any, Path, str]]:
        """Another process: job, folder and device of each training, each to be answered, until process 0 ends.

        Raises:
            SystemExit: it ended with an error.
        """
        while True:
            self._number += 1
            called = self._get(f"call {self._number}")
            if isinstance(called, int):
                self._put(f"end of {self.rank}", None)
                if called:
                    print(
                        f"error: process 0 of {self.world} has ended with an error",
                        file=sys.stderr,
                        flush=True,
                    )
                    raise SystemExit(called)
                return
            if isinstance(called, _Look):
                self.answer(self._missed(called))
            else:
                yield called

    def _missed(self, look: "_Look") -> str | None:
        try:
            if look.cuda:
                self.gpu()
        except InputError as error:
            return str(error)
        return (
            None
            if look.file.exists()
            else f"{look.file.parent} is not shared; all nodes need the same cache_dir"
        )

    def answer(self, problem: str | None) -> None:
        """Say what keeps this process from the training, if anything does."""
        self._put(f"answer {self._number} of {self.rank}", problem and f"{problem} (on {platform.node()})")

    def end(self, status: int) -> None:
        """Process 0: let the others end with this status."""
        self._put(f"call {self._number + 1}", status)
        try:
            for other in range(1, self.world):
                self._get(f"end of {other}", _TO_END)
        except InputError:
            pass  # it has died, or hangs: whoever started it will see to it

    @contextmanager
    def group(self, backend: str) -> Iterator[None]:
        """torch's process group of all processes, for one training."""
        import torch.distributed as dist

        store = dist.PrefixStore(f"training {self._number}", self._store)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world)
        try:
            yield
        finally:
            dist.destroy_process_group()

    def gpu(self) -> int:
        """The number of this process's GPU among those that it sees.

        Raises:
            InputError: it has none.
        """
        import torch

        there = torch.cuda.device_count()
        if there == 1:  # SLURM's --gpus-per-task shows each its own
            return 0
        if self.place.local >= there:
            raise InputError(
                f"{self.place.launcher} started process {self.place.local} of a node with {there} GPUs; start one a GPU"
            )
        return self.place.local

    def _put(self, key: str, value: Any) -> None:
        self._store.set(key, pickle.dumps(value))

    def _get(self, key: str, within: timedelta | None = None) -> Any:
        start = time.monotonic()
        try:
            while not self._store.check([key]):
                if within and time.monotonic() - start > within.total_seconds():
                    raise InputError(f"no {key} within {within}")
                time.sleep(0.1)
            return pickle.loads(self._store.get(key))
        except RuntimeError as error:
            raise InputError("process 0 has ended without a word") from error


_here: Ranks | None = None


def here() -> Ranks | None:
    """This process among those that run its command together; None if it is alone."""
    return _here


def together(command: Callable[[], T], follow: Callable[[Ranks], T]) -> T:
    """Run a command in process 0, and in the others what follows it; in a process that is alone just the command."""
    global _here
    place = started()
    if _here or place is None or place.world == 1:
        return command()
    if _LEADER in os.environ:
        raise InputError(
            f"under {place.launcher} the jobs of a sweep run one after the other; leave hydra/launcher= out"
        )
    try:
        _here = Ranks(place)
        return follow(_here) if place.rank else _led(command, _here)
    finally:
        _here = None


def _led(command: Callable[[], T], ranks: Ranks) -> T:
    os.environ[_LEADER] = str(os.getpid())
    status = 1
    try:
        result = command()
        status = 0
        return result
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        raise
    finally:
        del os.environ[_LEADER]
        sys.stdout.flush()
        ranks.end(status)


def _name_the_first_node() -> None:
    """Tell torch where the processes of a SLURM step meet."""
    from lightning_fabric.plugins.environments import SLURMEnvironment

    env = os.environ
    nodes = (
        env.get("SLURM_STEP_NODELIST")
        or env.get("SLURM_JOB_NODELIST")
        or env.get("SLURM_NODELIST", "127.0.0.1")
    )
    env.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes))
    env.setdefault("MASTER_PORT", str(15_000 + int(env.get("SLURM_JOB_ID", "0")[-4:])))
