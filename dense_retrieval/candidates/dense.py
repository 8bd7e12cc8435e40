"""Exact inner-product search with FAISS."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.progress import Progress

from dense_retrieval.executor import HERE, Advance, Compute, Executor, even
from dense_retrieval.progress import unwatched
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


@dataclass(frozen=True)
class _Search:
    """From the rows of a part of the passages to its best ones: :class:`CandidateList` of rows of the corpus.

    Args:
        passages: ``(N, D)``, or the file that it is memory-mapped from.
        kept: see :func:`search`.
    """

    queries: np.ndarray
    passages: np.ndarray | Path
    k: int
    kept: Callable[[np.ndarray], np.ndarray] | None

    @property
    def reads(self) -> list[Path]:
        return [self.passages] if isinstance(self.passages, Path) else []

    def __call__(self, device: str) -> Compute:
        import faiss

        there = np.load(self.passages, mmap_mode="r") if isinstance(self.passages, Path) else self.passages
        on_gpu = device.startswith("cuda") and faiss.get_num_gpus() > 0
        resources = faiss.StandardGpuResources() if on_gpu else None
        gpu = int(device.partition(":")[2] or 0)

        def search(rows: np.ndarray, advance: Advance) -> CandidateList:
            part = np.ascontiguousarray(there[rows[0] : rows[-1] + 1], dtype=np.float32)
            part = self.kept(part) if self.kept else part
            n, metric = min(self.k, len(part)), faiss.METRIC_INNER_PRODUCT
            if resources:
                scores, found = faiss.knn_gpu(resources, self.queries, part, n, metric=metric, device=gpu)
            else:
                scores, found = faiss.knn(self.queries, part, n, metric=metric)
            advance(len(part))
            return CandidateList(found + rows[0], scores)

        return search


def search(
    queries: np.ndarray,
    passages: np.ndarray,
    k: int,
    device: str = "cpu",
    executor: Executor = HERE,
    kept: Callable[[np.ndarray], np.ndarray] | None = None,
) -> CandidateList:
    """The k passages of greatest inner product with each query, best first.

    Args:
        queries: ``(Q, D)`` float32 or float16.
        passages: ``(N, D)`` float32 or float16; may be memory-mapped: it is read in parts.
        device: "cuda" searches on the GPUs where the installed FAISS can.
        kept: what an index keeps of a part of the passages: ``(n, D)`` float32 to ``(n, d)``, if the queries have
            ``d`` components.

    Returns:
        ``(Q, k)``; padded where the corpus has fewer passages. Equal scores are ordered by row; which
        of several passages equal to the k-th are left out is FAISS's choice.
    """
    best = CandidateList(
        np.full((len(queries), k), -1, dtype=np.int64), np.full((len(queries), k), -np.inf, dtype=np.float32)
    )
    load = _Search(np.ascontiguousarray(queries, dtype=np.float32), _file_of(passages), k, kept)
    parts = [rows for rows in even(len(passages), _at_once(passages)) if len(rows)]
    # FAISS uses all cores of a machine by itself.
    place = device if device.startswith("cuda") else None
    with Progress(transient=True, disable=len(parts) < 2 or unwatched()) as progress:
        bar = progress.add_task("search", total=len(passages))
        with executor.workers(load, place) as computed:
            for _, found in computed(enumerate(parts), partial(progress.advance, bar)):
                best = _merge(best, found, k)
    return best


def _file_of(array: np.ndarray) -> np.ndarray | Path:
    """The file of an array that ``numpy.load`` has memory-mapped: another process maps it again."""
    if not isinstance(array, np.memmap) or not str(array.filename).endswith(".npy"):
        return array
    file = Path(str(array.filename)).absolute()
    there = np.load(file, mmap_mode="r")
    whole = (there.shape, there.dtype, there.offset) == (array.shape, array.dtype, array.offset)
    return file if whole else array


def _merge(one: CandidateList, other: CandidateList, k: int) -> CandidateList:
    passages = np.concatenate([one.passages, other.passages], 1)
    scores = np.concatenate([one.scores, other.scores], 1)
    order = np.lexsort((passages, -scores), axis=1)[:, :k]
    return CandidateList(np.take_along_axis(passages, order, 1), np.take_along_axis(scores, order, 1))
