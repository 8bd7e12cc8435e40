"""The stage that tunes the student."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from hydra.utils import instantiate

from dense_retrieval.groups.datamodule import GroupsDataModule
from dense_retrieval.losses.combined import DistillationLoss
from dense_retrieval.records import Corpus, Groups
from dense_retrieval.stage import Counts, Folder, stage
from dense_retrieval.student.export import export
from dense_retrieval.student.tokens import Tokens
from dense_retrieval.teacher.scores import load_teacher
from dense_retrieval.training.fit import fit
from dense_retrieval.training.module import DistillationModule, ScoredLater

_SPEED = ("teacher_weights", "corpus", "texts", "chunk_tokens", "graph_tokens", "devices", "device", "log")


@stage(lambda folder: folder, name="training", speed=_SPEED)
def train(
    folder: Path,
    groups: Folder[Groups],
    passages: Folder[Tokens],
    queries: Folder[Tokens],
    student: Folder[Path],
    teacher_weights: Mapping[str, Folder[Path]] | None,
    corpus: Folder[Corpus] | None,
    texts: Folder[Dataset] | None,
    /,
    *,
    loss: dict[str, Any],
    trainer: dict[str, Any],
    precision: str,
    seed: int,
    chunk_tokens: int,
    graph_tokens: int,
    devices: int,
    device: str,
    log: Callable[[Mapping[str, float], int], None] | None,
    **models: Any,
) -> Counts:
    """The tuned student in ``model``, and how it was trained in ``training.json``.

    Args:
        student: the weights that it starts from.
        teacher_weights, corpus, texts: of the teacher that scores in training, and what it reads.
        models: ``student`` and, if it scores in training, ``teacher``: ``_target_`` and arguments.
    """
    torch.manual_seed(seed)
    learner = instantiate(models["student"], path=str(student.path), revision=None)
    wanted = DistillationLoss(**loss)
    by_corpus = groups.path / "corpus.npy"
    data = GroupsDataModule(
        groups.load(),
        trainer["batch_size"],
        wanted.false_negative_ratio,
        seed,
        np.load(by_corpus) if by_corpus.exists() else None,
    )
    later = None
    if teacher_weights is not None and corpus is not None and texts is not None:
        asked = texts.load()
        scale = np.zeros((len(asked), 2))
        scale[groups.load().query] = np.load(groups.path / "scale.npy")
        teacher = load_teacher(models["teacher"], teacher_weights, device)
        later = ScoredLater(teacher, asked["text"], corpus.load().passages["text"], scale)
    module = DistillationModule(
        learner,
        wanted,
        queries.load(),
        passages.load(),
        steps_per_epoch=len(data.train_dataloader()),
        scored_later=later,
        chunk_tokens=chunk_tokens,
        graph_tokens=graph_tokens,
        **{name: value for name, value in trainer.items() if name not in ("batch_size", "patience")},
    )
    summary = fit(
        module,
        data,
        folder,
        max_epochs=trainer["max_epochs"],
        patience=trainer["patience"],
        precision=precision,
        accelerator="gpu" if device.startswith("cuda") else "cpu",
        devices=devices,
        log=log,
    )
    export(learner, folder / "model", "")
    for name in ("last.ckpt", "best.safetensors"):
        (folder / name).unlink()
    return {"best_epoch": summary["best_epoch"], "steps": summary["steps"]}
