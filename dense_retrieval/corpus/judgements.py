"""Qrels files: BEIR's ``.tsv`` and mteb's ``.jsonl``."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from datasets import Dataset

from dense_retrieval.corpus.lines import json_objects, text_lines
from dense_retrieval.records import InputError, Qrels


def read(
    file: Path, queries: Dataset, passage_rows: Mapping[str, int], missing_passages: int = 0
) -> tuple[Dataset, Qrels]:
    """The queries that a qrels file names, with its judgements.

    Args:
        passage_rows: the row of each passage id.
        missing_passages: so many judged passages may be missing from the corpus. They get the rows
            -1, -2, ..., which nothing ever finds: trec_eval counts them against every system.

    Raises:
        InputError: a malformed line, an unknown query or passage, no judgement at all.
    """
    query_rows = {identifier: row for row, identifier in enumerate(queries["id"])}
    unknown: dict[str, dict[str, int]] = {"queries": {}, "corpus": {}}  # id -> its first line
    missing: dict[str, int] = {}
    triples = []
    for number, query, passage, relevance in _judgements(file):
        if query not in query_rows:
            unknown["queries"].setdefault(query, number)
            continue
        row = passage_rows.get(passage)
        if row is None:
            unknown["corpus"].setdefault(passage, number)
            row = missing.setdefault(passage, -1 - len(missing))
        triples.append((query_rows[query], row, relevance))
    for where, allowed in {"queries": 0, "corpus": missing_passages}.items():
        if len(unknown[where]) > allowed:
            identifier, number = next(iter(unknown[where].items()))
            raise InputError(
                f"{file}:{number}: the id {identifier!r} is not in {where}.jsonl "
                f"(such ids: {len(unknown[where])}); add them there or remove their lines here"
            )
    if not triples:
        raise InputError(f"{file}: has no judgement")
    rows, passages, relevances = np.array(triples, dtype=np.int64).T
    used, within = np.unique(rows, return_inverse=True)
    return queries.select(used), Qrels(within, passages, relevances)


def _judgements(file: Path) -> Iterator[tuple[int, str, str, int]]:
    """Line number, query id, passage id and relevance."""
    if file.suffix == ".jsonl":
        for number, record in json_objects(file):
            try:
                yield number, str(record["query-id"]), str(record["corpus-id"]), _whole(record["score"])
            except (KeyError, ValueError, TypeError, OverflowError) as error:
                raise InputError(
                    f"{file}:{number}: query-id, corpus-id and a whole score are needed"
                ) from error
        return
    for number, line in text_lines(file):
        fields = line.split("\t")
        if number == 1 and fields[-1] == "score":
            continue
        try:
            query, passage, score = fields
            yield number, query, passage, _whole(score)
        except (ValueError, OverflowError) as error:
            raise InputError(
                f"{file}:{number}: query-id, corpus-id and a whole score with tabs between are needed"
            ) from error


def _whole(score: str | float) -> int:
    """1 of ``1``, ``"1"`` and ``1.0``; ValueError of 0.5."""
    if float(score) != int(float(score)):
        raise ValueError(score)
    return int(float(score))
