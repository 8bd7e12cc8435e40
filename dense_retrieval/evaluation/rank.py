"""The stages that rank passages for the test queries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dense_retrieval.candidates import filters, fusion
from dense_retrieval.candidates.dense import search
from dense_retrieval.evaluation.evaluate import DEPTH
from dense_retrieval.evaluation.vectors import WHOLE, Kept, Vectors, cut
from dense_retrieval.executor import HERE, Executor
from dense_retrieval.losses.loss import require_dimensions
from dense_retrieval.records import CandidateList, Corpus, Qrels, TestSet
from dense_retrieval.stage import Counted, Counts, Folder, stage
from dense_retrieval.teacher.scores import Texts, score

if TYPE_CHECKING:
    from dense_retrieval.candidates.bm25 import BM25

RANKED = DEPTH + 1  # one more than is measured, for where a query finds itself


def load_ranking(folder: Path) -> CandidateList:
    """``(Q, K)``"""
    return CandidateList.load(folder / "ranking.npz")


@stage(load_ranking, name="bm25", version=2, forecast=lambda tested, **_: {"queries": tested["queries"]})
def bm25_ranking(
    folder: Path,
    index: Folder[BM25],
    tested: Folder[TestSet],
    corpus: Folder[Corpus] | None,
    /,
    *,
    k: int = RANKED,
) -> Counts:
    """The ranking of BM25.

    Args:
        corpus: given where no query finds the passage that has its id.
    """
    queries = tested.load().queries
    found = index.load().search(queries["text"], k)
    if corpus:
        found = filters.drop_self_matches(found, queries["id"], corpus.load().passages["id"])
    found.save(folder / "ranking.npz")
    return {"queries": len(queries)}


@stage(
    load_ranking,
    name="ranking",
    version=2,
    speed=("device", "executor"),
    forecast=lambda query_embeddings, **_: {"queries": query_embeddings["texts"]},
)
def student_ranking(
    folder: Path,
    query_embeddings: Folder[np.ndarray],
    passage_embeddings: Folder[np.ndarray],
    corpus: Folder[Corpus] | None,
    tested: Folder[TestSet] | None,
    /,
    *,
    device: str,
    k: int = RANKED,
    executor: Executor = HERE,
    dimension: int | None = None,
    vectors: str = "float32",
) -> Counts:
    """The ranking by inner product of embeddings.

    Args:
        corpus, tested: given where no query finds the passage that has its id.
        dimension, vectors: as what the passages are kept, see :class:`Vectors`.
    """
    queries, passages, kept = query_embeddings.load(), passage_embeddings.load(), None
    if (smaller := Vectors(dimension, vectors)) != WHOLE:
        require_dimensions("evaluation.dimensions", [dimension] if dimension else [], passages.shape[1])
        queries, kept = cut(queries, dimension), Kept.of(smaller, passages)
    found = search(queries, passages, k, device, executor, kept)
    if corpus and tested:
        ids = tested.load().queries["id"], corpus.load().passages["id"]
        found = filters.drop_self_matches(found, *ids)
    found.save(folder / "ranking.npz")
    return {"queries": len(found.passages)}


@stage(load_ranking, name="hybrid", forecast=lambda one, **_: {"queries": one["queries"]})
def hybrid_ranking(
    folder: Path, one: Folder[CandidateList], other: Folder[CandidateList], /, *, fusion_k: int
) -> Counts:
    """Two rankings fused by reciprocal rank: 1 / (fusion_k + rank)."""
    found = fusion.reciprocal_rank([one.load(), other.load()], fusion_k)
    found.save(folder / "ranking.npz")
    return {"queries": len(found.passages)}


def headroom_rows(qrels: Qrels, n: int | None) -> np.ndarray:
    """``(n,)`` rows of the judged queries that the teacher reranks for; None is all. The same for every seed."""
    judged = np.unique(qrels.query)
    if n is None or n >= len(judged):
        return judged
    return np.sort(np.random.default_rng(0).choice(judged, n, replace=False))


def _pairs(tested: Counted, k: int, n: int | None, **_: Any) -> dict[str, float]:
    pairs = (tested["queries"] if n is None else np.minimum(n, tested["queries"])) * k
    return {"scored": pairs, "pairs": pairs}


@stage(load_ranking, version=2, speed=("device", "max_tokens", "memos", "executor"), forecast=_pairs)
def teacher_ranking(
    folder: Path,
    ranking: Folder[CandidateList],
    corpus: Folder[Corpus],
    tested: Folder[TestSet],
    bm25: Folder[BM25] | None,
    query_embeddings: Folder[np.ndarray] | None,
    passage_embeddings: Folder[np.ndarray] | None,
    weights: Mapping[str, Folder[Path]],
    /,
    *,
    k: int,
    n: int | None,
    teachers: list[Any],
    bf16: bool,
    device: str,
    max_tokens: int,
    memos: Path,
    shares: list[float] | None = None,
    executor: Executor = HERE,
) -> Counts:
    """The teacher's order of the untuned student's best ``k`` passages, then the student's order.

    Empty for the queries that are not among :func:`headroom_rows`.

    Args:
        bm25, query_embeddings, passage_embeddings, weights, teachers, shares: see :func:`score` and :class:`Texts`.
    """
    found, test = ranking.load(), tested.load()
    found.passages[np.setdiff1d(np.arange(len(found.passages)), headroom_rows(test.qrels, n))] = -1
    texts = Texts(
        test.queries["text"],
        test.queries["querytype"],
        corpus.load().passages["text"],
        bm25.load() if bm25 else None,
        query_embeddings.load() if query_embeddings else None,
        passage_embeddings.load() if passage_embeddings else None,
    )
    top = CandidateList(found.passages[:, :k], found.scores[:, :k])
    where: dict[str, Any] = {"bf16": bf16, "device": device, "max_tokens": max_tokens, "memos": memos}
    where |= {"label": "teacher reranking", "executor": executor}
    scored, new = score(top, texts, teachers, weights, shares, **where)
    ranked = scored.ranked()
    least = np.where(np.isfinite(ranked.scores), ranked.scores, np.inf).min(1, keepdims=True)
    # What it did not see stands below what it did, in the student's order.
    below = np.where(found.passages >= 0, least - 1 - np.arange(found.passages.shape[1]), -np.inf)
    CandidateList(
        np.concatenate([ranked.passages, found.passages[:, k:]], 1),
        np.concatenate([ranked.scores, below[:, k:]], 1).astype(np.float32),
    ).save(folder / "ranking.npz")
    return {"scored": new, "pairs": int((top.passages >= 0).sum())}
