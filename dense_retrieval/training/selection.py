"""Which weights of a training are kept, and when it stops: the paper's rule (arXiv 2505.19274)."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from safetensors.torch import save_model

from dense_retrieval.losses.infonce import InfoNCE
from dense_retrieval.losses.listwise import Listwise
from dense_retrieval.losses.loss import Loss, Term
from dense_retrieval.training.module import DistillationModule

SELECTION = {"listwise": 1.0, "infonce": 0.1}  # weights of the dev losses, whatever is trained


def selection_loss(loss: Loss) -> Loss:
    """listwise + 0.1 InfoNCE, each with the settings that it has in the trained loss.

    Where that has no listwise term, at the temperatures found for it all the same; no InfoNCE, at 0.01.
    """
    listwise = Listwise(1.0, loss.student_temperature, loss.teacher_temperature)
    infonce = InfoNCE(1.0)
    for term in loss.active.values():
        listwise = term if isinstance(term, Listwise) else listwise
        infonce = term if isinstance(term, InfoNCE) else infonce
    terms: dict[str, Term] = {
        "listwise": replace(listwise, weight=SELECTION["listwise"]),
        "infonce": replace(infonce, weight=SELECTION["infonce"]),
    }
    return replace(loss, terms=terms)


class DevSelection(Callback):
    """Before the first epoch and after each one the dev losses are computed.

    With ``select="loss"`` the weights of the least :func:`selection_loss` are kept; training stops after
    ``patience`` epochs in which neither that nor the listwise dev loss improved. With ``select="ndcg"`` those of
    the greatest nDCG@10 on the dev queries, until it does not improve. All of it, with the optimiser, is in
    ``last.ckpt``, after each epoch and, if ``every_n_steps`` says so, within.
    """

    def __init__(
        self, folder: Path, patience: int, every_n_steps: int | None = None, select: str = "loss"
    ) -> None:
        self.folder = folder
        self.patience = patience
        self.every_n_steps = every_n_steps
        self.select = select
        self.curve: list[dict[str, float]] = []

    @property
    def best_epoch(self) -> int:
        """Epochs trained when the student was best; 0 is the untuned one. Without dev groups the last."""
        return self._best(self.select)

    def on_train_start(self, trainer: pl.Trainer, module: DistillationModule) -> None:  # type: ignore[override]
        if not self.curve:
            self._measure(trainer, module)
        elif self._stale() >= self.patience:  # killed after it had stopped
            trainer.should_stop = True

    def on_train_batch_start(self, trainer: Any, module: Any, batch, index) -> None:
        # Lightning counts one too many for the curves when it goes on within an epoch.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        # Here, not after the step before: its curves are logged last.
        if self.every_n_steps and index and trainer.global_step % self.every_n_steps == 0:
            module.require_finite()
            self._save(trainer)
        # So that a step's dropout does not depend on what ran before it in this process.
        seed = trainer.datamodule.seed
        torch.manual_seed(hash((seed, trainer.global_step)) % 2**32)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: DistillationModule) -> None:  # type: ignore[override]
        self._measure(trainer, module)
        if self._stale() >= self.patience:
            trainer.should_stop = True
        self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # of a killed process no step is lost that is not taken again
        unfinished = self.folder / "last.tmp"
        trainer.save_checkpoint(unfinished)
        if trainer.is_global_zero:
            os.replace(unfinished, self.folder / "last.ckpt")

    def _measure(self, trainer: Any, module: DistillationModule) -> None:
        batches = trainer.datamodule.val_dataloader()
        self.curve.append(module.mean_terms(selection_loss(module.loss), batches))  # empty without dev groups
        values = {f"dev/{name}": value for name, value in self.curve[-1].items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        if self.best_epoch == len(self.curve) - 1 and trainer.is_global_zero:
            save_model(module.student, str(self.folder / "best.safetensors"))

    def _stale(self) -> int:
        """Epochs since the student was last better than ever, with ``select="loss"`` also in the listwise part."""
        measures = ["loss", "listwise"] if self.select == "loss" else [self.select]
        return len(self.curve) - 1 - max(map(self._best, measures))

    def _best(self, name: str) -> int:
        """The first epoch in which a dev loss was least, or the nDCG greatest; the last one without dev groups."""
        if not self.curve[-1]:
            return len(self.curve) - 1
        sign = -1 if name == "ndcg" else 1
        return min(range(len(self.curve)), key=lambda epoch: sign * self.curve[epoch][name])

    def state_dict(self) -> dict:
        return {"curve": self.curve}

    def load_state_dict(self, state: dict) -> None:
        self.curve = state["curve"]
