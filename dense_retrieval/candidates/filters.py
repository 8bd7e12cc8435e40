"""What is taken out of candidate lists before the teacher, or the evaluation, sees them."""

from collections.abc import Sequence

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


def drop_passages(candidates: CandidateList, rows: np.ndarray) -> CandidateList:
    """Without some passages, whichever query they were found for.

    Args:
        rows: ``(H,)`` passage rows, such as the held-out ones.
    """
    return drop(candidates, np.isin(candidates.passages, rows))


def drop_self_matches(
    candidates: CandidateList, query_ids: Sequence[str], passage_ids: Sequence[str]
) -> CandidateList:
    """Without each query's own passage, the one that has its id (ArguAna's queries are passages).

    For 100 that remain, the lists must be 101 long.
    """
    queries = set(query_ids)
    row_of = {passage: row for row, passage in enumerate(passage_ids) if passage in queries}
    own = np.array([row_of.get(query, -1) for query in query_ids], dtype=np.int64)
    return drop(candidates, candidates.passages == own[:, None])


def keep_source_within(candidates: CandidateList, source: np.ndarray, top_k: int) -> np.ndarray:
    """``(Q,)`` bool: the query's source passage is among its first ``top_k`` candidates.

    Ranks are those of the list as given: held-out passages are to be dropped before.
    """
    return np.any(_is_source(candidates, source)[:, :top_k], axis=1)


def cut(candidates: CandidateList, source: np.ndarray, size: int) -> CandidateList:
    """The first ``size`` candidates; a source passage further down takes the last one's place."""
    short = CandidateList(candidates.passages[:, :size].copy(), candidates.scores[:, :size].copy())
    query, position = np.nonzero(_is_source(candidates, source))
    below = position >= size
    short.passages[query[below], -1] = source[query[below]]
    short.scores[query[below], -1] = candidates.scores[query[below], position[below]]
    return short


def _is_source(candidates: CandidateList, source: np.ndarray) -> np.ndarray:
    # A query without a source has -1, which is also the padding.
    return (candidates.passages == source[:, None]) & (source[:, None] >= 0)
