"""How good a student is by the queries that it was trained on, and whether more of them still help."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dense_retrieval.evaluation.evaluate import per_query
from dense_retrieval.records import Asked, CandidateList, TestSet
from dense_retrieval.stage import Counts, Folder, stage


@dataclass(frozen=True)
class Point:
    """A student on the dev queries.

    Attributes:
        queries, passages: that were paid for, and what they were made from.
        mean: of the metric, over the dev queries.
        gain, error: to the point before, and its standard error; None of the first.
        ended: further queries are not worth it, or there are none.
    """

    metric: str
    queries: int
    passages: int
    dev: int
    mean: float
    gain: float | None
    error: float | None
    ended: bool

    @classmethod
    def load(cls, folder: Path) -> Point:
        return cls(**json.loads((folder / "point.json").read_text()))


def gained(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """The mean difference of the same n queries' values ``(n,)``, and its standard error, sd / sqrt(n).

    >>> gained(np.array([0.0, 0.0, 0.5]), np.array([1.0, 0.0, 0.5]))
    (0.3333333333333333, 0.3333333333333333)
    """
    differences = after - before
    error = np.std(differences, ddof=1) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
    return float(differences.mean()), float(error)


@stage(Point.load, name="learning_curve", forecast=lambda tested, **_: {"queries": tested["queries"]})
def learning_curve(
    folder: Path,
    tested: Folder[TestSet],
    ranking: Folder[CandidateList],
    before: Folder[CandidateList] | None,
    asked: Folder[Asked] | None,
    /,
    *,
    metric: str,
    first: bool,
) -> Counts:
    """A :class:`Point`. It is the last one where its gain is not above its standard error, or no passage is left.

    Args:
        tested: the dev queries, the same for all points.
        before: the ranking of the point before.
        asked: what the student's queries were made from; None of the untuned student.
        first: part of a budget, which is never the last for its gain.
    """
    qrels = tested.load().qrels
    values = per_query(ranking.load(), qrels, [metric])[metric]
    gain = error = None
    ended = False
    if before:
        gain, error = gained(per_query(before.load(), qrels, [metric])[metric], values)
        ended = gain <= error and not first
    n_queries = n_passages = 0
    if asked:
        of = asked.load()
        n_queries, n_passages = int(of.queries.sum()), len(of.rows)
        ended = bool(ended or of.left == 0)
    point = Point(metric, n_queries, n_passages, len(values), float(values.mean()), gain, error, ended)
    (folder / "point.json").write_text(json.dumps(asdict(point)))
    return {"queries": len(values)}
