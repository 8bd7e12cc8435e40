"""What another engine than torch costs: how far its embeddings are from torch's, and its rankings."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dense_retrieval.evaluation import table
from dense_retrieval.evaluation.measure import Measured

_TEXTS = 10_000  # compared at most
TORCH = "torch"


def cosine(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Mean and least cosine of two embeddings ``(N, D)``, of length 1, of the same texts, or of 10,000 of them."""
    rows = np.unique(np.linspace(0, len(one) - 1, min(_TEXTS, len(one)), dtype=np.int64))
    cosines = np.einsum("nd,nd->n", one[rows], other[rows], dtype=np.float64)
    return {"mean": float(cosines.mean()), "min": float(cosines.min()), "texts": len(rows)}


def cost(engine: str, cosines: Mapping[str, Any], measured: Measured) -> dict[str, Any]:
    """As ``metrics.json`` says it: the cosines, and the main metric of both rankings.

    Args:
        measured: the untuned student's ranking by the engine, and by torch, under their names.
    """
    exact, other = table.rows(measured.values, TORCH)
    difference = other.differences[other.main]
    return {
        "name": engine,
        "cosines": dict(cosines),
        other.main: {TORCH: exact.means[exact.main], engine: other.means[other.main]},
        "p_value": difference.p_value,
    }


def line(found: Mapping[str, Any], metric: str) -> str:
    """``openvino against torch: cosine of queries 1.000000 (least 1.000000), ...; nDCG@10 0.721 against 0.721``"""
    cosines = ", ".join(
        f"cosine of {of} {values['mean']:.6f} (least {values['min']:.6f})"
        for of, values in found["cosines"].items()
    )
    ndcg, engine = found[metric], found["name"]
    return f"{engine} against torch: {cosines}; {metric} {ndcg[engine]:.4f} against {ndcg[TORCH]:.4f}"
