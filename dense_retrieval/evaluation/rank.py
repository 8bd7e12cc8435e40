"""The stages that rank passages for the test queries."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from dense_retrieval.candidates import filters
from dense_retrieval.candidates.bm25 import BM25
from dense_retrieval.records import CandidateList, Corpus, Qrels
from dense_retrieval.search.index import search
from dense_retrieval.stage import Counts, Folder, stage
from dense_retrieval.student.tokens import Tokens
from dense_retrieval.teacher.scores import Texts, score

DEPTH = 101  # 100 are measured; one more, for where a query finds itself


def load_ranking(folder: Path) -> CandidateList:
    """``(Q, K)``"""
    return CandidateList.load(folder / "ranking.npz")


def asked(corpus: Corpus, of: str, synthetic: Dataset | None) -> tuple[Dataset, Qrels]:
    """The human queries of a split, or synthetic ones, each of which is to find its own passage."""
    if synthetic is None:
        return corpus.queries[of], corpus.qrels[of]
    rows = np.arange(len(synthetic))
    return synthetic, Qrels(rows, np.array(synthetic["source"], dtype=np.int64), np.ones_like(rows))


def headroom_rows(qrels: Qrels, n: int | None) -> np.ndarray:
    """``(n,)`` rows of the judged queries that the teacher reranks for; None is all. The same for every seed."""
    judged = np.unique(qrels.query)
    if n is None or n >= len(judged):
        return judged
    return np.sort(np.random.default_rng(0).choice(judged, n, replace=False))


def _save(folder: Path, ranking: CandidateList, queries: Dataset, corpus: Corpus, self_matches: bool) -> None:
    if self_matches:
        ranking = filters.drop_self_matches(ranking, queries["id"], corpus.passages["id"])
    ranking.save(folder / "ranking.npz")


@stage(load_ranking, name="bm25")
def bm25_ranking(
    folder: Path,
    corpus: Folder[Corpus],
    queries: Folder[Dataset] | None,
    /,
    *,
    of: str,
    k: int,
    library: str,
    k1: float,
    b: float,
    drop_self_matches: bool,
) -> Counts:
    """The ranking of BM25.

    Args:
        queries: None where they are a split of the corpus.
        of: the split.
    """
    loaded = corpus.load()
    table, _ = asked(loaded, of, queries.load() if queries else None)
    index = BM25(loaded.passages["text"], library=library, k1=k1, b=b)
    _save(folder, index.search(table["text"], k), table, loaded, drop_self_matches)
    return {"queries": len(table)}


@stage(
    load_ranking,
    name="ranking",
    speed=("corpus", "asked_queries", "query_embeddings", "passage_embeddings", "of", "device"),
)
def student_ranking(
    folder: Path,
    passages: Folder[Tokens],
    queries: Folder[Tokens],
    student: Folder[Path],
    corpus: Folder[Corpus],
    asked_queries: Folder[Dataset] | None,
    query_embeddings: Folder[np.ndarray],
    passage_embeddings: Folder[np.ndarray],
    /,
    *,
    of: str,
    k: int,
    bf16: bool,
    pooling: str,
    drop_self_matches: bool,
    device: str,
) -> Counts:
    """The ranking by inner product of embeddings."""
    found = search(query_embeddings.load(), passage_embeddings.load(), k, device=device)
    loaded = corpus.load()
    table, _ = asked(loaded, of, asked_queries.load() if asked_queries else None)
    _save(folder, found, table, loaded, drop_self_matches)
    return {"queries": len(table)}


@stage(load_ranking, speed=("ranking", "device", "max_tokens", "memos"))
def teacher_ranking(
    folder: Path,
    corpus: Folder[Corpus],
    passages: Folder[Tokens],
    query_tokens: Folder[Tokens],
    student: Folder[Path],
    asked_queries: Folder[Dataset] | None,
    weights: Mapping[str, Folder[Path]],
    ranking: Folder[CandidateList],
    query_embeddings: Folder[np.ndarray] | None,
    passage_embeddings: Folder[np.ndarray] | None,
    /,
    *,
    of: str,
    k: int,
    queries: list[int],
    pooling: str,
    drop_self_matches: bool,
    bf16: bool,
    device: str,
    max_tokens: int,
    memos: Path,
    averaged: list[float] | None = None,
    **members: Any,
) -> Counts:
    """The teacher's order of the untuned student's best ``k`` passages, then the student's order.

    Empty for the queries that are not among the rows ``queries``.
    """
    found, loaded = ranking.load(), corpus.load()
    table, _ = asked(loaded, of, asked_queries.load() if asked_queries else None)
    found.passages[np.setdiff1d(np.arange(len(found.passages)), queries)] = -1
    texts = Texts(
        table["text"],
        table["querytype"],
        loaded.passages["text"],
        query_embeddings.load() if query_embeddings else None,
        passage_embeddings.load() if passage_embeddings else None,
    )
    top = CandidateList(found.passages[:, :k], found.scores[:, :k])
    settings: dict[str, Any] = {"bf16": bf16, "device": device, "max_tokens": max_tokens, "memos": memos}
    label = "teacher reranking"
    ranked = score(top, texts, members, weights, averaged=averaged, label=label, **settings).ranked()
    least = np.where(np.isfinite(ranked.scores), ranked.scores, np.inf).min(1, keepdims=True)
    # What it did not see stands below what it did, in the student's order.
    below = np.where(found.passages >= 0, least - 1 - np.arange(found.passages.shape[1]), -np.inf)
    CandidateList(
        np.concatenate([ranked.passages, found.passages[:, k:]], 1),
        np.concatenate([ranked.scores, below[:, k:]], 1).astype(np.float32),
    ).save(folder / "ranking.npz")
    return {"queries": len(queries), "pairs": int((top.passages >= 0).sum())}
