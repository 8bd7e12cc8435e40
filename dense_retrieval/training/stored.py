"""Embeddings of passages that are not learnt, as they were stored."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dense_retrieval.student.encode import load_embeddings


@dataclass(frozen=True)
class StoredEmbeddings:
    """The passages' embeddings of one corpus, or of several whose rows are counted through.

    Only paths are kept: another process that is handed this maps the same files.

    Args:
        folders: of :func:`~dense_retrieval.student.encode.embeddings`, one a corpus.
    """

    folders: tuple[Path, ...]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """``(n, D)`` float32 of passage rows ``(n,)``."""
        parts = [load_embeddings(folder) for folder in self.folders]
        found = np.empty((len(rows), parts[0].shape[1]), dtype=np.float32)
        start = 0
        for part in parts:
            inside = (rows >= start) & (rows < start + len(part))
            found[inside] = part[rows[inside] - start]
            start += len(part)
        return found
