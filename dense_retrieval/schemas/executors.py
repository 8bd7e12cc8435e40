"""``conf/executor/``: where work that splits is done. Nothing here changes a result."""

from dataclasses import dataclass
from typing import Any

from dense_retrieval.schemas.setting import setting


@dataclass
class Local:
    """The devices of this machine, one process each."""

    _target_: str = "dense_retrieval.executor.Local"
    devices: Any = setting(
        "auto",
        "GPUs, or processes that share a CPU's cores; auto: all GPUs, and one process on a CPU",
        least=1,
    )


@dataclass
class Ray:
    """The nodes of a Ray cluster."""

    _target_: str = "dense_retrieval.ray_executor.Ray"
    devices: Any = setting("auto", "actors: one a GPU; auto: all GPUs, or without any all CPUs", least=1)
    address: str = setting("auto", "host:port of the cluster's head; auto: the cluster of this machine")
    shared: str = setting("${cache_dir}", "folder that all nodes see under the same path")
