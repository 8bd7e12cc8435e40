"""The stage that tunes the student."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.utils import instantiate

from dense_retrieval import ranks
from dense_retrieval.hub import dimension, weights_size
from dense_retrieval.losses.loss import Loss, require_dimensions
from dense_retrieval.records import Corpus, Groups
from dense_retrieval.stage import Counted, Counts, Folder, stage
from dense_retrieval.student.tokens import Tokens
from dense_retrieval.teacher.scores import load_teacher
from dense_retrieval.training.stored import StoredEmbeddings

if TYPE_CHECKING:
    from datasets import Dataset

_log = logging.getLogger(__name__)

_SPEED = (
    *("chunk_tokens", "graph_tokens", "compile", "devices", "shard_optimizer", "every_n_steps"),
    *("gradient_checkpointing", "device", "log"),
)


def _most(
    groups: Counted,
    passages: Counted,
    weights: Counted,
    stored: list[Counted] | None,
    trainer: dict[str, Any],
    **_: Any,
) -> dict[str, float]:
    """Passages read, or queries where these alone are, if training does not stop early; what the student will be."""
    student = {"bytes": weights_size(weights), "dimension": dimension(weights)}
    n, pairs, epochs = groups["groups"], groups["pairs"], trainer["max_epochs"]
    if stored:
        return {"queries": n * epochs} | student
    return {"passages": in_an_epoch(n, pairs, trainer["batch_size"], passages["texts"]) * epochs} | student


def in_an_epoch(groups: float, pairs: float, batch_size: int, passages: float) -> float:
    """Passages read in an epoch, at most: in each step those of its groups, but none of the corpus twice."""
    steps, rest = divmod(groups, batch_size)
    each = pairs / groups if groups else 0.0
    return steps * min(batch_size * each, passages) + min(rest * each, passages)


@stage(lambda folder: folder, name="training", version=2, speed=_SPEED, forecast=_most)
def train(
    folder: Path,
    groups: Folder[Groups],
    passages: Folder[Tokens],
    queries: Folder[Tokens],
    weights: Folder[Path],
    temperatures: Folder[dict[str, float]],
    teacher_weights: Mapping[str, Folder[Path]] | None,
    texts: Folder[Dataset] | None,
    corpus: Folder[Corpus] | None,
    stored: Mapping[str, Folder[np.ndarray]] | None,
    /,
    *,
    student: dict[str, Any],
    terms: Mapping[str, Mapping[str, Any]],
    false_negative_ratio: float,
    trainer: dict[str, Any],
    precision: str,
    seed: int,
    chunk_tokens: int,
    graph_tokens: int | None,
    compile: bool,
    devices: int,
    shard_optimizer: bool,
    every_n_steps: int | None,
    device: str,
    log: Callable[[Mapping[str, float], int], None] | None,
    teacher: dict[str, Any] | None = None,
    cut: dict[str, int] | None = None,
    matryoshka: Sequence[int] = (),
    lora: dict[str, Any] | None = None,
    gradient_checkpointing: bool = False,
) -> Counts:
    """The tuned student in ``model``, and how it was trained in ``training.json``; with ``lora`` the adapters, which
    are merged into ``model``, in ``adapter`` too.

    Args:
        weights: that training starts from.
        teacher, teacher_weights, texts, corpus: the teacher that scores in training, and what it reads.
        stored: the embeddings that the passages keep, of each corpus, where only queries are learnt.
        student, teacher: ``_target_`` and arguments.
        terms: of the loss, by name ``_target_`` and arguments.
        cut: with dropout, how steps are cut into passes, which then changes the result.
        matryoshka: dimensions at which the loss is computed; none: of the whole embeddings alone.
        lora: arguments of :func:`~dense_retrieval.student.adapters.adapt`; None is to train all weights.
    """
    import torch

    here = ranks.here()
    if here:
        here.call(folder, device)
        if device.startswith("cuda"):
            device = f"cuda:{here.gpu()}"
    from dense_retrieval.groups.datamodule import GroupsDataModule
    from dense_retrieval.student.export import export
    from dense_retrieval.training.fit import fit
    from dense_retrieval.training.module import DistillationModule
    from dense_retrieval.training.scored_later import ScoredLater

    torch.manual_seed(seed)
    learner = instantiate(student, path=str(weights.path))
    if student.get("passage_length", 0) is None:  # auto: it is the length of a passage, and none is longer
        learner.passage_length = int(passages.load().lengths.max())
    require_dimensions("student.matryoshka", matryoshka, learner.dimension)
    if matryoshka and matryoshka[0] < learner.dimension:
        _log.warning(
            "student.matryoshka=%s is without %d, and the whole embeddings are tested all the same",
            list(matryoshka),
            learner.dimension,
        )
    if lora:
        from dense_retrieval.student.adapters import adapt, merge

        adapt(learner, **lora)
    if gradient_checkpointing:
        learner.recompute_activations(compile)
    found = temperatures.load()
    student_tau, teacher_tau = found["student_temperature"], found["teacher_temperature"]
    loss = Loss({name: instantiate(term) for name, term in terms.items()}, dimensions=matryoshka)
    loss = loss.found(student_tau, teacher_tau)
    by_corpus = groups.path / "corpus.npy"
    data = GroupsDataModule(
        groups.load(),
        trainer["batch_size"],
        false_negative_ratio,
        seed,
        np.load(by_corpus) if by_corpus.exists() else None,
        workers=1 if device.startswith("cuda") else 0,
    )
    later = None
    if teacher and teacher_weights and texts and corpus:
        asked = texts.load()
        scale = np.zeros((len(asked), 2))
        scale[groups.load().query] = np.load(groups.path / "scale.npy")
        scorer = load_teacher(teacher, teacher_weights, device)
        later = ScoredLater(
            scorer, asked["text"], corpus.load().passages["text"], scale, false_negative_ratio
        )
    module = DistillationModule(
        learner,
        loss,
        queries.load(),
        passages.load(),
        stored=StoredEmbeddings(tuple(of.path for of in stored.values())) if stored else None,
        steps_per_epoch=len(data.train_dataloader()),
        scored_later=later,
        chunk_tokens=chunk_tokens,
        graph_tokens=graph_tokens,
        compile=compile,
        shard_optimizer=shard_optimizer,
        **{
            name: value for name, value in trainer.items() if name not in ("batch_size", "patience", "select")
        },
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
        every_n_steps=every_n_steps,
        select=trainer["select"],
        here=here,
        log=log,
    )
    if not summary:  # process 0 has it
        return {}
    (folder / "training.json").write_text(json.dumps(summary | {"loss": loss.described()}, indent=1))
    if lora:
        merge(learner, folder / "adapter")
    export(learner, folder / "model", "", matryoshka)
    for name in ("last.ckpt", "best.safetensors"):
        (folder / name).unlink()
    n, pairs, epochs = len(groups.load().query), groups.load().passages.size, summary["epochs"]
    counts = {"best_epoch": summary["best_epoch"], "steps": summary["steps"]}
    if stored:
        return {"queries": n * epochs} | counts
    read = in_an_epoch(n, pairs, trainer["batch_size"], len(passages.load().lengths))
    return {"passages": round(read) * epochs} | counts
