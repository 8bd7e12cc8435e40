"""The rows of ids, of tables of any size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from dense_retrieval.records import column

if TYPE_CHECKING:
    from datasets import Dataset


class Ids:
    """The rows of a table by the values of its column ``id``, in 16 bytes a row: a dict takes two hundred.

    The ids themselves stay on disk; what is in memory is their hashes, sorted.
    """

    def __init__(self, table: Dataset) -> None:
        self._ids = table.select_columns("id").with_format("arrow")[:]["id"]
        hashes = (hash(value) for values in column(table, "id") for value in values)
        found = np.fromiter(hashes, dtype=np.int64, count=len(table))
        self._rows = np.argsort(found, kind="stable")
        self._hashes = found[self._rows]

    def get(self, identifier: str) -> int | None:
        """Its row, the first one if it has several; None if it has none."""
        start = int(np.searchsorted(self._hashes, hash(identifier)))
        return next((row for row in self._alike(start) if self._ids[row].as_py() == identifier), None)

    def __contains__(self, identifier: str) -> bool:
        return self.get(identifier) is not None

    def repeated(self) -> tuple[int, int] | None:
        """The first row whose id has an earlier row, and that one; None if all differ."""
        starts = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        rows = sorted({row for start in starts for row in self._alike(int(start))})
        firsts: dict[str, int] = {}
        for row in rows:
            before = firsts.setdefault(self._ids[row].as_py(), row)
            if before != row:
                return row, before
        return None

    def _alike(self, start: int) -> Iterable[int]:
        """Rows, in order, from a place in the sorted hashes while the hash is the same."""
        for place in range(start, len(self._hashes)):
            if self._hashes[place] != self._hashes[start]:
                return
            yield int(self._rows[place])
