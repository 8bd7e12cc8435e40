"""Metrics of a ranking, query by query, by trec_eval's own code through ir_measures."""

from collections.abc import Sequence
from pathlib import Path

import ir_measures
import numpy as np
from ir_measures import AP, RR, R, nDCG

from dense_retrieval.records import CandidateList, Qrels

METRICS = {"nDCG@10": nDCG @ 10, "R@100": R @ 100, "MRR@10": RR @ 10, "MAP@100": AP @ 100}


def per_query(
    ranking: CandidateList, qrels: Qrels, queries: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Each metric of each judged query.

    Args:
        ranking: ``(Q, K)`` passages, best first, of query rows 0..Q-1.
        qrels: rows of the same queries and passages.
        queries: only these rows, where judged; None is all with a judgement, as trec_eval does it.

    Returns:
        Metric name -> ``(Q,)`` float64, NaN for queries that are not evaluated, 0 for those whose
        ranking is empty.
    """
    judged = np.unique(qrels.query)
    wanted = set(judged.tolist() if queries is None else np.intersect1d(judged, queries).tolist())
    gold: dict[str, dict[str, int]] = {}
    for query, passage, relevance in zip(qrels.query, qrels.passage, qrels.relevance, strict=True):
        if query in wanted:
            gold.setdefault(str(query), {})[str(passage)] = int(relevance)
    # trec_eval sorts by score itself and breaks ties by id: the position is the score, so that our
    # order is what is measured.
    run = {
        str(query): {str(p): -float(rank) for rank, p in enumerate(ranking.passages[query]) if p >= 0}
        for query in wanted
    }
    values = {name: np.full(len(ranking.passages), np.nan) for name in METRICS}
    for name in METRICS:
        values[name][list(wanted)] = 0.0
    names = {str(measure): name for name, measure in METRICS.items()}
    for value in ir_measures.iter_calc(list(METRICS.values()), gold, run):
        values[names[str(value.measure)]][int(value.query_id)] = value.value
    return values


def write_run(
    path: Path, ranking: CandidateList, query_ids: Sequence[str], passage_ids: Sequence[str], tag: str
) -> None:
    """A TREC run file: ``query Q0 passage rank score tag``, ids as in the corpus's files.

    trec_eval on this file gives the metrics of :func:`per_query`.
    """
    with path.open("w", encoding="utf-8") as stream:
        for query, (passages, scores) in enumerate(zip(ranking.passages, ranking.scores, strict=True)):
            above = np.float32(np.inf)
            for rank, (passage, score) in enumerate(zip(passages, scores, strict=True), 1):
                if passage >= 0:
                    # trec_eval ranks by the score, as float32, and breaks ties by id: ties, and what was
                    # ranked without a score (-inf), get the next smaller number, so that it ranks as we do.
                    score = np.float32(score if np.isfinite(score) else np.inf)
                    above = min(score, np.nextafter(above, np.float32(-np.inf)))
                    ids = query_ids[query], passage_ids[int(passage)]
                    stream.write(f"{ids[0]} Q0 {ids[1]} {rank} {above:.9g} {tag}\n")
