"""Where and how the work is done: devices, precision, and how many tokens at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from dense_retrieval.config import Config
from dense_retrieval.executor import Executor
from dense_retrieval.nodes import plain
from dense_retrieval.records import InputError
from dense_retrieval.stage import Later, resolved


@dataclass(frozen=True)
class Hardware:
    """Where and how the work is done; of this only the precision changes a result."""

    device: Any  # str, as max_tokens not before a stage runs
    precision: str
    bf16: bool
    max_tokens: Any  # int, padded tokens a forward pass: what fits a CPU's cache, what fills a GPU
    memos: Path  # folder of the answers and scores that are never computed twice
    executor: Executor  # of work that splits
    workers: Any  # its devices: cpu or cuda; str, not before a stage runs


def hardware(c: Config) -> Hardware:
    wanted = c.device

    def device() -> str:
        import torch

        return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"

    executor: Executor = instantiate(c.executor)

    def workers() -> str:
        return executor.device(wanted)

    def fills() -> int:
        return 65_536 if workers().startswith("cuda") else 2_048

    precision = c.precision
    if precision == "auto":
        precision = "bf16-mixed" if wanted != "cpu" and _gpu_has_bf16() else "32-true"
    bf16, memos = precision == "bf16-mixed", Path(c.cache_dir)
    return Hardware(Later(device), precision, bf16, Later(fills), memos, executor, Later(workers))


def _gpu_has_bf16() -> bool:
    if not any(Path("/dev").glob("nvidia*")) and not Path("/dev/dxg").exists():
        return False  # known without loading torch
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def token_limits(c: Config) -> tuple[Any, int | None]:
    """Of training: padded tokens a forward pass, and with a graph; None is as many as fit in memory.

    Raises:
        InputError: neither a number nor auto.
    """
    given = plain(c.trainer, only=("chunk_tokens", "graph_tokens"))
    for name, value in given.items():
        if value != "auto" and not isinstance(value, int):
            raise InputError(f"trainer.{name}={value} is neither a number of tokens nor auto")
    chunk, graph = given["chunk_tokens"], given["graph_tokens"]
    return hardware(c).max_tokens if chunk == "auto" else chunk, None if graph == "auto" else graph


def asked_devices(c: Config) -> tuple[int | str, int, Callable[[], int | None]]:
    """Of training: devices a node, nodes, and what counts the GPUs here, as :mod:`dense_retrieval.ranks` takes them.

    Raises:
        InputError: neither a number of devices nor auto.
    """
    given = plain(c.trainer, only=("devices", "num_nodes"))
    devices, num_nodes = given["devices"], given["num_nodes"]
    if devices != "auto" and not isinstance(devices, int):
        raise InputError(f"trainer.devices={devices} is neither a number of devices nor auto")

    def gpus() -> int | None:
        if not resolved(hardware(c).device).startswith("cuda"):
            return None
        import torch

        return torch.cuda.device_count()

    return devices, num_nodes, gpus
