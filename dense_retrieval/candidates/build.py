"""bm25s' index of a corpus of any size, made part by part: the same files as bm25s makes of all words at once."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import bm25s
import numpy as np
from scipy.sparse import csc_matrix

_POSTINGS_AT_ONCE = 16_000_000  # in memory, at about 40 bytes each
_READ_AT_ONCE = 4_000_000


class _Postings:
    """The words of passages, in the passages' order: how often each stands in each, on disk.

    Attributes:
        vocabulary: word -> number, in the order of their first occurrence.
        different, lengths: ``(N,)`` int32, of each passage the different words, and all.
    """

    def __init__(self, folder: Path, texts: Iterable[Sequence[str]]) -> None:
        self.vocabulary: dict[str, int] = {}
        self._words, self._times = folder / "words.tmp", folder / "times.tmp"
        with self._words.open("wb") as words, self._times.open("wb") as times:
            sizes = [self._add(part, words, times) for part in texts]
        self.different, self.lengths = np.concatenate([np.zeros((2, 0), dtype=np.int32), *sizes], 1)

    def _add(self, texts: Sequence[str], words, times) -> np.ndarray:
        """``(2, n)``"""
        found = bm25s.tokenize(texts, stopwords="en", show_progress=False)
        numbers = [self.vocabulary.setdefault(word, len(self.vocabulary)) for word in found.vocab]
        number_of = np.array(numbers, dtype=np.int64)
        lengths = np.array([len(ids) for ids in found.ids], dtype=np.int64)
        of_all = np.concatenate(
            [np.zeros(0, dtype=np.int64), *(np.array(ids, np.int64) for ids in found.ids)]
        )
        # Passage and word as one number, which sorts by passage.
        keys = np.repeat(np.arange(len(texts)), lengths) * max(1, len(number_of)) + of_all
        pairs, n = np.unique(keys, return_counts=True)
        passage, word = np.divmod(pairs, max(1, len(number_of)))
        number_of[word].astype(np.int32).tofile(words)
        n.astype(np.int32).tofile(times)
        return np.stack([np.bincount(passage, minlength=len(texts)), lengths]).astype(np.int32)

    def parts(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Passage rows, words and times, all ``(P,)``, of some passages after the other."""
        ends = np.concatenate([[0], np.cumsum(self.different, dtype=np.int64)])
        if not ends[-1]:
            return
        words, times = (np.memmap(file, dtype=np.int32, mode="r") for file in (self._words, self._times))
        first = 0
        while first < len(self.different):
            last = max(first + 1, int(np.searchsorted(ends, ends[first] + _READ_AT_ONCE, "right")) - 1)
            rows = np.repeat(np.arange(first, last, dtype=np.int32), self.different[first:last])
            yield rows, words[ends[first] : ends[last]], times[ends[first] : ends[last]]
            first = last

    def remove(self) -> None:
        self._words.unlink()
        self._times.unlink()


def write_index(folder: Path, texts: Iterable[Sequence[str]], *, k1: float, b: float) -> int:
    """Write the index that ``bm25s.BM25(method="lucene", dtype="float64")`` makes and saves.

    Memory: about 1 GB, the vocabulary, and 8 bytes a passage. Of each passage every different word takes 12 bytes
    on disk, and 8 more until the index is written.

    Args:
        texts: the passages, some at a time.

    Returns:
        How many words there are; of none nothing is written.
    """
    postings = _Postings(folder, texts)
    vocabulary, n = postings.vocabulary, len(postings.lengths)
    if vocabulary:
        frequency = np.zeros(len(vocabulary), dtype=np.int64)
        for _, words, _ in postings.parts():
            frequency += np.bincount(words, minlength=len(frequency))
        index = bm25s.BM25(k1=k1, b=b, method="lucene", dtype="float64")
        nothing = np.zeros(0)
        index.scores = {"data": nothing, "indices": nothing, "indptr": nothing, "num_docs": n}
        index.vocab_dict, index.nonoccurrence_array = vocabulary, None
        index.save(folder, show_progress=False)  # all but the arrays
        _write_matrix(folder, postings, frequency, k1, b)
    postings.remove()
    return len(vocabulary)


def _write_matrix(folder: Path, postings: _Postings, frequency: np.ndarray, k1: float, b: float) -> None:
    """By word, and of each word by passage; some words at a time."""
    n = len(postings.lengths)
    ends = np.concatenate([[0], np.cumsum(frequency)])
    # As bm25s computes them, operation by operation, so that no last digit differs.
    idf = np.array([math.log(1 + (n - df + 0.5) / (df + 0.5)) for df in frequency.tolist()])
    norm = k1 * ((1 - b) + b * postings.lengths / postings.lengths.mean())
    np.save(folder / "indptr.csc.index.npy", ends)
    with (
        (folder / "data.csc.index.npy").open("wb") as data,
        (folder / "indices.csc.index.npy").open("wb") as indices,
    ):
        for stream, kind in ((data, np.float64), (indices, np.int32)):
            header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": (int(ends[-1]),)}
            np.lib.format.write_array_header_1_0(stream, header)
        first = 0
        while first < len(frequency):
            last = max(first + 1, int(np.searchsorted(ends, ends[first] + _POSTINGS_AT_ONCE, "right")) - 1)
            rows, words, scores = [], [], []
            for row, word, times in postings.parts():
                chosen = (word >= first) & (word < last)
                row, word, times = row[chosen], word[chosen], times[chosen].astype(np.float64)
                rows.append(row)
                words.append(word - first)
                scores.append(idf[word] * (times / (norm[row] + times)))
            joined = [np.concatenate(parts) for parts in (scores, rows, words)]
            del rows, words, scores
            found = csc_matrix((joined[0], (joined[1], joined[2])), shape=(n, last - first))
            found.data.tofile(data)
            found.indices.astype(np.int32, copy=False).tofile(indices)
            first = last
