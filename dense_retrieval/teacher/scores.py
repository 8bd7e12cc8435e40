"""Scores of candidate lists by one teacher, or by several together; and the stage that keeps them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from hydra.utils import instantiate

from dense_retrieval.candidates.bm25 import BM25
from dense_retrieval.memo import Memo, memo_path
from dense_retrieval.records import CandidateList, Corpus
from dense_retrieval.stage import Counts, Folder, Settings, stage
from dense_retrieval.teacher import ensemble
from dense_retrieval.teacher.score import Teacher, score_candidates


@dataclass(frozen=True)
class Texts:
    """What candidate lists are of, and what the untuned student makes of it."""

    queries: Sequence[str]  # Q
    querytypes: Sequence[str]  # Q
    passages: Sequence[str]  # N
    query_embeddings: np.ndarray | None = None  # (Q, D), for an ensemble's member "student"
    passage_embeddings: np.ndarray | None = None  # (N, D)


def load_teacher(member: Mapping[str, Any], weights: Mapping[str, Folder[Path]], device: str) -> Any:
    """A frozen cross-encoder.

    Args:
        member: ``_target_`` and arguments.
        weights: the folders of its ``path`` and, if it has one, of its ``adapter``.
    """
    return instantiate(member, **{name: str(folder.path) for name, folder in weights.items()}).to(device)


def score(
    found: CandidateList,
    texts: Texts,
    members: Mapping[str, Any],
    weights: Mapping[str, Folder[Path]],
    *,
    averaged: Sequence[float] | None,
    bf16: bool,
    device: str,
    max_tokens: int,
    memos: Path,
    label: str,
) -> CandidateList:
    """The candidates ``(Q, K)`` with the teacher's scores.

    Args:
        members: the teacher, or of an ensemble "student", the settings of BM25, and of teachers.
        weights: "weights 0", "adapter 0", ... of each member that has some.
        averaged: of an ensemble, the weight of each member; None is all alike.
        memos: folder of the scores that are there already.
    """
    lists = []
    for number, member in enumerate(members.values()):
        if member == "student":
            lists.append(_cosines(found, texts))
        elif "_target_" not in member:
            lists.append(BM25(texts.passages, **member).score(texts.queries, found))
        else:
            own = {"path": weights[f"weights {number}"]}
            if f"adapter {number}" in weights:
                own["adapter"] = weights[f"adapter {number}"]
            keyed = member.keyed if isinstance(member, Settings) else dict(member)
            made_by = keyed | {"bf16": bf16, "weights": own["path"].key}
            made_by |= {"adapter": own["adapter"].key} if "adapter" in own else {}

            def load(member: Any = member, own: Any = own) -> Teacher:
                return load_teacher(member, own, device)

            with Memo(memo_path(memos, "scores", made_by)) as memo:
                lists.append(
                    score_candidates(
                        load,
                        found,
                        texts.queries,
                        texts.passages,
                        memo,
                        max_tokens=max_tokens,
                        bf16=bf16,
                        label=label,
                    )
                )
    return lists[0] if len(lists) == 1 else ensemble.average(lists, texts.querytypes, averaged)


def _cosines(found: CandidateList, texts: Texts) -> CandidateList:
    assert texts.query_embeddings is not None and texts.passage_embeddings is not None
    passages = texts.passage_embeddings[found.passages]
    cosines = np.einsum("qd,qkd->qk", texts.query_embeddings, passages)
    scores = np.where(found.passages >= 0, cosines, -np.inf)
    return CandidateList(found.passages, scores.astype(np.float32))


def load_scores(folder: Path) -> CandidateList:
    """``(Q, K)``"""
    return CandidateList.load(folder / "scores.npz")


def scored_later(n: int, scored_before: int | None) -> np.ndarray:
    """``(n,)`` bool: training queries that the teacher scores while they are trained on.

    Those that come first, in their random order, are scored before: labels and temperatures are scaled by them.
    """
    return np.arange(n) >= (n if scored_before is None else scored_before)


@stage(
    load_scores,
    speed=("corpus", "queries", "device", "max_tokens", "memos"),
)
def scores(
    folder: Path,
    candidates: Folder[CandidateList],
    weights: Mapping[str, Folder[Path]],
    corpus: Folder[Corpus],
    queries: Folder[Dataset],
    query_embeddings: Folder[np.ndarray] | None,
    passage_embeddings: Folder[np.ndarray] | None,
    /,
    *,
    bf16: bool,
    device: str,
    max_tokens: int,
    memos: Path,
    averaged: list[float] | None = None,
    scored_before: int | None = None,
    **members: Any,
) -> Counts:
    """The teacher's scores of the candidates.

    Args:
        scored_before: queries; the teacher scores the rest in training. None is all.
    """
    found, asked = candidates.load(), queries.load()
    found.passages[scored_later(len(asked), scored_before)] = -1
    texts = Texts(
        asked["text"],
        asked["querytype"],
        corpus.load().passages["text"],
        query_embeddings.load() if query_embeddings else None,
        passage_embeddings.load() if passage_embeddings else None,
    )
    scored = score(
        found,
        texts,
        members,
        weights,
        averaged=averaged,
        bf16=bf16,
        device=device,
        max_tokens=max_tokens,
        memos=memos,
        label="teacher scores",
    )
    scored.save(folder / "scores.npz")
    return {"pairs": int((found.passages >= 0).sum())}
