"""Qrels files: BEIR's ``.tsv``, mteb's ``.jsonl``, and Parquet; in the latter two a judgement without a grade has 1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dense_retrieval.corpus.ids import Ids
from dense_retrieval.corpus.lines import json_objects, text_lines
from dense_retrieval.records import InputError, Qrels

if TYPE_CHECKING:
    from datasets import Dataset

MAX_GRADE = 1000  # trec_eval's memory grows with the largest, and near 2^31 all its metrics become 0


def read(
    file: Path, queries: Dataset, query_rows: Ids, passage_rows: Ids, missing_passages: int = 0
) -> tuple[Dataset, Qrels]:
    """The queries that a qrels file names, with its judgements, each pair's once.

    Grades below 0, TREC's for spam, become 0: judged, not relevant. trec_eval does not survive them.

    Args:
        query_rows, passage_rows: the row of each id.
        missing_passages: so many judged passages may be missing from the corpus. They get the rows
            -1, -2, ..., which nothing ever finds: trec_eval counts them against every system.

    Raises:
        InputError: a malformed line, an unknown query or passage, two grades of a pair, one above 1000, no
            judgement at all, or none above 0.
    """
    unknown: dict[str, dict[str, int]] = {"queries": {}, "corpus": {}}  # id -> its first line
    missing: dict[str, int] = {}
    triples = []
    for number, query, passage, grade in _once(file):
        query_row = query_rows.get(query)
        if query_row is None:
            unknown["queries"].setdefault(query, number)
            continue
        row = passage_rows.get(passage)
        if row is None:
            unknown["corpus"].setdefault(passage, number)
            row = missing.setdefault(passage, -1 - len(missing))
        triples.append((query_row, row, grade))
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
    if not relevances.any():
        raise InputError(f"{file}: no grade is above 0, so nothing is relevant; is another file meant?")
    used, within = np.unique(rows, return_inverse=True)
    return queries.select(used), Qrels(within, passages, relevances)


def _once(file: Path) -> Iterator[tuple[int, str, str, int]]:
    """The judgements, each pair's first; grades below 0 as 0."""
    judged: dict[tuple[str, str], tuple[int, int]] = {}  # pair -> its grade and line
    for number, query, passage, grade in _judgements(file):
        if grade > MAX_GRADE:
            raise InputError(
                f"{file}:{number}: the grade {grade:.9g} is above {MAX_GRADE}; rescale the grades"
            )
        grade = max(grade, 0)
        before, line = judged.setdefault((query, passage), (grade, number))
        if before != grade:
            raise InputError(
                f"{file}:{number}: the grade of query {query!r} and passage {passage!r} is {grade}, in line "
                f"{line} it is {before}; remove one of the lines"
            )
        if line == number:
            yield number, query, passage, grade


def _judgements(file: Path) -> Iterator[tuple[int, str, str, int]]:
    """Line number, query id, passage id and relevance."""
    if file.suffix != ".tsv":
        for number, record in json_objects(file):
            try:
                yield (
                    number,
                    str(record["query-id"]),
                    str(record["corpus-id"]),
                    _whole(record.get("score", 1)),
                )
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
