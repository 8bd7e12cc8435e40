"""What another engine than torch costs: how far its embeddings are from torch's, and its rankings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dense_retrieval.evaluation import table
from dense_retrieval.evaluation.evaluate import per_query
from dense_retrieval.evaluation.measure import Measured
from dense_retrieval.records import CandidateList, Qrels

_BEST = 10  # passages of a query that are compared
_NDCG = f"nDCG@{_BEST}"
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


@dataclass(frozen=True)
class Parity:
    """How near other rankings are to ours, over some queries."""

    queries: int
    common: float  # share of our ten best that are among the others', mean over queries
    same: float  # share of queries with the same ten in the same order
    scores: float  # greatest difference of two scores of the same rank
    ndcg: float  # nDCG@10 of ours
    lost: float  # of it in the others
    cosines: dict[str, Any] | None  # of the texts' embeddings, where they were computed again

    def __str__(self) -> str:
        cosine = (
            f"cosine {self.cosines['mean']:.6f} (least {self.cosines['min']:.6f}), "
            if self.cosines
            else f"scores differ by at most {self.scores:.0e}, "
        )
        return (
            f"{cosine}{self.common:.2%} of the ten best in common, in the same order for {self.same:.2%} of "
            f"{self.queries} queries, {_NDCG} {self.ndcg - self.lost:.4f} against {self.ndcg:.4f} "
            f"({self.lost:.4f} lost)"
        )


def parity(
    ours: CandidateList, others: CandidateList, qrels: Qrels, cosines: Mapping[str, Any] | None = None
) -> Parity:
    """Compare rankings ``(Q, K)``, best first, of the same Q queries, which ``qrels`` judges.

    Args:
        cosines: as :func:`cosine` gives them.
    """
    one, other = (of.passages[:, :_BEST] for of in (ours, others))
    there = (one >= 0) | (other >= 0)
    in_both = (one[:, :, None] == other[:, None, :]).any(2) & (one >= 0)
    common = in_both.sum(1) / np.maximum(1, there.sum(1))
    scores = (np.where(there, of.scores[:, :_BEST], 0.0) for of in (ours, others))
    differences = np.abs(np.subtract(*scores))
    before, after = (float(np.nanmean(per_query(of, qrels, [_NDCG])[_NDCG])) for of in (ours, others))
    return Parity(
        len(one),
        float(common.mean()),
        float((one == other).all(1).mean()),
        float(differences.max(initial=0.0)),
        before,
        before - after,
        dict(cosines) if cosines else None,
    )
