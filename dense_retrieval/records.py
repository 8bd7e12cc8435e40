"""What the files between stages hold.

Everywhere inside, passages and queries are integer rows of their tables; BEIR's string ids
exist only in the tables' ``id`` columns and in what leaves the program (run files, reports).

==================  ======================================================================
passages            Arrow: id, title, text (the id is BEIR's, the row is ours)
queries             Arrow: id, text, querytype, source (passage row, -1 if there is none)
raw queries         the same, not cleaned, with how the language model's answer ended: finish
qrels               :class:`Qrels`, one ``.npz``
corpus              :class:`Corpus`: passages, and queries and qrels of each split
test queries        :class:`TestSet`: queries with their qrels
asked passages      :class:`Asked`, one ``.npz``
candidates, scores  :class:`CandidateList`, one ``.npz``
groups              :class:`Groups`, one ``.npz``
==================  ======================================================================
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset, Features

os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


class InputError(ValueError):
    """Something the user gave is wrong; the message names it and the remedy, in one line."""


# Columns of the tables, by name the type.
PASSAGES = {"id": "string", "title": "string", "text": "string"}
QUERIES = {"id": "string", "text": "string", "querytype": "string", "source": "int64"}
# As written: "finish" says whether the answer ended ("stop") or was cut ("length").
RAW_QUERIES = QUERIES | {"finish": "string"}


def features(kinds: Mapping[str, str]) -> Features:
    """Column types such as :data:`QUERIES`, as datasets wants them."""
    from datasets import Features, Value

    return Features({name: Value(kind) for name, kind in kinds.items()})


def table(columns: Mapping[str, Sequence[Any]], kinds: Mapping[str, str]) -> Dataset:
    """A table in memory; ``kinds`` are the types of its columns, such as :data:`QUERIES`."""
    from datasets import Dataset

    return Dataset.from_dict(dict(columns), features(kinds))


def write_table(table: Dataset, path: Path) -> None:
    """An Arrow stream, which is read memory-mapped and without a copy of it."""
    import pyarrow

    with (
        pyarrow.OSFile(str(path), "wb") as sink,
        pyarrow.ipc.new_stream(sink, table.features.arrow_schema) as out,
    ):
        for batch in table.with_format("arrow").iter(10_000):
            out.write_table(batch.combine_chunks())  # rows in another order come as a batch each


def write_rows(rows: Iterable[Mapping[str, Any]], kinds: Mapping[str, str], path: Path) -> None:
    """What :func:`write_table` writes of rows that come one by one."""
    import pyarrow

    schema, left = features(kinds).arrow_schema, iter(rows)
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as out:
        while some := list(islice(left, 10_000)):
            out.write_batch(pyarrow.RecordBatch.from_pylist(some, schema))


def column(table: Dataset, name: str) -> Iterator[list[Any]]:
    """The values of a column, 10,000 at a time: all together they might not fit in memory."""
    for batch in table.select_columns(name).with_format("arrow").iter(10_000):
        yield batch[name].to_pylist()


def read_table(path: Path) -> Dataset:
    """A memory-mapped table."""
    from datasets import Dataset

    return Dataset.from_file(str(path))


class Column(Sequence[Any]):
    """One column of a table on disk, memory-mapped.

    It is read by pyarrow alone, which is imported sooner than datasets.
    """

    def __init__(self, path: Path, name: str) -> None:
        import pyarrow

        with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as stream:
            self._values = stream.read_all()[name]

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return (value for chunk in self._values.chunks for value in chunk.to_pylist())

    def __getitem__(self, index: Any) -> Any:
        found = self._values[index]
        return found.to_pylist() if isinstance(index, slice) else found.as_py()


class _Arrays:
    """A dataclass of numpy arrays, saved as one ``.npz``."""

    def save(self, path: Path) -> None:
        np.savez(path, **{f.name: getattr(self, f.name) for f in fields(self)})  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path):
        """Raises KeyError where an array is missing that has no default."""
        with np.load(path) as arrays:
            optional = {f.name for f in fields(cls) if f.default_factory is not MISSING}  # type: ignore[arg-type]
            there = [f.name for f in fields(cls) if f.name in arrays or f.name not in optional]  # type: ignore[arg-type]
            return cls(**{name: arrays[name] for name in there})


@dataclass(frozen=True)
class Qrels(_Arrays):
    """Relevance judgements, one entry a judged pair."""

    query: np.ndarray  # (J,) int64, query rows
    passage: np.ndarray  # (J,) int64, passage rows; negative = judged, but not in the corpus
    relevance: np.ndarray  # (J,) int64, graded; 0 = judged not relevant


@dataclass(frozen=True)
class Corpus:
    """A collection as the stages see it; in a folder: ``passages.arrow``, ``heldout.npy`` and,
    a split, ``queries-<split>.arrow`` with ``qrels-<split>.npz``."""

    passages: Dataset  # PASSAGES
    queries: dict[str, Dataset]  # split ("train", "dev", "test") -> QUERIES
    qrels: dict[str, Qrels]  # split -> judgements, rows of that split's queries
    heldout: np.ndarray  # (H,) int64, passage rows that the data itself holds out; empty = drawn later

    def save(self, folder: Path) -> None:
        write_table(self.passages, folder / "passages.arrow")
        np.save(folder / "heldout.npy", self.heldout)
        for split, queries in self.queries.items():
            write_table(queries, folder / f"queries-{split}.arrow")
            self.qrels[split].save(folder / f"qrels-{split}.npz")

    @classmethod
    def load(cls, folder: Path) -> Corpus:
        splits = sorted(p.stem.removeprefix("qrels-") for p in folder.glob("qrels-*.npz"))
        return cls(
            read_table(folder / "passages.arrow"),
            {s: read_table(folder / f"queries-{s}.arrow") for s in splits},
            {s: Qrels.load(folder / f"qrels-{s}.npz") for s in splits},
            np.load(folder / "heldout.npy"),
        )


@dataclass(frozen=True)
class TestSet:
    """Queries to test on; in a folder ``queries.arrow`` and ``qrels.npz``."""

    __test__ = False  # for pytest

    queries: Dataset  # QUERIES
    qrels: Qrels

    def save(self, folder: Path) -> None:
        write_table(self.queries, folder / "queries.arrow")
        self.qrels.save(folder / "qrels.npz")

    @classmethod
    def load(cls, folder: Path) -> TestSet:
        return cls(read_table(folder / "queries.arrow"), Qrels.load(folder / "qrels.npz"))

    @classmethod
    def of_sources(cls, queries: Dataset) -> TestSet:
        """Synthetic queries, each of which is to find the passage that it was made from."""
        rows = np.arange(len(queries))
        source = np.array(queries["source"], dtype=np.int64)
        return cls(queries, Qrels(rows, source, np.ones_like(rows)))


@dataclass(frozen=True)
class Asked(_Arrays):
    """Passages that a budget of queries is spent on."""

    rows: np.ndarray  # (A,) int64
    queries: np.ndarray  # (A,) int64, that each has
    left: np.ndarray  # () int64, passages that could be asked and are not


@dataclass(frozen=True)
class CandidateList(_Arrays):
    """For each of Q queries its ranked passages, best first.

    Lists shorter than K are padded at the end: passage -1, score -inf.
    """

    passages: np.ndarray  # (Q, K) int64, passage rows
    scores: np.ndarray  # (Q, K) float32, retriever or teacher scores

    def ranked(self) -> CandidateList:
        """The same lists sorted by score, best first; ties keep their order."""
        order = np.argsort(-self.scores, axis=1, kind="stable")
        return CandidateList(
            np.take_along_axis(self.passages, order, 1), np.take_along_axis(self.scores, order, 1)
        )


@dataclass(frozen=True)
class Groups(_Arrays):
    """G training examples: a query with K candidate passages, the teacher's best first."""

    query: np.ndarray  # (G,) int64, rows of the training queries
    passages: np.ndarray  # (G, K) int64, passage rows, -1 = padding
    teacher: np.ndarray  # (G, K) float32 in 0..1, -inf at padding; NaN = scored as it is trained on
    source: np.ndarray  # (G,) int64, row of the passage that the query was made from
    dev: np.ndarray  # (G,) bool, True = development set
    # (J, 2) int64, (query row, passage row) pairs judged relevant: no negatives of each other
    relevant: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
