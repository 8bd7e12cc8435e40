"""The stage that keeps BM25's index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dense_retrieval.records import Corpus, column
from dense_retrieval.stage import Counts, Folder, stage

if TYPE_CHECKING:
    from dense_retrieval.candidates.bm25 import BM25


def load_index(folder: Path) -> BM25:
    """Memory-mapped."""
    from dense_retrieval.candidates.bm25 import BM25

    return BM25.load(folder)


@stage(load_index, forecast=lambda corpus, **_: {"passages": corpus["passages"]})
def bm25_index(folder: Path, corpus: Folder[Corpus], /, *, library: str, k1: float, b: float) -> Counts:
    """The index of a :class:`~dense_retrieval.candidates.bm25.BM25`, whose arguments these are."""
    from dense_retrieval.candidates.bm25 import BM25

    passages = corpus.load().passages
    BM25.write(folder, column(passages, "text"), library=library, k1=k1, b=b)
    return {"passages": len(passages)}
