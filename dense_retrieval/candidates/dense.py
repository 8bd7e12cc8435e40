"""Exact inner-product search with FAISS."""

import logging
from collections.abc import Iterator

import numpy as np
from rich.progress import track

from dense_retrieval.records import CandidateList

logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it narrates

_PASSAGES_AT_ONCE = 500_000
_BYTES_AT_ONCE = 2**29


def _at_once(passages: np.ndarray) -> int:
    return max(1, min(_PASSAGES_AT_ONCE, _BYTES_AT_ONCE // (4 * passages.shape[1])))


def in_parts(passages: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """First row and float32 embeddings of some passages ``(N, D)`` after the other, as FAISS takes them."""
    n = _at_once(passages)
    for start in range(0, len(passages), n):
        yield start, np.ascontiguousarray(passages[start : start + n], dtype=np.float32)


def products(queries: np.ndarray, passages: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Inner products ``(Q, K)`` float32 of queries ``(Q, D)`` with passages ``(N, D)``, K rows of each query."""
    found = np.empty(rows.shape, dtype=np.float32)
    n = max(1, _BYTES_AT_ONCE // (4 * passages.shape[1] * max(1, rows.shape[1])))
    for start in range(0, len(rows), n):
        part = slice(start, start + n)
        chosen = passages[rows[part]].astype(np.float32, copy=False)
        found[part] = np.einsum("qd,qkd->qk", queries[part].astype(np.float32, copy=False), chosen)
    return found


def search(queries: np.ndarray, passages: np.ndarray, k: int, device: str = "cpu") -> CandidateList:
    """The k passages of greatest inner product with each query, best first.

    Args:
        queries: ``(Q, D)`` float32 or float16.
        passages: ``(N, D)`` float32 or float16; may be memory-mapped: it is read in parts.
        device: "cuda" searches on the GPU where the installed FAISS can.

    Returns:
        ``(Q, k)``; padded where the corpus has fewer passages. Equal scores are ordered by row; which
        of several passages equal to the k-th are left out is FAISS's choice.
    """
    import faiss

    queries = np.ascontiguousarray(queries, dtype=np.float32)
    resources = faiss.StandardGpuResources() if device.startswith("cuda") and faiss.get_num_gpus() else None
    best = CandidateList(
        np.full((len(queries), k), -1, dtype=np.int64), np.full((len(queries), k), -np.inf, dtype=np.float32)
    )
    n_parts = -(-len(passages) // _at_once(passages))
    for start, part in track(in_parts(passages), "search", n_parts, transient=True, disable=n_parts < 2):
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
