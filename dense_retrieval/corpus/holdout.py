"""Passages that no training query may come from: queries made of them later test by query type."""

from pathlib import Path

import numpy as np

from dense_retrieval.corpus.dedup import load_rows
from dense_retrieval.records import Corpus
from dense_retrieval.stage import Counted, Counts, Folder, stage


def draw(n_passages: int, duplicates: np.ndarray, n: int = 100, seed: int = 0) -> np.ndarray:
    """Rows of ``n`` random passages, of a tenth of the corpus at most, none of them a duplicate."""
    usable = np.setdiff1d(np.arange(n_passages), duplicates)
    n = min(n, n_passages // 10, len(usable))
    return np.sort(np.random.default_rng(seed).choice(usable, n, replace=False))


def _most(corpus: Counted, duplicates: Counted, n: int) -> dict[str, float]:
    return {"passages": np.minimum(n, corpus["passages"] // 10)}


@stage(load_rows, name="heldout", forecast=_most)
def hold_out(folder: Path, corpus: Folder[Corpus], duplicates: Folder[np.ndarray], /, *, n: int) -> Counts:
    """The held-out passages: the corpus's own, or ``n`` drawn ones."""
    loaded = corpus.load()
    rows = loaded.heldout if len(loaded.heldout) else draw(len(loaded.passages), duplicates.load(), n)
    np.save(folder / "rows.npy", rows)
    return {"passages": len(rows)}
