"""Training: from groups to the student with the best dev loss."""

import csv
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger
from safetensors.torch import load_model, save_model
from torch.multiprocessing import ProcessRaisedException

from dense_retrieval.groups.datamodule import GroupsDataModule
from dense_retrieval.records import InputError
from dense_retrieval.training.module import DistillationModule


class DevSelection(Callback):
    """The paper's checkpoint rule.

    Before the first epoch and after each one the dev losses are computed. The weights of the least
    listwise + 0.1 InfoNCE are kept; training stops after ``patience`` epochs in which neither that
    nor the listwise dev loss improved. All of it, with the optimiser, is in ``last.ckpt``.
    """

    def __init__(self, folder: Path, patience: int) -> None:
        self.folder = folder
        self.patience = patience
        self.curve: list[dict[str, float]] = []

    @property
    def best_epoch(self) -> int:
        """Epochs trained when the dev loss was least; 0 is the untuned student. Without dev groups the last."""
        return self._least("loss")

    def on_train_start(self, trainer: pl.Trainer, module: DistillationModule) -> None:  # type: ignore[override]
        if not self.curve:
            self._measure(trainer, module)
        elif self._stale() >= self.patience:  # killed after it had stopped
            trainer.should_stop = True

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch, index) -> None:
        # So that a step's dropout does not depend on what ran before it in this process.
        seed = trainer.datamodule.seed  # type: ignore[attr-defined]
        torch.manual_seed(hash((seed, trainer.global_step)) % 2**32)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: DistillationModule) -> None:  # type: ignore[override]
        self._measure(trainer, module)
        if self._stale() >= self.patience:
            trainer.should_stop = True
        unfinished = self.folder / "last.tmp"
        trainer.save_checkpoint(unfinished)
        if trainer.is_global_zero:
            os.replace(unfinished, self.folder / "last.ckpt")

    def _measure(self, trainer: pl.Trainer, module: DistillationModule) -> None:
        batches = trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
        self.curve.append(module.dev_terms(batches))  # empty without dev groups
        values = {f"dev/{name}": value for name, value in self.curve[-1].items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        if self.best_epoch == len(self.curve) - 1 and trainer.is_global_zero:
            save_model(module.student, str(self.folder / "best.safetensors"))

    def _stale(self) -> int:
        """Epochs since the dev loss or its listwise part was last at its least."""
        last_best = max(self._least("loss"), self._least("listwise"))
        return len(self.curve) - 1 - last_best

    def _least(self, name: str) -> int:
        """The epoch in which a dev loss was least, or the last one without dev losses."""
        if not self.curve[-1]:
            return len(self.curve) - 1
        return min(range(len(self.curve)), key=lambda epoch: self.curve[epoch][name])

    def state_dict(self) -> dict:
        return {"curve": self.curve}

    def load_state_dict(self, state: dict) -> None:
        self.curve = state["curve"]


class _Curves(Logger):
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


def replay(folder: Path, log: Callable[[Mapping[str, float], int], None]) -> None:
    """Hand on the curves of a training that ended, or was killed, in ``folder``."""
    for curves in sorted(folder.glob("curves/*/metrics.csv"), key=lambda file: int(file.parent.name)):
        with curves.open(newline="") as stream:
            for row in csv.DictReader(stream):
                step = int(row.pop("step"))
                log({name: float(value) for name, value in row.items() if value}, step)


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
    log: Callable[[Mapping[str, float], int], None] | None = None,
) -> dict:
    """Train, and leave the student with the weights of the least dev loss.

    A run that was killed goes on after its last finished epoch when it is called again with the
    same ``folder``, and ends with the weights of an unbroken run.

    Args:
        folder: for checkpoints and curves (``last.ckpt``, ``best.safetensors``, and of the first and
            of each resumed process ``curves/0/metrics.csv``, ``curves/1/metrics.csv``, …).
        log: gets the curves too, as they come: values by name, and the optimiser step. With several
            devices it gets them at the end: a function cannot follow into the devices' processes.

    Returns:
        ``best_epoch`` (0 = the untuned student), ``epochs``, ``steps``, and ``dev``: the dev losses
        before training and after each epoch.
    """
    selection = DevSelection(folder, patience)
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
        devices=devices,
        strategy="ddp_spawn" if devices > 1 else "auto",
        use_distributed_sampler=False,
        callbacks=[selection, RichProgressBar()],
        logger=[curves, *([_Curves(log)] if log and devices == 1 else [])],
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
        log_every_n_steps=1,
        default_root_dir=folder,
    )
    last = folder / "last.ckpt"
    if log and devices == 1:
        replay(folder, log)
    try:
        trainer.fit(module, data, ckpt_path=str(last) if last.exists() else None, weights_only=False)
    except ProcessRaisedException as error:  # of another process comes the text alone
        _, known, message = str(error).rpartition("InputError: ")
        if known:
            raise InputError(message.strip()) from None
        raise
    load_model(module.student, folder / "best.safetensors")
    module.student.eval()
    # With several devices all this happened in other processes.
    state = torch.load(last, map_location="cpu", weights_only=False, mmap=True)
    selection.load_state_dict(state["callbacks"][selection.state_key])
    if log and devices > 1:
        replay(folder, log)
    summary = {
        "best_epoch": selection.best_epoch,
        "epochs": len(selection.curve) - 1,
        "steps": state["global_step"],
        "dev": selection.curve,
    }
    (folder / "training.json").write_text(json.dumps(summary, indent=1))
    return summary
