"""Compiled loops over an index's postings: scores, and the best of them with ties in order.

A matrix is ``data (Z,)`` and ``indices (Z,)``, the scores and passage rows of each word's postings, ``indptr (V + 1,)``
where each word's begin, and ``n`` passages.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

_BLOCK = 64  # passages that are looked at one by one only if one of them is good enough


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled when first called, which takes some seconds once: it is kept, where there is a place to write to."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither beside this file nor in the user's cache
        return njit(nogil=True)(function)


def matrix(
    data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, num_docs: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """bm25s' matrix as the functions here take it, memory-mapped or not.

    Unsigned rows spare each of them the question whether it counts from the end; read-only, both kinds
    of arrays have one type, for which loops are compiled once.
    """
    views = np.asarray(data)[:], np.asarray(indices).view(np.uint32), np.asarray(indptr, dtype=np.int64)[:]
    for view in views:
        view.flags.writeable = False
    return *views, num_docs


@compiled
def _add_up(total, words, data, indices, indptr):
    """Add the scores of some words, in their order, to ``total (N,)``."""
    for word in words:
        rows, values = indices[indptr[word] : indptr[word + 1]], data[indptr[word] : indptr[word + 1]]
        for i in range(len(rows)):
            total[rows[i]] += values[i]


@compiled
def scores(words, data, indices, indptr, n):
    """``(N,)`` scores of the query that has these words."""
    total = np.zeros(n)
    _add_up(total, words, data, indices, indptr)
    return total


@compiled
def _keep(k, rows, values):
    """Move the k best to the front, in the order in which they stand; of equals those that stand first."""
    least = np.partition(values, len(values) - k)[len(values) - k]
    equals = k - (values > least).sum()
    kept = 0
    for i in range(len(values)):
        if values[i] > least or (values[i] == least and equals > 0):
            equals -= values[i] == least
            rows[kept], values[kept] = rows[i], values[i]
            kept += 1
    return least


@compiled
def take_best(total, best_rows, best_values):
    """Rows and values of the k greatest positive scores, ties by row, into the beginning of ``(k,)`` arrays, by row.

    The two libraries add a query's words up in different ways: rounded, what ties in one ties in the other.
    ``total (N,)`` is set to 0.
    """
    k = len(best_rows)
    rows, values = np.empty(2 * k + _BLOCK, dtype=np.int64), np.empty(2 * k + _BLOCK)
    n, least = 0, 0.0
    for first in range(0, len(total), _BLOCK):
        block = total[first : first + _BLOCK]
        better = 0
        for i in range(len(block)):  # as one machine instruction for several
            better += block[i] > least
        if better:
            for i in range(len(block)):
                if block[i] > least:
                    rows[n], values[n] = first + i, np.rint(block[i] * 1e9) / 1e9
                    n += 1
            if n >= 2 * k:
                least = max(0.0, _keep(k, rows[:n], values[:n]) - 1e-9)  # before it is rounded
                n = k
        block[:] = 0.0
    if n > k:
        _keep(k, rows[:n], values[:n])
        n = k
    best_rows[:n], best_values[:n] = rows[:n], values[:n]


@compiled
def best(words, ends, k, data, indices, indptr, n):
    """As :func:`take_best`, of Q queries: ``(Q, k)`` rows, -1 where there are none, and scores, -inf there.

    Args:
        words: of all queries.
        ends: ``(Q + 1,)`` where each query's words begin.
    """
    rows, values = np.full((len(ends) - 1, k), -1), np.full((len(ends) - 1, k), -np.inf)
    total = np.zeros(n)
    for query in range(len(rows)):
        _add_up(total, words[ends[query] : ends[query + 1]], data, indices, indptr)
        take_best(total, rows[query], values[query])
    return rows, values


def ranked(rows: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each line of ``(Q, k)``, best first; ties keep their order."""
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(rows, order, 1), np.take_along_axis(values, order, 1)
