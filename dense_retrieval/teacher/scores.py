"""Scores of candidate lists by one teacher, or by several together; and the stage that keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.utils import instantiate

from dense_retrieval.candidates.dense import products
from dense_retrieval.executor import HERE, Executor
from dense_retrieval.memo import Memo, memo_path
from dense_retrieval.records import CandidateList, Corpus
from dense_retrieval.stage import Counted, Counts, Folder, Outside, stage
from dense_retrieval.teacher import ensemble
from dense_retrieval.teacher.score import score_candidates

if TYPE_CHECKING:
    from datasets import Dataset

    from dense_retrieval.candidates.bm25 import BM25

_FILES = ("path", "adapter")


@dataclass(frozen=True)
class Texts:
    """What candidate lists are of, and what BM25 and the untuned student make of it."""

    queries: Sequence[str]  # Q
    querytypes: Sequence[str]  # Q
    passages: Sequence[str]  # N
    bm25: BM25 | None  # for an ensemble's member "bm25"
    query_embeddings: np.ndarray | None  # (Q, D), for its member "student"
    passage_embeddings: np.ndarray | None  # (N, D)


def load_teacher(teacher: Mapping[str, Any], weights: Mapping[str, Folder[Path]], device: str) -> Any:
    """A frozen cross-encoder.

    Args:
        teacher: ``_target_`` and arguments.
        weights: the folders of its ``path`` and, if it has one, of its ``adapter``.
    """
    return instantiate(teacher, **{name: str(folder.path) for name, folder in weights.items()}).to(device)


def score(
    found: CandidateList,
    texts: Texts,
    teachers: Sequence[Any],
    weights: Mapping[str, Folder[Path]],
    shares: Sequence[float] | None,
    *,
    bf16: bool,
    device: str,
    max_tokens: int,
    memos: Path,
    label: str,
    executor: Executor = HERE,
) -> tuple[CandidateList, int]:
    """The candidates ``(Q, K)`` with the teacher's scores, and how many pairs a cross-encoder scored anew.

    Args:
        teachers: one or, of an ensemble, several: "student", "bm25", and the settings of cross-encoders.
        weights: of teacher 0 "path 0" and, if it has one, "adapter 0"; and so on.
        shares: of an ensemble, the weight of each teacher; None is all alike.
        memos: folder of the scores that are there already.
    """

    lists, new = [], 0
    for number, teacher in enumerate(teachers):
        if teacher == "student":
            lists.append(_cosines(found, texts))
        elif teacher == "bm25":
            assert texts.bm25 is not None
            lists.append(texts.bm25.score(texts.queries, found))
        else:
            own = {name: weights[f"{name} {number}"] for name in _FILES if f"{name} {number}" in weights}
            files = {name: Outside(folder.path.absolute()) for name, folder in own.items()}
            load: Any = partial(load_teacher, teacher, files, "cpu")
            reads = [folder.path for folder in files.values()]
            with Memo(scores_path(memos, teacher, own, bf16)) as memo:
                settings: dict[str, Any] = {"max_tokens": max_tokens, "bf16": bf16, "label": label}
                settings |= {"executor": executor, "device": device, "reads": reads}
                scored, computed = score_candidates(
                    load, found, texts.queries, texts.passages, memo, **settings
                )
            lists.append(scored)
            new += computed
    return (lists[0] if len(lists) == 1 else ensemble.average(lists, texts.querytypes, shares)), new


def scores_path(
    memos: Path, teacher: Mapping[str, Any], weights: Mapping[str, Folder[Path]], bf16: bool
) -> Path:
    """Where the scores of a teacher are kept: by all of its settings, and the content of its weights."""
    made_by = {name: value for name, value in teacher.items() if name != "trust_remote_code"}
    made_by |= {"bf16": bf16, "weights": weights["path"].key}
    made_by |= {"adapter": weights["adapter"].key} if "adapter" in weights else {}
    return memo_path(memos, "scores", made_by)


def _cosines(found: CandidateList, texts: Texts) -> CandidateList:
    assert texts.query_embeddings is not None and texts.passage_embeddings is not None
    cosines = products(texts.query_embeddings, texts.passage_embeddings, found.passages)
    cosines[found.passages < 0] = -np.inf
    return CandidateList(found.passages, cosines)


def load_scores(folder: Path) -> CandidateList:
    """``(Q, K)``"""
    return CandidateList.load(folder / "scores.npz")


def scored_later(n: int, scored_before: int | None) -> np.ndarray:
    """``(n,)`` bool: training queries that the teacher scores while they are trained on.

    Those that come first, in their random order, are scored before: labels and temperatures are scaled by them.
    """
    return np.arange(n) >= (n if scored_before is None else scored_before)


def _pairs(candidates: Counted, queries: Counted, scored_before: int | None, **_: Any) -> dict[str, float]:
    each = candidates["pairs"] / candidates["queries"]
    first = queries["queries"] if scored_before is None else np.minimum(scored_before, queries["queries"])
    return {"scored": first * each, "pairs": first * each}


@stage(load_scores, version=2, speed=("device", "max_tokens", "memos", "executor"), forecast=_pairs)
def scores(
    folder: Path,
    candidates: Folder[CandidateList],
    corpus: Folder[Corpus],
    queries: Folder[Dataset],
    bm25: Folder[BM25] | None,
    query_embeddings: Folder[np.ndarray] | None,
    passage_embeddings: Folder[np.ndarray] | None,
    weights: Mapping[str, Folder[Path]],
    /,
    *,
    teachers: list[Any],
    bf16: bool,
    device: str,
    max_tokens: int,
    memos: Path,
    shares: list[float] | None = None,
    scored_before: int | None = None,
    executor: Executor = HERE,
) -> Counts:
    """The teacher's scores of the candidates.

    Args:
        bm25, query_embeddings, passage_embeddings: the index, and the untuned student's view, of those that are
            among the teachers.
        teachers, weights, shares: see :func:`score`.
        scored_before: queries; the teacher scores the rest in training. None is all.
    """
    found, asked = candidates.load(), queries.load()
    found.passages[scored_later(len(asked), scored_before)] = -1
    texts = Texts(
        asked["text"],
        asked["querytype"],
        corpus.load().passages["text"],
        bm25.load() if bm25 else None,
        query_embeddings.load() if query_embeddings else None,
        passage_embeddings.load() if passage_embeddings else None,
    )
    where: dict[str, Any] = {"bf16": bf16, "device": device, "max_tokens": max_tokens, "memos": memos}
    where |= {"label": "teacher scores", "executor": executor}
    scored, new = score(found, texts, teachers, weights, shares, **where)
    scored.save(folder / "scores.npz")
    return {"scored": new, "pairs": int((found.passages >= 0).sum())}
