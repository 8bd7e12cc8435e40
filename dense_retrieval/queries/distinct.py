"""Queries that say what an earlier one says already."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dense_retrieval.queries.clean import load_queries
from dense_retrieval.queries.narrow import narrow
from dense_retrieval.stage import Counts, Folder, stage

if TYPE_CHECKING:
    from datasets import Dataset

NEAR_DUPLICATE = "near-duplicate"
_WORD = re.compile(r"\w+")
_ROUNDING = 1e-9


def content_words(text: str) -> frozenset[str]:
    """A query's different words, case, punctuation, and English stop words but for "no" and "not" aside; of a query of
    stop words alone these.

    >>> sorted(content_words("Is vitamin C not in the kale?"))
    ['c', 'kale', 'not', 'vitamin']
    """
    from bm25s.stopwords import STOPWORDS_EN

    words = frozenset(_WORD.findall(unicodedata.normalize("NFKC", text).casefold())) or frozenset([text])
    return words - set(STOPWORDS_EN) | words & {"no", "not"} or words


def near_duplicates(texts: Sequence[str], similarity: float) -> np.ndarray:
    """``(Q,)`` int64: of each text the first earlier one that it repeats and that repeats none itself; -1 if none.

    One text repeats another if their Jaccard similarity, the words that both have over the words that either has, is
    at least ``similarity``. The order of words does not count, and text without spaces between words repeats only
    what is equal to it.

    No pair is missed: two sets that are so similar share one of each one's ``(1 - similarity) n + 1`` rarest words
    (prefix filtering, Bayardo et al. 2007, https://doi.org/10.1145/1242572.1242591), by which they are looked up.
    """
    words = [content_words(text) for text in texts]
    frequency = Counter(word for of in words for word in of)
    having: dict[str, list[int]] = defaultdict(list)  # a rare word -> the texts that stay
    found = np.full(len(texts), -1)
    for row, of in enumerate(words):
        rarest = sorted(of, key=lambda word: (frequency[word], word))
        rarest = rarest[: len(of) - math.ceil(similarity * len(of) - _ROUNDING) + 1]
        near = sorted({earlier for word in rarest for earlier in having[word]})
        same = (e for e in near if len(of & words[e]) >= similarity * len(of | words[e]) - _ROUNDING)
        found[row] = next(same, -1)
        if found[row] < 0:
            for word in rarest:
                having[word].append(row)
    return found


@stage(load_queries, forecast=lambda queries, **_: {"queries": queries["queries"]})
def distinct_queries(
    folder: Path,
    queries: Folder[Dataset],
    untrained: Mapping[str, Folder[np.ndarray]],
    /,
    *,
    types: list[str],
    similarity: float,
) -> Counts:
    """The queries of some types that are no :func:`near_duplicates` of an earlier one, whichever passage it is for.

    Args:
        queries: cleaned.
        untrained: passage rows that none comes from: held-out passages and duplicates.
    """

    def why(rows: np.ndarray) -> list[str]:
        texts = queries.load().select(rows)["text"][:]
        return [NEAR_DUPLICATE if of >= 0 else "" for of in near_duplicates(texts, similarity)]

    return narrow(folder, queries, untrained, types, "distinct", why)
