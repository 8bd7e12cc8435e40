"""Where teacher and student disagree: of which passages more queries are worth most."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dense_retrieval.candidates.dense import products
from dense_retrieval.records import CandidateList, Groups
from dense_retrieval.stage import Counts, Folder, stage

if TYPE_CHECKING:
    from datasets import Dataset


def mean_disagreement(
    passages: np.ndarray,
    teacher: np.ndarray,
    student: np.ndarray,
    teacher_temperature: float,
    student_temperature: float,
    n: int,
) -> np.ndarray:
    """How far teacher and student are apart about each passage ``(n,)``; NaN of one that is in no list.

    Over the lists L that hold passage p, with the scores t of the teacher and s of the student::

        d(p) = mean_L |softmax(t_L / teacher_temperature)_p - softmax(s_L / student_temperature)_p|

    Args:
        passages: ``(Q, K)`` rows of candidate lists, -1 = padding.
        teacher, student: ``(Q, K)`` scores; what the teacher has not scored is not finite, and left out.
        n: passages of the corpus.

    >>> lists, even = np.array([[0, 1], [1, -1]]), np.zeros((2, 2))
    >>> mean_disagreement(lists, np.log([[3., 1.], [1., 1.]]), even, 1, 1, 3).tolist()
    [0.25, 0.125, nan]
    """
    from scipy.special import softmax

    scored = (passages >= 0) & np.isfinite(teacher)
    some = scored.any(1)
    passages, teacher, student, scored = passages[some], teacher[some], student[some], scored[some]
    ours = softmax(np.where(scored, student.astype(float) / student_temperature, -np.inf), axis=1)
    theirs = softmax(np.where(scored, teacher.astype(float) / teacher_temperature, -np.inf), axis=1)
    rows = passages[scored]
    total = np.bincount(rows, np.abs(theirs - ours)[scored], minlength=n)
    with np.errstate(invalid="ignore"):
        return total / np.bincount(rows, minlength=n)


@stage(
    lambda folder: np.load(folder / "disagreement.npy"),
    forecast=lambda candidates, **_: {"pairs": candidates["pairs"]},
)
def disagreement(
    folder: Path,
    candidates: Folder[CandidateList],
    groups: Folder[Groups],
    queries: Folder[Dataset],
    query_embeddings: Folder[np.ndarray],
    passage_embeddings: Folder[np.ndarray],
    temperatures: Folder[dict[str, float]],
    /,
) -> Counts:
    """:func:`mean_disagreement` over the lists of all queries, also of those that are not trained on.

    Args:
        groups: beside which the teacher's normalised scores are.
        query_embeddings, passage_embeddings: by the student that training starts from.
        temperatures: by which the loss compares the two.
    """
    found, there = candidates.load(), passage_embeddings.load()
    taus = temperatures.load()
    mean = mean_disagreement(
        found.passages,
        np.load(groups.path / "normalised.npy"),
        products(query_embeddings.load(), there, found.passages),
        taus["teacher_temperature"],
        taus["student_temperature"],
        len(there),
    )
    np.save(folder / "disagreement.npy", mean)
    return {"pairs": int((found.passages >= 0).sum()), "known": int(np.isfinite(mean).sum())}
