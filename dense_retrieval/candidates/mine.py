"""The stage that finds candidates for the training queries."""

from pathlib import Path

import numpy as np
from datasets import Dataset

from dense_retrieval.candidates import filters, fusion
from dense_retrieval.candidates.bm25 import BM25
from dense_retrieval.records import CandidateList, Corpus
from dense_retrieval.search.index import search
from dense_retrieval.stage import Counts, Folder, stage
from dense_retrieval.student.tokens import Tokens


def load_candidates(folder: Path) -> CandidateList:
    """``(Q, K)``"""
    return CandidateList.load(folder / "candidates.npz")


@stage(load_candidates, speed=("query_embeddings", "passage_embeddings", "device"))
def candidates(
    folder: Path,
    corpus: Folder[Corpus],
    queries: Folder[Dataset],
    duplicates: Folder[np.ndarray],
    query_tokens: Folder[Tokens] | None,
    passage_tokens: Folder[Tokens] | None,
    student: Folder[Path] | None,
    query_embeddings: Folder[np.ndarray] | None,
    passage_embeddings: Folder[np.ndarray] | None,
    /,
    *,
    bm25: bool,
    dense: bool,
    k: int,
    fusion_k: int,
    library: str,
    k1: float,
    b: float,
    source_top_k: int,
    list_size: int,
    device: str,
    pooling: str | None = None,
    bf16: bool | None = None,
) -> Counts:
    """The training queries' candidates; an empty list where the source is not near the top."""
    loaded, asked = corpus.load(), queries.load()
    lists = []
    if bm25:
        index = BM25(loaded.passages["text"], library=library, k1=k1, b=b)
        lists.append(index.search(asked["text"], k))
    if dense:
        assert query_embeddings is not None and passage_embeddings is not None
        lists.append(search(query_embeddings.load(), passage_embeddings.load(), k, device=device))
    found = fusion.reciprocal_rank(lists, fusion_k) if len(lists) > 1 else lists[0]
    found = filters.drop_passages(found, np.union1d(loaded.heldout, duplicates.load()))
    source = np.array(asked["source"])
    near = filters.keep_source_within(found, source, source_top_k)
    found = filters.cut(found, source, list_size)
    found = filters.drop(found, np.broadcast_to(~near[:, None], found.passages.shape))
    found.save(folder / "candidates.npz")
    return {"queries": len(found.passages), "kept": int((found.passages[:, 0] >= 0).sum())}
