"""The corpus's own training queries, written by people."""

import numpy as np
from datasets import Dataset

from dense_retrieval.records import QUERIES, Corpus, InputError


def from_train_split(corpus: Corpus) -> Dataset:
    """The training queries with a relevant passage; the first of the most relevant ones is the source.

    Raises:
        InputError: the corpus has no training split.
    """
    if "train" not in corpus.queries:
        raise InputError(
            "this corpus has no human training queries (qrels/train.tsv); let a language model write some, with "
            "querytype=mixed generator=transformers"
        )
    queries, qrels = corpus.queries["train"], corpus.qrels["train"]
    order = np.lexsort((qrels.passage, -qrels.relevance, qrels.query))
    # A negative row is a judged passage that the corpus lacks.
    order = order[(qrels.relevance[order] > 0) & (qrels.passage[order] >= 0)]
    rows, first = np.unique(qrels.query[order], return_index=True)
    table = queries.select(rows).to_dict()
    table |= {"querytype": ["human"] * len(rows), "source": qrels.passage[order[first]].tolist()}
    return Dataset.from_dict(table, QUERIES)
