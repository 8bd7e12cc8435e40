"""BM25 with Lucene's idf, by either of two libraries that rank alike."""

import math
from collections.abc import Callable, Sequence

import bm25s
import numpy as np
from rank_bm25 import BM25Okapi
from rich.progress import track

from dense_retrieval.records import CandidateList, InputError


def search(
    passages: Sequence[str],
    queries: Sequence[str],
    k: int,
    *,
    library: str = "bm25s",
    k1: float = 1.5,
    b: float = 0.75,
) -> CandidateList:
    """The k best passages of each query; a passage that shares no word with it is no candidate.

    Words are lower-cased runs of two or more word characters without English stop words. Equal
    scores are ordered by passage row.

    Args:
        library: ``bm25s`` (sparse matrix, for any corpus) or ``rank_bm25`` (a loop over passages, for
            small ones).

    Raises:
        InputError: another library, or no passage has a word.
    """
    if library not in ("bm25s", "rank_bm25"):
        raise InputError(f"retriever.library={library!r} is unknown; use bm25s or rank_bm25")
    words = _words(passages)
    if not any(words):
        raise InputError("no passage has a word that BM25 could find: every text is empty or of stop words only")
    score = _bm25s(words, k1, b) if library == "bm25s" else _rank_bm25(words, k1, b)
    found = CandidateList(
        np.full((len(queries), k), -1, dtype=np.int64), np.full((len(queries), k), -np.inf, dtype=np.float32)
    )
    for row, query in enumerate(track(_words(queries), "BM25", transient=True)):
        if not query:
            continue
        # Rounded, so that ties are ties in both libraries (one sums in float32, one in float64).
        scores = score(query).astype(np.float64).round(4)
        best = _best(scores, k)
        found.passages[row, : len(best)] = best
        found.scores[row, : len(best)] = scores[best]
    return found


def _words(texts: Sequence[str]) -> list[list[str]]:
    return bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)


def _bm25s(passages: list[list[str]], k1: float, b: float) -> Callable[[list[str]], np.ndarray]:
    index = bm25s.BM25(k1=k1, b=b, method="lucene")
    index.index(passages, show_progress=False)
    return lambda query: index.get_scores([word for word in query if word in index.vocab_dict] or [""])


def _rank_bm25(passages: list[list[str]], k1: float, b: float) -> Callable[[list[str]], np.ndarray]:
    index = _LuceneIdf(passages, k1=k1, b=b)
    return lambda query: index.get_scores(query) / (k1 + 1)  # Lucene leaves this constant out


class _LuceneIdf(BM25Okapi):
    """rank_bm25's own idf is negative for frequent words, and then replaced by a constant."""

    def _calc_idf(self, nd: dict[str, int]) -> None:
        n = self.corpus_size
        self.idf = {word: math.log(1 + (n - df + 0.5) / (df + 0.5)) for word, df in nd.items()}


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k greatest positive scores, best first, ties by row."""
    if len(scores) > k:
        least = max(np.partition(scores, -k)[-k], np.finfo(np.float32).tiny)
        rows = np.flatnonzero(scores >= least)
    else:
        rows = np.flatnonzero(scores > 0)
    return rows[np.argsort(-scores[rows], kind="stable")][:k]
