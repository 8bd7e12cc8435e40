"""Exact inner-product search with FAISS."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.progress import Progress

from dense_retrieval.executor import HERE, Advance, Compute, Executor, even
from dense_retrieval.records import CandidateList

logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it narrates

_PASSAGES_AT_ONCE = 500_000


@dataclass(frozen=True)
class _Search:
    """From the rows of a part of the passages to its best ones: :class:`CandidateList` of rows of the corpus.

    Args:
        passages: ``(N, D)``, or the file that it is memory-mapped from.
    """

    queries: np.ndarray
    passages: np.ndarray | Path
    k: int

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
            part = np.ascontiguousarray(there[rows[0] : rows[-1] + 1])
            n, metric = min(self.k, len(part)), faiss.METRIC_INNER_PRODUCT
            if resources:
                scores, found = faiss.knn_gpu(resources, self.queries, part, n, metric=metric, device=gpu)
            else:
                scores, found = faiss.knn(self.queries, part, n, metric=metric)
            advance(len(part))
            return CandidateList(found + rows[0], scores)

        return search


def search(
    queries: np.ndarray, passages: np.ndarray, k: int, device: str = "cpu", executor: Executor = HERE
) -> CandidateList:
    """The k passages of greatest inner product with each query, best first.

    Args:
        queries: ``(Q, D)`` float32.
        passages: ``(N, D)`` float32; may be memory-mapped: it is read in parts.
        device: "cuda" searches on the GPUs where the installed FAISS can.

    Returns:
        ``(Q, k)``; padded where the corpus has fewer passages. Equal scores are ordered by row; which
        of several passages equal to the k-th are left out is FAISS's choice.
    """
    best = CandidateList(
        np.full((len(queries), k), -1, dtype=np.int64), np.full((len(queries), k), -np.inf, dtype=np.float32)
    )
    load = _Search(np.ascontiguousarray(queries), _file_of(passages), k)
    parts = [rows for rows in even(len(passages), _PASSAGES_AT_ONCE) if len(rows)]
    # FAISS uses all cores of a machine by itself.
    place = device if device.startswith("cuda") else None
    with Progress(transient=True, disable=len(parts) < 2) as progress:
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
