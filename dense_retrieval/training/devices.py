"""Where the processes are that share the steps of a training, for Lightning."""

from typing import Any

from lightning_fabric.plugins.environments import ClusterEnvironment, LightningEnvironment

from dense_retrieval import ranks


class Alone(LightningEnvironment):
    """A process that starts others itself, whatever SLURM says of it."""

    creates_processes_externally = False

    @property
    def main_address(self) -> str:
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        if self._main_port == -1:
            from lightning_fabric.plugins.environments.lightning import find_free_network_port

            self._main_port = find_free_network_port()
        return self._main_port

    def node_rank(self) -> int:
        return 0

    def teardown(self) -> None:
        pass


class Started(ClusterEnvironment):
    """One of the processes that were started together; to Lightning each is a node of its own, with one device."""

    creates_processes_externally = True
    main_address = ""  # they have met before
    main_port = 0

    def __init__(self, of: ranks.Ranks) -> None:
        self.of = of

    @staticmethod
    def detect() -> bool:
        return ranks.here() is not None

    def world_size(self) -> int:
        return self.of.world

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return self.of.rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return self.of.rank


def lightning(here: ranks.Ranks | None, devices: int, accelerator: str) -> dict[str, Any]:
    """Arguments of Lightning's Trainer that say where the processes are."""
    from pytorch_lightning.strategies import DDPStrategy

    if here:
        return {
            "devices": [here.gpu()] if accelerator == "gpu" else 1,
            "num_nodes": here.world,
            "strategy": DDPStrategy(cluster_environment=Started(here)),
        }
    if devices == 1:
        return {"devices": 1, "plugins": [Alone()]}
    return {"devices": devices, "strategy": DDPStrategy(cluster_environment=Alone(), start_method="spawn")}
