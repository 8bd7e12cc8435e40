"""Vectors as an index may keep them, cut to their first components or in fewer bits, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from dense_retrieval.candidates.dense import in_parts
from dense_retrieval.evaluation import table
from dense_retrieval.records import InputError

KINDS = {"float32": 32, "float16": 16, "int8": 8, "binary": 1}  # bits a component


@dataclass(frozen=True)
class Vectors:
    """How passages are kept; queries are float32 always, of as many components.

    - ``float32``, ``float16``
    - ``int8``: FAISS's ``QT_8bit``, in each component 256 steps from the passages' least value to their greatest
    - ``binary``: the signs; what a query is compared with is 1 and -1

    Attributes:
        dimension: None is the whole embedding's.
    """

    dimension: int | None = None
    kind: str = "float32"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"evaluation.vectors: {self.kind!r} is unknown; use {', '.join(KINDS)}")

    def size(self, full: int) -> int:
        """Bytes a passage, where the whole embeddings have ``full`` components."""
        return -(-(self.dimension or full) * KINDS[self.kind] // 8)

    def named(self, full: int) -> str:
        """``128 int8``"""
        return f"{self.dimension or full} {self.kind}"


WHOLE = Vectors()


def all_vectors(dimensions: Sequence[int], kinds: Sequence[str], full: int) -> list[Vectors]:
    """Whole float32 embeddings, then each kind of each dimension; no kinds are float32, no dimensions the whole one.

    >>> all_vectors([4, 2], ["float32", "binary"], 4)[1:]
    [Vectors(dimension=None, kind='binary'), Vectors(dimension=2, kind='float32'), Vectors(dimension=2, kind='binary')]
    """
    cuts = [None if dimension == full else dimension for dimension in dimensions or [full]]
    return list(
        dict.fromkeys([WHOLE, *(Vectors(cut, kind) for cut in cuts for kind in kinds or ["float32"])])
    )


def cut(embeddings: np.ndarray, dimension: int | None) -> np.ndarray:
    """The first components of embeddings ``(N, D)``, scaled to length 1 again: ``(N, dimension)`` float32."""
    whole = embeddings.astype(np.float32, copy=False)
    if dimension in (None, embeddings.shape[1]):
        return whole
    part = whole[:, :dimension]
    return part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), np.float32(1e-12))


@dataclass(frozen=True)
class Kept:
    """What search finds in an index of such vectors: embeddings ``(n, D)`` -> ``(n, dimension)`` float32.

    Args:
        ranges: ``(2, dimension)`` the least and greatest value in each component, of int8.
    """

    vectors: Vectors
    ranges: np.ndarray | None

    @classmethod
    def of(cls, vectors: Vectors, passages: np.ndarray) -> Kept:
        """For passages ``(N, D)``, which are read once if their ranges are needed."""
        if vectors.kind != "int8":
            return cls(vectors, None)
        parts = (cut(part, vectors.dimension) for _, part in in_parts(passages))
        least, greatest = zip(*((part.min(0), part.max(0)) for part in parts), strict=True)
        return cls(vectors, np.stack([np.min(least, axis=0), np.max(greatest, axis=0)]))

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        part = cut(embeddings, self.vectors.dimension)
        if self.vectors.kind == "float16":
            return part.astype(np.float16).astype(np.float32)
        if self.vectors.kind == "binary":
            return np.where(part > 0, np.float32(1), np.float32(-1))
        if self.ranges is None:
            return part
        import faiss

        quantizer: Any = faiss.ScalarQuantizer(part.shape[1], faiss.ScalarQuantizer.QT_8bit)
        quantizer.train(self.ranges)
        return quantizer.decode(quantizer.compute_codes(np.ascontiguousarray(part)))


@dataclass(frozen=True)
class VectorsRow:
    """What a student's vectors are worth, compared with its whole float32 embeddings."""

    student: str
    dimension: int
    kind: str
    bytes: int  # a passage
    row: table.SystemRow

    def as_json(self) -> dict[str, Any]:
        """Without what repeats."""
        return {key: value for key, value in asdict(self).items() if key != "row"} | {
            key: value for key, value in asdict(self.row).items() if key != "system"
        }


def rows(student: str, full: int, values: Mapping[Vectors, Mapping[str, np.ndarray]]) -> list[VectorsRow]:
    """A row for each kind of vectors, whole float32 embeddings first; of each its metrics ``(Q,)``.

    Args:
        full: components of a whole embedding.
    """
    named = {vectors.named(full): dict(of) for vectors, of in values.items()}
    compared = table.rows(named, WHOLE.named(full))
    return [
        VectorsRow(student, vectors.dimension or full, vectors.kind, vectors.size(full), row)
        for vectors, row in zip(values, compared, strict=True)
    ]


def cells(found: Sequence[VectorsRow]) -> list[list[str]]:
    """A header and a line a row."""
    header, *lines = table.cells([row.row for row in found])
    columns = [[row.student, line[0], f"{row.bytes:,}"] for row, line in zip(found, lines, strict=True)]
    body = [[*first, *line[2:]] for first, line in zip(columns, lines, strict=True)]
    return [["system", "vectors", "bytes a passage", *header[2:]], *body]


def markdown(found: Sequence[VectorsRow]) -> str:
    header, *body = cells(found)
    rule = ["---", "---", "---:", *["---"] * (len(header) - 3)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *body)) + "\n"


def terminal(found: Sequence[VectorsRow], title: str) -> Table:
    shown = Table(
        title=f"{title} smaller vectors".strip(),
        caption="differences and p-values (paired t-test) to the same student's whole float32 vectors",
    )
    header, *body = cells(found)
    for number, name in enumerate(header):
        shown.add_column(name, justify="right" if number == 2 else "left")
    for line in body:
        shown.add_row(*line)
    return shown
