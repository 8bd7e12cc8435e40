"""BM25 with Lucene's idf, by either of two libraries that rank alike."""

import logging
import math
from collections.abc import Callable, Sequence

import bm25s
import numpy as np
from bm25s.tokenization import Tokenized
from rank_bm25 import BM25Okapi
from rich.progress import track

from dense_retrieval.records import CandidateList, InputError

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it narrates


class BM25:
    """An index of passages.

    Words are lower-cased runs of two or more word characters without English stop words.

    Args:
        library: ``bm25s`` (sparse matrix, for any corpus) or ``rank_bm25`` (a loop over passages, for
            small ones).

    Raises:
        InputError: another library, or no passage has a word.
    """

    def __init__(
        self, passages: Sequence[str], *, library: str = "bm25s", k1: float = 1.5, b: float = 0.75
    ) -> None:
        if library not in ("bm25s", "rank_bm25"):
            raise InputError(f"retriever.library={library!r} is unknown; use bm25s or rank_bm25")
        words = bm25s.tokenize(passages, stopwords="en", show_progress=False)
        if not words.vocab:
            raise InputError(
                "no passage has a word that BM25 could find: every text is empty or of stop words only"
            )
        self._vocabulary = words.vocab
        self._scores = _bm25s(words, k1, b) if library == "bm25s" else _rank_bm25(words, k1, b)

    def search(self, queries: Sequence[str], k: int) -> CandidateList:
        """The k best passages of each query; a passage that shares no word with it is no candidate.

        Equal scores are ordered by passage row.

        Returns:
            ``(Q, k)``, padded where fewer passages share a word with the query.
        """
        found = CandidateList(
            np.full((len(queries), k), -1, dtype=np.int64),
            np.full((len(queries), k), -np.inf, dtype=np.float32),
        )
        known = _known_words(queries, self._vocabulary)
        for row, query in enumerate(track(known, "BM25", transient=True, disable=len(queries) == 1)):
            if query:
                best, scores = _best(self._scores(query), k)
                found.passages[row, : len(best)] = best
                found.scores[row, : len(best)] = scores
        return found

    def score(self, queries: Sequence[str], candidates: CandidateList) -> CandidateList:
        """The candidates ``(Q, K)`` with their BM25 scores, 0 where no word is shared."""
        scores = np.where(candidates.passages >= 0, 0.0, -np.inf).astype(np.float32)
        for row, query in enumerate(_known_words(queries, self._vocabulary)):
            there = candidates.passages[row] >= 0
            if query:
                scores[row, there] = self._scores(query)[candidates.passages[row, there]]
        return CandidateList(candidates.passages, scores)


def _known_words(queries: Sequence[str], vocabulary: dict[str, int]) -> list[list[int]]:
    words = bm25s.tokenize(queries, stopwords="en", return_ids=False, show_progress=False)
    return [[vocabulary[word] for word in query if word in vocabulary] for query in words]


def _bm25s(passages: Tokenized, k1: float, b: float) -> Callable[[list[int]], np.ndarray]:
    # In bm25s' usual float32, sums that should tie do not, and rank otherwise than rank_bm25's.
    index = bm25s.BM25(k1=k1, b=b, method="lucene", dtype="float64")
    index.index(passages, create_empty_token=False, show_progress=False)
    return index.get_scores_from_ids


def _rank_bm25(passages: Tokenized, k1: float, b: float) -> Callable[[list[int]], np.ndarray]:
    index = _LuceneIdf(passages.ids, k1=k1, b=b)
    return lambda query: index.get_scores(query) / (k1 + 1)  # Lucene leaves this constant out


class _LuceneIdf(BM25Okapi):
    """rank_bm25's own idf is negative for frequent words, and then replaced by a constant."""

    def _calc_idf(self, nd: dict[int, int]) -> None:
        n = self.corpus_size
        self.idf = {word: math.log(1 + (n - df + 0.5) / (df + 0.5)) for word, df in nd.items()}


def _best(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and values of the k greatest positive scores, best first, ties by row."""
    rows = np.flatnonzero(scores)
    # The two libraries add a query's words up in different ways: rounded, what ties in one ties in the other.
    values = scores[rows].round(9)
    if len(rows) > k:
        contenders = values >= np.partition(values, -k)[-k]
        rows, values = rows[contenders], values[contenders]
    order = np.argsort(-values, kind="stable")[:k]
    return rows[order], values[order]
