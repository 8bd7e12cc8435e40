"""What the other processes of a command do: they take part in its trainings (see :mod:`dense_retrieval.ranks`)."""

import logging
import math
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from dense_retrieval import ranks
from dense_retrieval.budget import known
from dense_retrieval.chain import describe
from dense_retrieval.config import CONF, Config
from dense_retrieval.errors import users_error
from dense_retrieval.records import InputError
from dense_retrieval.stage import Step, reachable, resolved
from dense_retrieval.store import Store

log = logging.getLogger(__name__)


def follow(here: ranks.Ranks) -> float:
    """Take part in each training of the command that process 0 runs; returns NaN when that ends.

    Raises:
        SystemExit: it ended with an error.
    """
    flush_denormal()
    for (config, hydra), folder, device in here.calls():
        try:
            step, store = _called(config, hydra, folder)
            own = resolved(step.settings["device"])
            if own.partition(":")[0] != device.partition(":")[0]:
                raise InputError(f"process 0 trains on {device}, this one would on {own}; give device=")
        except Exception as error:
            here.answer(users_error(error) or repr(error))
            continue
        here.answer(None)
        try:
            step.run(folder, store.open)
        except Exception as error:  # which process 0 gets too, or by which it loses this one
            log.debug("process %d: %r", here.rank, error)
    return math.nan


def flush_denormal() -> None:
    """Let a CPU take for 0 what is almost 0: the gradients of a confident softmax, with which it is ten times slower.

    To be called before torch starts its threads, which take it over.
    """
    import torch

    torch.set_flush_denormal(True)


def _called(config: Config, hydra: Any, folder: Path) -> tuple[Step[Any], Store]:
    """The step of a training in a folder of a job's store, with all that it reads.

    Raises:
        InputError: it is not to be found from here.
    """
    HydraConfig.instance().cfg = hydra
    if not GlobalHydra.instance().is_initialized():
        initialize_config_dir(CONF, version_base=None)
    if not folder.exists():
        raise InputError(f"{folder} is not there; all nodes need the same cache_dir")
    store = Store(folder.parent)
    steps = describe(config, lambda *_: None, known(store)).steps
    step = reachable(steps).get(folder.name.removesuffix(".partial"))
    if step is None:
        raise InputError(
            "here the settings describe another training: give what a machine chooses, such as precision="
        )
    for missing in (below for below in step.inputs if not store.has(below)):
        raise InputError(f"{store.root / missing.key} is not there; all nodes need the same cache_dir")
    store.build(*step.inputs)
    return step, store
