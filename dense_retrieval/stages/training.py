"""From groups to the tuned student."""

from collections.abc import Callable
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
from dense_retrieval.training.module import DistillationModule, ScoredLater


class TrainingStages(LabelStages):
    """Temperatures, and the tuned student."""

    _trained_elsewhere: Callable[[], Path] | None = None

    @cached_property
    def loss(self) -> DistillationLoss:
        """With the temperatures that are "auto" found."""
        loss = instantiate(self.config.loss)
        if loss.teacher_temperature == "auto":
            loss = replace(loss, teacher_temperature=temperature.teacher_temperature(*self.scored_lists))
        if loss.student_temperature == "auto":
            labels = self.groups.teacher[~self.groups.dev]
            found = temperature.student_temperature(self.training_cosines, labels, loss.teacher_temperature)
            loss = replace(loss, student_temperature=found)
        return loss

    @property
    def scored_lists(self) -> tuple[np.ndarray, np.ndarray]:
        """Unfiltered lists that hold their source: normalised scores ``(Q, K)``, its position ``(Q,)``."""
        normalised = np.load(self.groups_folder / "normalised.npy")
        candidates = CandidateList.load(self.candidates_folder / "candidates.npz").passages
        is_source = candidates == np.array(self.queries["source"])[:, None]
        usable = is_source.any(1) & np.isfinite(normalised).any(1) & ~self.scored_later
        return normalised[usable], is_source[usable].argmax(1)

    @property
    def training_cosines(self) -> np.ndarray:
        """``(G, K)`` of the untuned student, of the groups to train on."""
        train = ~self.groups.dev
        queries = self.embeddings("training", tuned=False)[self.groups.query[train]]
        passages = self.embeddings("passages", tuned=False)[self.groups.passages[train]]
        return np.einsum("gd,gkd->gk", queries, passages)

    @property
    def group_corpus(self) -> np.ndarray | None:
        """``(G,)`` which corpus a group is of, where there are several."""
        return None

    def use_student(self, model_folder: Callable[[], Path]) -> None:
        """Test a student that others trained, in place of one's own."""
        self._trained_elsewhere = model_folder

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
        if self.config.groups.scored_before is not None:
            settings["teacher"] = self.teacher_settings
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
        ratio, seed = self.loss.false_negative_ratio, self.config.seed
        data = GroupsDataModule(self.groups, trainer.batch_size, ratio, seed, self.group_corpus)
        module = DistillationModule(
            student,
            self.loss,
            Tokens.load(self.tokens_folder("training")),
            Tokens.load(self.tokens_folder("passages")),
            steps_per_epoch=len(data.train_dataloader()),
            scored_later=self._teacher_in_training(),
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

    def _teacher_in_training(self) -> ScoredLater | None:
        if self.config.groups.scored_before is None:
            return None
        scale = np.zeros((len(self.queries), 2))
        scale[self.groups.query] = np.load(self.groups_folder / "scale.npy")
        return ScoredLater(self.teacher, self.queries["text"], self.corpus.passages["text"], scale)

    @property
    def tuned_folder(self) -> Path:
        return self._trained_elsewhere() if self._trained_elsewhere else self.training_folder / "model"

    @cached_property
    def tuned_student(self) -> BiEncoder:
        return instantiate(self.config.student, path=str(self.tuned_folder), revision=None)
