"""How good a student is by the queries that it was trained on, and whether more of them still help."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dense_retrieval.evaluation.evaluate import per_query
from dense_retrieval.evaluation.verdict import MARGIN, verdict
from dense_retrieval.records import Asked, CandidateList, TestSet
from dense_retrieval.stage import Counts, Folder, stage


@dataclass(frozen=True)
class Point:
    """A student on the dev queries.

    Attributes:
        queries, passages: that were paid for, and what they were made from.
        dev: queries.
        mean: of the metric, over the dev queries.
        gain, low, high: to the point before, and its 95% interval; None of the first.
        ended: further queries are not worth it, or there are none.
    """

    metric: str
    queries: int
    passages: int
    dev: int
    mean: float
    gain: float | None
    low: float | None
    high: float | None
    ended: bool

    @classmethod
    def load(cls, folder: Path) -> Point:
        return cls(**json.loads((folder / "point.json").read_text()))


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
    """A :class:`Point`. It is the last one where no passage is left, or where the gain is surely small: the interval
    of the paired differences to the point before, by Student's t, lies below :data:`~verdict.MARGIN`.

    So few dev queries, whose interval is wide, end nothing.

    Args:
        tested: the dev queries, the same for all points.
        before: the ranking of the point before.
        asked: what the student's queries were made from; None of the untuned student.
        first: part of a budget, which is never the last for its gain.
    """
    qrels = tested.load().qrels
    values = per_query(ranking.load(), qrels, [metric])[metric]
    n_queries = n_passages = 0
    gain = low = high = None
    ended = False
    if before:
        found = verdict((values - per_query(before.load(), qrels, [metric])[metric])[None], metric)
        gain, low, high = found.mean, found.low, found.high
        ended = high < MARGIN and not first
    if asked:
        of = asked.load()
        n_queries, n_passages = int(of.queries.sum()), len(of.rows)
        ended = bool(ended or of.left == 0)
    point = Point(metric, n_queries, n_passages, len(values), float(values.mean()), gain, low, high, ended)
    (folder / "point.json").write_text(json.dumps(asdict(point)))
    return {"queries": len(values)}
