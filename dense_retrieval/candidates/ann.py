"""Approximate inner-product search with FAISS, for corpora where comparing every passage is too dear."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from dense_retrieval.candidates.dense import in_parts, search
from dense_retrieval.progress import unwatched
from dense_retrieval.records import CandidateList, InputError
from dense_retrieval.stage import Counts, Folder, stage

log = logging.getLogger(__name__)

KINDS = ("flat", "ivf", "hnsw")  # flat is exact
_INDEX, _LISTS = "index.faiss", "lists.ivfdata"

_TRAINED_ON = 40  # passages a cell of IVF, a random sample; FAISS asks for 39
_CELLS_PROBED = 16  # one of so many
_LINKS = 32  # HNSW: of a passage
_BUILD_WIDTH, _SEARCH_WIDTH = 100, 256  # HNSW: candidates kept in view
_QUERIES_AT_ONCE = 4_096
_SAMPLE = 1_000  # queries whose recall is measured


def build(passages: np.ndarray, kind: str, folder: Path, seed: int = 0) -> None:
    """Write an index into ``folder``.

    - ``ivf``: 4 √N cells found by k-means on a sample, and of each cell its passages, on disk. Memory: about 1 GB, and
      640 √N D bytes for k-means (1.5 GB of 8.8 million passages with 768 dimensions). float16 embeddings stay float16.
    - ``hnsw``: a graph with 32 links a passage. It is built in memory: 4 D + 270 bytes a passage, 2 D where the
      embeddings are float16.

    A second call on the same folder, after a kill, goes on where the first one stopped, if it is ``ivf``.

    Args:
        passages: ``(N, D)`` float32 or float16, memory-mapped or not.
    """
    import faiss

    half, (_, dimension) = passages.dtype == np.float16, passages.shape
    metric: Any = faiss.METRIC_INNER_PRODUCT
    scalar: Any = faiss.ScalarQuantizer.QT_fp16
    index: Any
    if kind == "hnsw":
        if half:
            index = faiss.IndexHNSWSQ(dimension, scalar, _LINKS, metric)
            index.train(np.zeros((1, dimension), dtype=np.float32))
        else:
            index = faiss.IndexHNSWFlat(dimension, _LINKS, metric)
        index.hnsw.efConstruction = _BUILD_WIDTH
        for _, part in in_parts(passages):
            index.add(part)
        faiss.write_index(index, str(folder / _INDEX))
        return
    trained = folder / "trained.tmp"
    if not trained.exists():
        n_cells = cells(len(passages))
        coarse = faiss.IndexFlatIP(dimension)
        of_half = (coarse, dimension, n_cells, scalar, metric, False)  # no residuals
        index = (
            faiss.IndexIVFScalarQuantizer(*of_half)
            if half
            else faiss.IndexIVFFlat(coarse, dimension, n_cells, metric)
        )
        n = min(len(passages), _TRAINED_ON * n_cells)
        sample = np.sort(np.random.default_rng(seed).choice(len(passages), n, replace=False))
        index.train(np.ascontiguousarray(passages[sample], dtype=np.float32))
        _written(index, trained)
    files = []
    for start, part in in_parts(passages):
        file = folder / f"part-{start}.tmp"
        if not file.exists():
            index = faiss.read_index(str(trained))
            index.add_with_ids(part, np.arange(start, start + len(part)))
            _written(index, file)
        files.append(file)
    from faiss.contrib.ondisk import merge_ondisk

    index = faiss.read_index(str(trained))
    merge_ondisk(index, list(map(str, files)), str(folder / _LISTS))
    faiss.write_index(index, str(folder / _INDEX))
    for file in (trained, *files):
        file.unlink()


def cells(n: int) -> int:
    """Of IVF, for ``n`` passages: 4 √n, each with 39 passages or more on average, as FAISS asks for."""
    return max(1, min(round(4 * n**0.5), n // 39))


def _written(index: Any, file: Path) -> None:
    import faiss

    unfinished = file.with_suffix(".unfinished")
    faiss.write_index(index, str(unfinished))
    unfinished.replace(file)


def load_ann(folder: Path) -> Any:
    """FAISS's index, memory-mapped."""
    import faiss

    on_disk = (
        faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_ONDISK_SAME_DIR
    )  # its lists are mapped without more words
    flags = on_disk if (folder / _LISTS).exists() else faiss.IO_FLAG_MMAP_IFC
    return faiss.read_index(str(folder / _INDEX), flags)


def approximate(index: Any, queries: np.ndarray, k: int, probed: int | None = None) -> CandidateList:
    """The k passages that an index finds for each query, best first; equal scores are ordered by row.

    Args:
        index: of :func:`load_ann`.
        queries: ``(Q, D)``
        probed: of IVF, cells that are looked at; None is one of 16, and 8 at least.

    Returns:
        ``(Q, k)``; padded where fewer are found.
    """
    import faiss

    how: Any
    if isinstance(index, faiss.IndexIVF):
        how = faiss.SearchParametersIVF()
        how.nprobe = probed or min(index.nlist, max(8, index.nlist // _CELLS_PROBED))
    else:
        how = faiss.SearchParametersHNSW()  # type: ignore[attr-defined]
        how.efSearch = max(_SEARCH_WIDTH, 2 * k)
    rows, scores = np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf, dtype=np.float32)
    starts = range(0, len(queries), _QUERIES_AT_ONCE)
    for start in track(starts, "search", transient=True, disable=len(starts) < 2 or unwatched()):
        part = slice(start, start + _QUERIES_AT_ONCE)
        asked = np.ascontiguousarray(queries[part], dtype=np.float32)
        scores[part], rows[part] = index.search(asked, k, params=how)
    scores[rows < 0] = -np.inf
    order = np.lexsort((rows, -scores), axis=1)
    return CandidateList(np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1))


def recall(
    found: CandidateList, queries: np.ndarray, passages: np.ndarray, k: int, device: str = "cpu"
) -> tuple[float, int]:
    """Of the k best passages by exact search the share that was found, and of how many queries: a sample of 1,000."""
    n = min(_SAMPLE, len(queries))
    sample = np.sort(np.random.default_rng(0).choice(len(queries), n, replace=False))
    exact = search(queries[sample], passages, k, device=device).passages
    both = zip(found.passages[sample], exact, strict=True)
    hits = sum(len(np.intersect1d(ours[ours >= 0], best[best >= 0])) for ours, best in both)
    return hits / max(1, int((exact >= 0).sum())), n


def require_kind(kind: str) -> None:
    """Raises InputError where FAISS has no such index here."""
    if kind not in KINDS:
        raise InputError(f"retriever.index={kind!r} is unknown; use {', '.join(KINDS)}")


@stage(load_ann, forecast=lambda passage_embeddings, **_: {"passages": passage_embeddings["texts"]})
def ann_index(folder: Path, passage_embeddings: Folder[np.ndarray], /, *, kind: str) -> Counts:
    """FAISS's index of embeddings; see :func:`build`."""
    passages = passage_embeddings.load()
    build(passages, kind, folder)
    return {"passages": len(passages)}
