"""The corpus's own training queries, written by people."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from dense_retrieval.records import QUERIES, Corpus, InputError, table

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)


def from_train_split(corpus: Corpus) -> Dataset:
    """The training queries with a relevant passage; the first of the most relevant ones is the source.

    Those whose text is also a test query's, case and white space aside, are left out.

    Raises:
        InputError: the corpus has no training split.
    """
    if "train" not in corpus.queries:
        raise InputError(
            "this corpus has no human training queries (qrels/train.tsv, unless data.test_split=train tests on "
            "them); let a language model write some, with querytype=mixed generator=transformers"
        )
    queries, qrels = corpus.queries["train"], corpus.qrels["train"]
    order = np.lexsort((qrels.passage, -qrels.relevance, qrels.query))
    # A negative row is a judged passage that the corpus lacks.
    order = order[(qrels.relevance[order] > 0) & (qrels.passage[order] >= 0)]
    rows, first = np.unique(qrels.query[order], return_index=True)
    tested = {_folded(text) for text in corpus.queries["test"]["text"]} if "test" in corpus.queries else set()
    new = np.array([_folded(text) not in tested for text in queries.select(rows)["text"]], dtype=bool)
    if not new.all():
        log.info("%d human training queries are test queries too: left out", (~new).sum())
    rows, first = rows[new], first[new]
    columns = queries.select(rows).to_dict()
    columns |= {"querytype": ["human"] * len(rows), "source": qrels.passage[order[first]].tolist()}
    return table(columns, QUERIES)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def relevant(corpus: Corpus, queries: Dataset) -> np.ndarray:
    """``(J, 2)`` rows (query, passage): what people judged relevant for the human ones among some queries."""
    row_of = {
        id: row
        for row, (id, kind) in enumerate(zip(queries["id"], queries["querytype"], strict=True))
        if kind == "human"
    }
    if not row_of:
        return np.zeros((0, 2), dtype=np.int64)
    qrels = corpus.qrels["train"]
    rows = np.array([row_of.get(id, -1) for id in corpus.queries["train"]["id"]], dtype=np.int64)
    there = (qrels.relevance > 0) & (qrels.passage >= 0) & (rows[qrels.query] >= 0)
    return np.stack([rows[qrels.query[there]], qrels.passage[there]], 1)
