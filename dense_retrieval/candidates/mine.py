"""The stage that finds candidates for the training queries."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dense_retrieval.candidates import ann, filters, fusion
from dense_retrieval.candidates.dense import search
from dense_retrieval.executor import HERE, Executor
from dense_retrieval.records import CandidateList
from dense_retrieval.stage import Counts, Folder, stage

if TYPE_CHECKING:
    from datasets import Dataset

    from dense_retrieval.candidates.bm25 import BM25


log = logging.getLogger(__name__)


def load_candidates(folder: Path) -> CandidateList:
    """``(Q, K)``"""
    return CandidateList.load(folder / "candidates.npz")


@stage(
    load_candidates,
    version=2,
    speed=("device", "executor"),
    forecast=lambda queries, list_size, **_: {
        "queries": queries["queries"],
        "pairs": queries["queries"] * list_size,
    },
)
def candidates(
    folder: Path,
    untrained: Mapping[str, Folder[np.ndarray]],
    queries: Folder[Dataset],
    bm25: Folder[BM25] | None,
    query_embeddings: Folder[np.ndarray] | None,
    passage_embeddings: Folder[np.ndarray] | None,
    index: Folder[Any] | None = None,
    /,
    *,
    k: int,
    fusion_k: int,
    source_top_k: int,
    list_size: int,
    device: str,
    executor: Executor = HERE,
) -> Counts:
    """The training queries' candidates; an empty list where the source is not near the top.

    Args:
        untrained: passage rows that are no candidates: held-out passages and duplicates.
        bm25, query_embeddings, passage_embeddings: the index, and the student's view, of those that search; else
            None.
        index: by which the student searches; None is exact search.
    """
    asked, lists, counted = queries.load(), [], {}
    if bm25:
        lists.append(bm25.load().search(asked["text"], k))
    if query_embeddings and passage_embeddings:
        embedded = query_embeddings.load(), passage_embeddings.load()
        if index:
            lists.append(ann.approximate(index.load(), embedded[0], k))
            counted["recall"], counted["recall of"] = ann.recall(lists[-1], *embedded, k, device)
            log.info(
                "the index finds %.2f%% of the %d best passages of exact search (%d queries)",
                *(100 * counted["recall"], k, counted["recall of"]),
            )
        else:
            lists.append(search(*embedded, k, device, executor))
    found = fusion.reciprocal_rank(lists, fusion_k) if len(lists) > 1 else lists[0]
    found = filters.drop_passages(found, np.concatenate([rows.load() for rows in untrained.values()]))
    source = np.array(asked["source"][:])
    near = filters.keep_source_within(found, source, source_top_k)
    found = filters.cut(found, source, list_size)
    found = filters.drop(found, np.broadcast_to(~near[:, None], found.passages.shape))
    found.save(folder / "candidates.npz")
    return {
        "queries": len(found.passages),
        "kept": int((found.passages[:, 0] >= 0).sum()),
        "pairs": int((found.passages >= 0).sum()),
    } | counted
