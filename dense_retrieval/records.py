"""What the files between stages hold.

Everywhere inside, passages and queries are integer rows of their tables; BEIR's string ids
exist only in the tables' ``id`` columns and in what leaves the program (run files, reports).

==================  ======================================================================
passages            Parquet: id, title, text (the id is BEIR's, the row is ours)
queries             Parquet: id, text, querytype, source (passage row, -1 if there is none)
raw queries         the same, not cleaned, with how the language model's answer ended: finish
qrels               :class:`Qrels`, one ``.npz``
corpus              :class:`Corpus`: passages, and queries and qrels of each split
candidates, scores  :class:`CandidateList`, one ``.npz``
groups              :class:`Groups`, one ``.npz``
==================  ======================================================================
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from datasets import Dataset, Features, Value


class InputError(ValueError):
    """Something the user gave is wrong; the message names it and the remedy, in one line."""


PASSAGES = Features({"id": Value("string"), "title": Value("string"), "text": Value("string")})
QUERIES = Features(
    {"id": Value("string"), "text": Value("string"), "querytype": Value("string"), "source": Value("int64")}
)
# As written: "finish" says whether the answer ended ("stop") or was cut ("length").
RAW_QUERIES = Features(QUERIES | {"finish": Value("string")})


def write_table(table: Dataset, path: Path) -> None:
    table.to_parquet(path)


def read_table(path: Path) -> Dataset:
    """Memory-mapped Arrow table of a Parquet file; converted once, beside it."""
    if not parquet.read_metadata(path).num_rows:  # datasets refuses it
        features = Features.from_arrow_schema(parquet.read_schema(path))
        return Dataset.from_dict({name: [] for name in features}, features)
    return Dataset.from_parquet(str(path), cache_dir=str(path.parent / ".arrow"))


class _Arrays:
    """A dataclass of numpy arrays, saved as one ``.npz``."""

    def save(self, path: Path) -> None:
        np.savez(path, **{f.name: getattr(self, f.name) for f in fields(self)})  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path):
        with np.load(path) as arrays:
            return cls(**{f.name: arrays[f.name] for f in fields(cls)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Qrels(_Arrays):
    """Relevance judgements, one entry a judged pair."""

    query: np.ndarray  # (J,) int64, query rows
    passage: np.ndarray  # (J,) int64, passage rows; negative = judged, but not in the corpus
    relevance: np.ndarray  # (J,) int64, graded; 0 = judged not relevant


@dataclass(frozen=True)
class Corpus:
    """A collection as the stages see it; in a folder: ``passages.parquet``, ``heldout.npy`` and,
    a split, ``queries-<split>.parquet`` with ``qrels-<split>.npz``."""

    passages: Dataset  # PASSAGES
    queries: dict[str, Dataset]  # split ("train", "dev", "test") -> QUERIES
    qrels: dict[str, Qrels]  # split -> judgements, rows of that split's queries
    heldout: np.ndarray  # (H,) int64, passage rows that no training query may come from

    def save(self, folder: Path) -> None:
        write_table(self.passages, folder / "passages.parquet")
        np.save(folder / "heldout.npy", self.heldout)
        for split, queries in self.queries.items():
            write_table(queries, folder / f"queries-{split}.parquet")
            self.qrels[split].save(folder / f"qrels-{split}.npz")

    @classmethod
    def load(cls, folder: Path) -> "Corpus":
        splits = sorted(p.stem.removeprefix("qrels-") for p in folder.glob("qrels-*.npz"))
        return cls(
            read_table(folder / "passages.parquet"),
            {s: read_table(folder / f"queries-{s}.parquet") for s in splits},
            {s: Qrels.load(folder / f"qrels-{s}.npz") for s in splits},
            np.load(folder / "heldout.npy"),
        )


@dataclass(frozen=True)
class CandidateList(_Arrays):
    """For each of Q queries its ranked passages, best first.

    Lists shorter than K are padded at the end: passage -1, score -inf.
    """

    passages: np.ndarray  # (Q, K) int64, passage rows
    scores: np.ndarray  # (Q, K) float32, retriever or teacher scores

    def ranked(self) -> "CandidateList":
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
