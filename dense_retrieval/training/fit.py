"""Training: from groups to the student with the best dev loss."""

import json
import logging
import signal
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, Logger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from safetensors.torch import load_model
from torch.multiprocessing import ProcessRaisedException

from dense_retrieval import ranks
from dense_retrieval.groups.datamodule import GroupsDataModule
from dense_retrieval.progress import unwatched
from dense_retrieval.records import InputError
from dense_retrieval.training.bar import Bar
from dense_retrieval.training.curves import replay
from dense_retrieval.training.devices import lightning
from dense_retrieval.training.module import DistillationModule
from dense_retrieval.training.selection import DevSelection


def fit(
    module: DistillationModule,
    data: GroupsDataModule,
    folder: Path,
    *,
    max_epochs: int,
    patience: int = 2,
    precision: str = "32-true",
    accelerator: str = "auto",
    devices: int = 1,
    every_n_steps: int | None = None,
    select: str = "loss",
    here: ranks.Ranks | None = None,
    log: Callable[[Mapping[str, float], int], None] | None = None,
) -> dict:
    """Train, and leave the student with the weights that :class:`DevSelection` keeps.

    A run that was killed goes on after its last checkpoint when it is called again with the same
    ``folder``, and ends with the weights of an unbroken run; also with another number of devices.

    Args:
        folder: for checkpoints and curves (``last.ckpt``, ``best.safetensors``, and of the first and
            of each resumed process ``curves/0/metrics.csv``, ``curves/1/metrics.csv``, …).
        devices: processes of this machine, if nobody else started them.
        every_n_steps: between checkpoints within an epoch; there is one after each epoch.
        select: "loss" or "ndcg", by which weights are kept.
        here: this process among several that were started for this training, all with the same folder; all but the
            first return nothing.
        log: gets the curves too, as they come: values by name, and the optimiser step. With several
            devices it gets them at the end: a function cannot follow into the devices' processes.

    Returns:
        ``best_epoch`` (0 = the untuned student), ``epochs``, ``steps``, and ``dev``: the dev losses
        before training and after each epoch.

    Raises:
        InputError: ``last.ckpt`` is none that was written here; or of the module.
        SystemExit: 143, after a SIGTERM.
    """
    selection = DevSelection(folder, patience, every_n_steps, select)
    spawned = devices > 1 and not here
    # Lightning would delete the curves of a process that was killed, were they in the same place.
    curves = CSVLogger(folder, name="curves", version=str(len(list(folder.glob("curves/*")))))
    # Advice of Lightning's that does not hold here: batches come from memory, the dev losses are
    # computed by DevSelection, a resumed run goes on with its own folder.
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    module.student.train()
    trainer = pl.Trainer(
        max_epochs=max_epochs,
        precision=precision,  # type: ignore[arg-type]
        accelerator=accelerator,
        **lightning(here, devices, accelerator),
        use_distributed_sampler=False,
        callbacks=[selection, *([] if unwatched() else [Bar()])],
        enable_progress_bar=not unwatched(),
        logger=[curves, *([Curves(log)] if log and not spawned else [])],
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
        log_every_n_steps=1,
        default_root_dir=folder,
    )
    if here:
        _stopped_by_the_first(trainer, here.rank)
    last = folder / "last.ckpt"
    if last.exists():
        _checkpoint(last)
    if log and not spawned:
        replay(folder, log)
    with here.group("nccl" if accelerator == "gpu" else "gloo") if here else nullcontext():
        _run(trainer, module, data, str(last) if last.exists() else None)
    if here and here.rank:
        return {}
    load_model(module.student, folder / "best.safetensors")
    module.student.eval()
    # With several devices all this happened in other processes.
    state = _checkpoint(last)
    selection.load_state_dict(state["callbacks"][selection.state_key])
    if log and spawned:
        replay(folder, log)
    summary = {
        "best_epoch": selection.best_epoch,
        "epochs": len(selection.curve) - 1,
        "steps": state["global_step"],
        "dev": selection.curve,
    }
    (folder / "training.json").write_text(json.dumps(summary, indent=1))
    return summary


def _stopped_by_the_first(trainer: pl.Trainer, rank: int) -> None:
    """Let a SIGTERM, which all processes get, stop process 0 after its step, and the others with it.

    Lightning's handler would send it to the others amidst what they are sending each other.
    """
    connector: Any = trainer._signal_connector

    def notify(*_: object) -> None:
        connector.received_sigterm = rank == 0

    connector._sigterm_notifier_fn = notify


def _run(trainer: pl.Trainer, module: DistillationModule, data: GroupsDataModule, last: str | None) -> None:
    """Lightning's fit, which does not take an interrupted training for a finished one."""
    try:
        trainer.fit(module, data, ckpt_path=last, weights_only=True)
    except SIGTERMException:  # its own status is 0
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
    except ProcessRaisedException as error:  # of another process comes the text alone
        _, known, message = str(error).rpartition("InputError: ")
        if known:
            raise InputError(message.strip()) from None
        raise
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and "Connection" not in str(error):
            raise
        raise InputError(
            "the processes that train together have lost each other; the same command goes on from the last "
            f"checkpoint ({str(error).splitlines()[0]})"
        ) from error
    if trainer.received_sigterm:  # in the last step
        raise SystemExit(128 + signal.SIGTERM)


def _checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of plain values and tensors; no code is run from it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(
            f"{path} is broken, or of another version: remove it, and the training begins anew"
        ) from error


class Curves(Logger):
    """Hands curves on to a function."""

    name = "curves"
    version = ""

    def __init__(self, log: Callable[[Mapping[str, float], int], None]) -> None:
        super().__init__()
        self.log = log

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.log(metrics, step or 0)

    def log_hyperparams(self, params: object, *args: object, **kwargs: object) -> None:
        pass
