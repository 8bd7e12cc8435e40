"""What is taken out of candidate lists before the teacher sees them."""

import numpy as np

from dense_retrieval.records import CandidateList


def drop(candidates: CandidateList, unwanted: np.ndarray) -> CandidateList:
    """Without some entries; the lists close up.

    Args:
        unwanted: ``(Q, K)`` bool.
    """
    gone = unwanted | (candidates.passages < 0)
    order = np.argsort(gone, axis=1, kind="stable")
    return CandidateList(
        np.take_along_axis(np.where(gone, -1, candidates.passages), order, 1),
        np.take_along_axis(np.where(gone, -np.inf, candidates.scores).astype(np.float32), order, 1),
    )


def source_near_top(candidates: CandidateList, source: np.ndarray, top_k: int) -> np.ndarray:
    """``(Q,)`` bool: the query's source passage is among its first ``top_k`` candidates."""
    return (candidates.passages[:, :top_k] == source[:, None]).any(1)


def cut(candidates: CandidateList, source: np.ndarray, size: int) -> CandidateList:
    """The first ``size`` candidates; a source passage further down takes the last one's place."""
    short = CandidateList(candidates.passages[:, :size].copy(), candidates.scores[:, :size].copy())
    query, position = np.nonzero(candidates.passages == source[:, None])
    below = position >= size
    short.passages[query[below], -1] = source[query[below]]
    short.scores[query[below], -1] = candidates.scores[query[below], position[below]]
    return short
