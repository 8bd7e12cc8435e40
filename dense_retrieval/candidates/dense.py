"""Exact inner-product search with FAISS."""

import logging

import numpy as np
from rich.progress import track

from dense_retrieval.records import CandidateList

logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it narrates

_PASSAGES_AT_ONCE = 500_000


def search(queries: np.ndarray, passages: np.ndarray, k: int, device: str = "cpu") -> CandidateList:
    """The k passages of greatest inner product with each query, best first.

    Args:
        queries: ``(Q, D)`` float32.
        passages: ``(N, D)`` float32; may be memory-mapped: it is read in parts.
        device: "cuda" searches on the GPU where the installed FAISS can.

    Returns:
        ``(Q, k)``; padded where the corpus has fewer passages. Equal scores are ordered by row; which
        of several passages equal to the k-th are left out is FAISS's choice.
    """
    import faiss

    queries = np.ascontiguousarray(queries)
    resources = faiss.StandardGpuResources() if device.startswith("cuda") and faiss.get_num_gpus() else None
    best = CandidateList(
        np.full((len(queries), k), -1, dtype=np.int64), np.full((len(queries), k), -np.inf, dtype=np.float32)
    )
    starts = range(0, len(passages), _PASSAGES_AT_ONCE)
    for start in track(starts, "search", transient=True, disable=len(starts) < 2):
        part = np.ascontiguousarray(passages[start : start + _PASSAGES_AT_ONCE])
        n = min(k, len(part))
        if resources:
            scores, rows = faiss.knn_gpu(resources, queries, part, n, metric=faiss.METRIC_INNER_PRODUCT)
        else:
            scores, rows = faiss.knn(queries, part, n, metric=faiss.METRIC_INNER_PRODUCT)
        best = _merge(best, CandidateList(rows + start, scores), k)
    return best


def _merge(one: CandidateList, other: CandidateList, k: int) -> CandidateList:
    passages = np.concatenate([one.passages, other.passages], 1)
    scores = np.concatenate([one.scores, other.scores], 1)
    order = np.lexsort((passages, -scores), axis=1)[:, :k]
    return CandidateList(np.take_along_axis(passages, order, 1), np.take_along_axis(scores, order, 1))
