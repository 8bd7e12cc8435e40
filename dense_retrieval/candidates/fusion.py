"""Reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009)."""

from collections.abc import Sequence

import numpy as np

from dense_retrieval.records import CandidateList


def reciprocal_rank(lists: Sequence[CandidateList], k: int = 60) -> CandidateList:
    """Each query's passages by Σ 1 / (k + rank) over the lists, rank 1 being the best.

    Args:
        lists: for the same Q queries, ``(Q, K_i)`` each.

    Returns:
        ``(Q, max K_i)``; equal sums are ordered by passage row.
    """
    depth = max(candidates.passages.shape[1] for candidates in lists)
    n = len(lists[0].passages)
    fused = CandidateList(
        np.full((n, depth), -1, dtype=np.int64), np.full((n, depth), -np.inf, dtype=np.float32)
    )
    passages = np.concatenate([candidates.passages for candidates in lists], axis=1)
    gains = np.concatenate([1.0 / (k + 1 + np.arange(c.passages.shape[1])) for c in lists])
    for query, row in enumerate(passages):
        unique, inverse = np.unique(row[row >= 0], return_inverse=True)
        # Rounded, so that the order in which equal gains are added cannot break a tie.
        total = np.bincount(inverse, gains[row >= 0], len(unique)).round(12)
        best = np.argsort(-total, kind="stable")[:depth]
        fused.passages[query, : len(best)] = unique[best]
        fused.scores[query, : len(best)] = total[best]
    return fused
