"""The stage that finds the temperatures of the listwise loss that are "auto"."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dense_retrieval.candidates.dense import products
from dense_retrieval.losses import temperature
from dense_retrieval.records import CandidateList, Groups
from dense_retrieval.stage import Counts, Folder, stage

if TYPE_CHECKING:
    from datasets import Dataset


def load_temperatures(folder: Path) -> dict[str, float]:
    """``teacher_temperature`` and ``student_temperature``."""
    return json.loads((folder / "temperatures.json").read_text())


@stage(load_temperatures, forecast=lambda groups, **_: {"groups": sum(of["groups"] for of in groups)})
def temperatures(
    folder: Path,
    groups: Mapping[str, Folder[Groups]],
    candidates: Mapping[str, Folder[CandidateList]],
    queries: Mapping[str, Folder[Dataset]],
    query_embeddings: Mapping[str, Folder[np.ndarray]],
    passage_embeddings: Mapping[str, Folder[np.ndarray]],
    /,
    *,
    teacher: float | str,
    student: float | str,
) -> Counts:
    """Temperatures for the groups of one corpus, or of several together.

    Args:
        query_embeddings, passage_embeddings: by the student that training starts from.
        teacher, student: "auto", or what they are.
    """
    if teacher == "auto":
        lists = [_scored_lists(groups[name], candidates[name], queries[name]) for name in groups]
        scores, source = (np.concatenate(part) for part in zip(*lists, strict=True))
        teacher = temperature.teacher_temperature(scores, source)
    if student == "auto":
        cosines, labels = [], []
        for name, of in groups.items():
            found = of.load()
            train = ~found.dev
            asked = query_embeddings[name].load()[found.query[train]]
            cosines.append(products(asked, passage_embeddings[name].load(), found.passages[train]))
            labels.append(found.teacher[train])
        together = np.concatenate(cosines), np.concatenate(labels)
        student = temperature.student_temperature(*together, float(teacher))
    values = {"teacher_temperature": float(teacher), "student_temperature": float(student)}
    (folder / "temperatures.json").write_text(json.dumps(values))
    return {"groups": sum(len(of.load().query) for of in groups.values())}


def _scored_lists(
    groups: Folder[Groups], candidates: Folder[CandidateList], queries: Folder[Dataset]
) -> tuple[np.ndarray, np.ndarray]:
    """Unfiltered lists that hold their source: normalised scores ``(Q, K)``, its position ``(Q,)``."""
    normalised = np.load(groups.path / "normalised.npy")
    is_source = candidates.load().passages == np.array(queries.load()["source"])[:, None]
    # NaN is what the teacher scores later.
    usable = is_source.any(1) & np.isfinite(normalised).any(1)
    return normalised[usable], is_source[usable].argmax(1)
