"""python -m dense_retrieval.on_ray --processes N [--address HOST:PORT] OVERRIDE...: a run in N processes on Ray.

They share its trainings, on a cluster, one a GPU where there are any. Each is ``python -m dense_retrieval.run``,
as under torchrun (see :mod:`dense_retrieval.ranks`). When a node dies all are started again, and go on from what the
cache has.
"""

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from dense_retrieval.ray_executor import connect
from dense_retrieval.records import InputError

_TRIES = 4  # before nodes that die are taken for more than bad luck


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dense_retrieval.on_ray", description=__doc__)
    parser.add_argument(
        "--processes", type=int, required=True, help="one a GPU, or a CPU where there are no GPUs"
    )
    parser.add_argument("--address", default="auto", help="of the cluster (default: the one of this machine)")
    given, overrides = parser.parse_known_args()
    try:
        sys.exit(run(overrides, given.processes, given.address))
    except InputError as error:
        sys.exit(f"error: {error}")


def run(overrides: list[str], processes: int, address: str) -> int:
    """The status of process 0, whose output is printed as it comes.

    Raises:
        InputError: no such cluster, fewer GPUs or CPUs there than processes, or nodes that die again and again.
    """
    connect(address, f"--address {address}")
    import ray
    from ray.util import placement_group, remove_placement_group

    resources = ray.cluster_resources()
    unit = "GPU" if resources.get("GPU") else "CPU"
    there = int(resources.get(unit, 0))
    if not 1 <= processes <= there:
        raise InputError(f"--processes {processes}: the cluster has {there} {unit}s")
    each = {"CPU": 1.0} | ({"GPU": 1.0} if unit == "GPU" else {})
    for _ in range(_TRIES):
        places = placement_group([each] * processes, strategy="PACK")
        try:
            return _started(places, processes, unit == "GPU", overrides)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[-300:]
            print(f"a node of the cluster was lost: {reason}; starting again", file=sys.stderr)
        finally:
            remove_placement_group(places)
    raise InputError(f"nodes of the cluster were lost {_TRIES} times; the same command goes on from there")


def _started(places: Any, processes: int, on_gpu: bool, overrides: list[str]) -> int:
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    def on(function: Any, rank: int, **options: Any) -> Any:
        strategy = PlacementGroupSchedulingStrategy(places, placement_group_bundle_index=rank)
        options |= {"num_cpus": 1, "num_gpus": int(on_gpu), "max_retries": 0, "scheduling_strategy": strategy}
        return ray.remote(**options)(function)

    host, port = ray.get(on(_meeting_point, 0).remote())
    shared = {"WORLD_SIZE": processes, "MASTER_ADDR": host, "MASTER_PORT": port, "LOCAL_RANK": 0}
    said = [
        on(_one, rank, num_returns="streaming").remote(overrides, os.getcwd(), shared | {"RANK": rank})
        for rank in range(processes)
    ]
    statuses: list[int] = []
    for rank, output in enumerate(said):
        for line in map(ray.get, output):
            if isinstance(line, int):
                statuses.append(line)
            elif rank == 0 or "error:" in line:
                print(line, end="", flush=True)
    return next((status for status in statuses if status), 0)


def _meeting_point() -> tuple[str, int]:
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        return ray.util.get_node_ip_address(), free.getsockname()[1]


def _one(overrides: list[str], cwd: str, place: dict[str, Any]) -> Iterator[str | int]:
    """One of the processes: what it says, line by line, and its status."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dense_retrieval.run", *overrides],
        cwd=cwd,
        env=os.environ | {name: str(value) for name, value in place.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_end_with_parent,
    )
    assert process.stdout
    yield from (line for line in process.stdout)  # a generator: Ray sends to it
    yield process.wait()


def _end_with_parent() -> None:
    """Let this process get a SIGTERM when Ray's worker is gone: else it would go on training."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


if __name__ == "__main__":
    main()
