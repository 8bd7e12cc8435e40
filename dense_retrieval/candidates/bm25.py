"""BM25 with Lucene's idf, by either of two libraries that rank alike."""

import json
import logging
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bm25s
import numpy as np
from bm25s.tokenization import Tokenized
from rank_bm25 import BM25Okapi
from rich.progress import track

from dense_retrieval.candidates import postings
from dense_retrieval.candidates.build import write_index
from dense_retrieval.progress import unwatched
from dense_retrieval.records import CandidateList, InputError

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it narrates

_QUERIES_AT_ONCE = 16  # of one thread
_BYTES = 2**30  # of all threads' scores
_RANK_BM25 = "rank_bm25.json"


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
        _require_library(library)
        words = bm25s.tokenize(passages, stopwords="en", show_progress=False)
        _require_words(len(words.vocab))
        self._index: _Bm25s | _RankBm25
        self._index = _Bm25s.of(words, k1, b) if library == "bm25s" else _RankBm25(words, k1, b)

    def save(self, folder: Path) -> None:
        """Write the index into a folder."""
        self._index.save(folder)

    @classmethod
    def write(
        cls, folder: Path, passages: Iterable[Sequence[str]], *, library: str, k1: float, b: float
    ) -> None:
        """What :meth:`save` writes, of passages that come some at a time; of bm25s only some are in memory."""
        _require_library(library)
        if library == "bm25s":
            _require_words(write_index(folder, passages, k1=k1, b=b))
        else:
            cls([text for part in passages for text in part], library=library, k1=k1, b=b).save(folder)

    @classmethod
    def load(cls, folder: Path) -> "BM25":
        """What :meth:`save` wrote; memory-mapped, if it is bm25s'."""
        found = cls.__new__(cls)
        found._index = (_RankBm25 if (folder / _RANK_BM25).exists() else _Bm25s).load(folder)
        return found

    def search(self, queries: Sequence[str], k: int) -> CandidateList:
        """The k best passages of each query; a passage that shares no word with it is no candidate.

        Equal scores are ordered by passage row.

        Returns:
            ``(Q, k)``, padded where fewer passages share a word with the query.
        """
        known = _known_words(queries, self._index.vocabulary)
        found = CandidateList(np.full((len(known), k), -1), np.full((len(known), k), -np.inf, np.float32))
        starts = range(0, len(known), _QUERIES_AT_ONCE)

        def search(start: int) -> None:
            part = slice(start, start + _QUERIES_AT_ONCE)
            found.passages[part], found.scores[part] = self._index.best(known[part], k)

        # The compiled loops free Python's lock. Each thread has an array (N,) of float64.
        threads = min(len(os.sched_getaffinity(0)), max(1, _BYTES // (8 * self._index.n)))
        with ThreadPoolExecutor(threads) as pool:
            done = pool.map(search, starts)
            for _ in track(
                done, "BM25", len(starts), transient=True, disable=len(starts) == 1 or unwatched()
            ):
                pass
        return found

    def score(self, queries: Sequence[str], candidates: CandidateList) -> CandidateList:
        """The candidates ``(Q, K)`` with their BM25 scores, 0 where no word is shared."""
        scores = np.where(candidates.passages >= 0, 0.0, -np.inf).astype(np.float32)
        for row, query in enumerate(_known_words(queries, self._index.vocabulary)):
            there = candidates.passages[row] >= 0
            if query:
                scores[row, there] = self._index.scores(query)[candidates.passages[row, there]]
        return CandidateList(candidates.passages, scores)


def _require_library(library: str) -> None:
    if library not in ("bm25s", "rank_bm25"):
        raise InputError(f"retriever.library={library!r} is unknown; use bm25s or rank_bm25")


def _require_words(n: int) -> None:
    if not n:
        raise InputError(
            "no passage has a word that BM25 could find: every text is empty or of stop words only"
        )


def _known_words(queries: Sequence[str], vocabulary: dict[str, int]) -> list[list[int]]:
    words = bm25s.tokenize(queries, stopwords="en", return_ids=False, show_progress=False)
    return [[vocabulary[word] for word in query if word in vocabulary] for query in words]


class _Bm25s:
    """bm25s' matrix, read by compiled loops of our own: its own retrieval orders ties in no way."""

    def __init__(self, index: bm25s.BM25) -> None:
        self._index = index
        self.vocabulary: dict[str, int] = index.vocab_dict
        self._matrix = postings.matrix(**index.scores)
        self.n: int = self._matrix[-1]

    @classmethod
    def of(cls, passages: Tokenized, k1: float, b: float) -> "_Bm25s":
        # In bm25s' usual float32, sums that should tie do not, and rank otherwise than rank_bm25's.
        index = bm25s.BM25(k1=k1, b=b, method="lucene", dtype="float64")
        index.index(passages, create_empty_token=False, show_progress=False)
        return cls(index)

    def save(self, folder: Path) -> None:
        self._index.save(folder, show_progress=False)

    @classmethod
    def load(cls, folder: Path) -> "_Bm25s":
        return cls(bm25s.BM25.load(folder, mmap=True, show_progress=False))

    def scores(self, query: list[int]) -> np.ndarray:
        """``(N,)``"""
        return postings.scores(np.array(query, dtype=np.int64), *self._matrix)

    def best(self, queries: list[list[int]], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and scores, both ``(Q, k)``, best first."""
        ends = np.cumsum([0, *map(len, queries)])
        words = np.concatenate([np.array(query, dtype=np.int64) for query in queries])
        return postings.ranked(*postings.best(words, ends, k, *self._matrix))


class _RankBm25:
    """rank_bm25 keeps no index: this one keeps the passages' words."""

    def __init__(self, passages: Tokenized, k1: float, b: float) -> None:
        self._made_from = {"ids": passages.ids, "vocab": passages.vocab, "k1": k1, "b": b}
        self.vocabulary: dict[str, int] = passages.vocab
        self._index = _LuceneIdf(passages.ids, k1=k1, b=b)
        self.n = len(passages.ids)

    def save(self, folder: Path) -> None:
        (folder / _RANK_BM25).write_text(json.dumps(self._made_from))

    @classmethod
    def load(cls, folder: Path) -> "_RankBm25":
        kept = json.loads((folder / _RANK_BM25).read_text())
        return cls(Tokenized(kept["ids"], kept["vocab"]), kept["k1"], kept["b"])

    def scores(self, query: list[int]) -> np.ndarray:
        """``(N,)``"""
        return self._index.get_scores(query) / (self._index.k1 + 1)  # Lucene leaves this constant out

    def best(self, queries: list[list[int]], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and scores, both ``(Q, k)``, best first."""
        rows, scores = np.full((len(queries), k), -1, dtype=np.int64), np.full((len(queries), k), -np.inf)
        for number, query in enumerate(queries):
            postings.take_best(self.scores(query), rows[number], scores[number])
        return postings.ranked(rows, scores)


class _LuceneIdf(BM25Okapi):
    """rank_bm25's own idf is negative for frequent words, and then replaced by a constant."""

    def _calc_idf(self, nd: dict[int, int]) -> None:
        n = self.corpus_size
        self.idf = {word: math.log(1 + (n - df + 0.5) / (df + 0.5)) for word, df in nd.items()}
