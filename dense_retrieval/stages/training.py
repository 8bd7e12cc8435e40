"""From groups to the tuned student."""

from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate

from dense_retrieval.groups.datamodule import GroupsDataModule
from dense_retrieval.losses import temperature
from dense_retrieval.losses.combined import DistillationLoss
from dense_retrieval.records import CandidateList
from dense_retrieval.stages.labels import LabelStages
from dense_retrieval.stages.queries import plain
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.export import export
from dense_retrieval.student.tokens import Tokens
from dense_retrieval.training.fit import fit
from dense_retrieval.training.module import DistillationModule


class TrainingStages(LabelStages):
    """Temperatures, and the tuned student."""

    @cached_property
    def loss(self) -> DistillationLoss:
        """With the temperatures that are "auto" found."""
        loss = instantiate(self.config.loss)
        if loss.teacher_temperature == "auto":
            loss = replace(loss, teacher_temperature=self._teacher_temperature())
        if loss.student_temperature == "auto":
            loss = replace(loss, student_temperature=self._student_temperature(loss.teacher_temperature))
        return loss

    def _teacher_temperature(self) -> float:
        normalised = np.load(self.groups_folder / "normalised.npy")
        candidates = CandidateList.load(self.candidates_folder / "candidates.npz").passages
        is_source = candidates == np.array(self.queries["source"])[:, None]
        usable = is_source.any(1) & np.isfinite(normalised).any(1)
        return temperature.teacher_temperature(normalised[usable], is_source[usable].argmax(1))

    def _student_temperature(self, teacher_temperature: float) -> float:
        train = ~self.groups.dev
        queries = self.embeddings("training", tuned=False)[self.groups.query[train]]
        passages = self.embeddings("passages", tuned=False)[self.groups.passages[train]]
        cosines = np.einsum("gd,gkd->gk", queries, passages)
        return temperature.student_temperature(cosines, self.groups.teacher[train], teacher_temperature)

    @cached_property
    def training_folder(self) -> Path:
        """The tuned student, with how it was trained in ``training.json``."""
        trainer = plain(self.config.trainer, "chunk_tokens", "graph_tokens", "devices")
        settings = {
            "trainer": trainer,
            "loss": asdict(self.loss),
            "student": plain(self.config.student, "path", "revision", "trust_remote_code"),
            "precision": self.config.precision,
            "seed": self.config.seed,
        }
        inputs = {
            "groups": self.groups_folder,
            "passages": self.tokens_folder("passages"),
            "queries": self.tokens_folder("training"),
            "student": self.student_folder,
        }
        return self.store.stage("training", settings, inputs, self._train)

    def _train(self, folder: Path) -> dict[str, Any]:
        torch.manual_seed(self.config.seed)
        student, trainer = instantiate(self.config.student), self.config.trainer
        data = GroupsDataModule(
            self.groups, trainer.batch_size, self.loss.false_negative_ratio, self.config.seed
        )
        module = DistillationModule(
            student,
            self.loss,
            Tokens.load(self.tokens_folder("training")),
            Tokens.load(self.tokens_folder("passages")),
            steps_per_epoch=len(data.train_dataloader()),
            **plain(trainer, "batch_size", "patience", "devices"),
        )
        summary = fit(
            module,
            data,
            folder,
            max_epochs=trainer.max_epochs,
            patience=trainer.patience,
            precision=self.config.precision,
            accelerator="gpu" if self.device.startswith("cuda") else "cpu",
            devices=trainer.devices,
            log=self.log,
        )
        export(student, folder / "model", "")
        for name in ("last.ckpt", "best.safetensors"):
            (folder / name).unlink()
        return {"best_epoch": summary["best_epoch"], "steps": summary["steps"]}

    @cached_property
    def tuned_student(self) -> BiEncoder:
        return instantiate(self.config.student, path=str(self.training_folder / "model"), revision=None)
