"""Queries that somebody made before, from a JSON-lines file, also compressed (`.gz`, `.zst`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dense_retrieval.corpus.ids import Ids
from dense_retrieval.corpus.lines import json_objects
from dense_retrieval.records import RAW_QUERIES, Corpus, InputError, read_table, table, write_table
from dense_retrieval.stage import Counted, Counts, Folder, stage

if TYPE_CHECKING:
    from datasets import Dataset


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
            "generator=files: this corpus comes without synthetic queries: give generator.path=FILE with lines "
            '{"passage_id": ..., "querytype": ..., "text": ...}, let a language model write them, with '
            "generator=transformers, or train on its human queries, if it has some, with querytype=human"
        )
    if not Path(path).is_file():
        raise InputError(f"generator.path={path}: there is no such file")
    rows = Ids(passages)
    columns: dict[str, list] = {name: [] for name in RAW_QUERIES}
    for number, query in json_objects(Path(path)):
        for key in ("passage_id", "querytype", "text"):
            if not isinstance(query.get(key), str):
                raise InputError(f"{path}:{number}: the key {key!r} is missing or no string")
            try:
                query[key].encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"{path}:{number}: {key!r} is no valid Unicode ({error.reason}); repair it"
                ) from error
        passage, querytype = query["passage_id"], query["querytype"]
        row = rows.get(passage)
        if row is None:
            raise InputError(f"{path}:{number}: passage_id {passage!r} is not in the corpus")
        columns["id"].append(f"{passage}-{querytype}-{number}")
        columns["text"].append(query["text"])
        columns["querytype"].append(querytype)
        columns["source"].append(row)
        columns["finish"].append(str(query.get("finish", "stop")))
    return table(columns, RAW_QUERIES)


def load_raw(folder: Path) -> Dataset:
    """Queries as they were written."""
    return read_table(folder / "raw.arrow")


def _lines(corpus: Counted, file: Counted | None) -> dict[str, float]:
    if file is None or file.path is None:
        return {}
    with file.path.open("rb") as lines:
        return {"queries": sum(1 for line in lines if line.strip())}


@stage(load_raw, name="raw_queries", version=2, forecast=_lines)
def from_file(folder: Path, corpus: Folder[Corpus], file: Folder[Path] | None, /) -> Counts:
    """The queries that a file has."""
    raw = read(str(file.path) if file else None, corpus.load().passages)
    write_table(raw, folder / "raw.arrow")
    return {"queries": len(raw)}
