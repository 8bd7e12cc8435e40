"""Queries that somebody made before, from a JSON-lines file."""

import json
from pathlib import Path

from datasets import Dataset

from dense_retrieval.records import QUERIES, InputError


def read(path: str | None, passages: Dataset) -> Dataset:
    """Queries with their source passages and types.

    Args:
        path: a file of lines ``{"passage_id": …, "querytype": …, "text": …}``; other keys are ignored.
        passages: the corpus, whose ``id`` column the passage ids are looked up in.

    Raises:
        InputError: no such file, broken JSON, a missing key, an unknown passage; with its line.
    """
    if path is None:
        raise InputError(
            "this corpus comes without synthetic queries: give generator.path=FILE with lines "
            '{"passage_id": ..., "querytype": ..., "text": ...}, or train on its human queries with querytype=human'
        )
    if not Path(path).is_file():
        raise InputError(f"generator.path={path}: there is no such file")
    row_of = {passage: row for row, passage in enumerate(passages["id"])}
    columns: dict[str, list] = {name: [] for name in QUERIES}
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                query = json.loads(line)
                passage, querytype, text = query["passage_id"], query["querytype"], query["text"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise InputError(
                    f"{path}:{number}: not a JSON object with passage_id, querytype and text "
                    f"({type(error).__name__}: {error})"
                ) from error
            if passage not in row_of:
                raise InputError(f"{path}:{number}: passage_id {passage!r} is not in the corpus")
            columns["id"].append(f"{passage}-{querytype}-{number}")
            columns["text"].append(text)
            columns["querytype"].append(querytype)
            columns["source"].append(row_of[passage])
    return Dataset.from_dict(columns, QUERIES)
