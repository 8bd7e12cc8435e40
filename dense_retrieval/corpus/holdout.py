"""Passages that no training query may come from: queries made of them later test by query type."""

import numpy as np


def draw(n_passages: int, n: int = 100, seed: int = 0) -> np.ndarray:
    """Rows of ``n`` random passages, of a tenth of the corpus at most."""
    n = min(n, n_passages // 10)
    return np.sort(np.random.default_rng(seed).choice(n_passages, n, replace=False))
