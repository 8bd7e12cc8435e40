"""Metrics of a ranking, query by query, by ir_measures: trec_eval's own code, and others."""

import functools
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path

import ir_measures
import numpy as np

from dense_retrieval.records import CandidateList, InputError, Qrels

DEPTH = 100  # passages a query that are measured
_NORMAL = np.float32(1.2e-38)  # about the smallest number that no reader takes for 0
_EXAMPLES = "nDCG@10, R@100, RR@10, AP@100, P@5, nDCG(dcg='exp-log2')@10"


@functools.cache
def canonical(metric: str) -> str | None:
    """ir_measures' own name of a metric, None if it knows none of that name.

    >>> canonical("MRR@10"), canonical("system")
    ('RR@10', None)
    """
    try:
        measure = ir_measures.parse_measure(metric)
        measure.validate_params()
        return str(measure)
    except (AssertionError, LookupError, NameError, TypeError, ValueError):
        return None


def check(metrics: Sequence[str]) -> None:
    """Raise InputError where ``evaluation.metrics`` names what :func:`per_query` cannot compute here.

    Each is tried, on a query for which everything is found and one for which nothing is: Judged has no
    value then, and Accuracy none.
    """
    gold = {"0": {"0": 1}, "1": {"0": 1}}
    run: dict[str, dict[str, float]] = {"0": {"0": 0.0}, "1": {}}
    for measure, name in _parsed(metrics).items():
        try:
            values = [value.value for value in ir_measures.iter_calc([measure], gold, run)]
        except Exception:  # each program raises what it likes
            values = []
        if len(values) != len(gold) or not all(map(math.isfinite, values)):
            raise InputError(_refusal(name, "has no value for some queries"))


def per_query(
    ranking: CandidateList, qrels: Qrels, metrics: Sequence[str], queries: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Each metric of each judged query.

    Args:
        ranking: ``(Q, K)`` passages, best first, of query rows 0..Q-1.
        qrels: rows of the same queries and passages.
        metrics: names of ir_measures. One without a cutoff is of all K passages.
        queries: only these rows, where judged; None is all with a judgement, as trec_eval does it.

    Returns:
        Metric, in the given order and by its given name -> ``(Q,)`` float64, NaN for queries that are not
        evaluated, 0 for those whose ranking is empty.

    Raises:
        InputError: a name is none of ir_measures', or its cutoff deeper than :data:`DEPTH`.
    """
    names = _parsed(metrics)
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
    values = {name: np.full(len(ranking.passages), np.nan) for name in metrics}
    for of_metric in values.values():
        of_metric[list(wanted)] = 0.0
    try:
        for value in ir_measures.iter_calc(list(names), gold, run):
            values[names[value.measure]][int(value.query_id)] = value.value
    except subprocess.CalledProcessError as error:  # gdeval, which takes a relevance of up to 4
        raise InputError(
            f"evaluation.metrics: {', '.join(metrics)}: a program that computes one of these refuses the "
            f"corpus's judgements, of up to {qrels.relevance.max()}; leave out ERR and exp-log2"
        ) from error
    return values


def _parsed(metrics: Sequence[str]) -> dict[ir_measures.Measure, str]:
    """Measure -> its given name."""
    names: dict[ir_measures.Measure, str] = {}
    for name in metrics:
        if canonical(name) is None:
            raise InputError(_refusal(name, "is no measure of ir_measures, or lacks a parameter"))
        measure = ir_measures.parse_measure(name)
        if not ir_measures.DefaultPipeline.supports(measure):
            raise InputError(_refusal(name, "is computed by no program that is installed"))
        if not 1 <= measure.params.get("cutoff", DEPTH) <= DEPTH:  # at 0, trec_eval ends the process
            raise InputError(_refusal(name, f"is cut outside the {DEPTH} passages that are ranked"))
        if measure in names:
            raise InputError(_refusal(name, f"is the same as {names[measure]}"))
        names[measure] = name
    if not names:
        raise InputError(f"evaluation.metrics is empty; give names such as {_EXAMPLES}")
    return names


def _refusal(name: str, reason: str) -> str:
    return f"evaluation.metrics: {name!r} {reason}; use names such as {_EXAMPLES}"


def tag(system: str) -> str:
    """What names a system in TREC's files: ``BM25_tuned_student`` of ``BM25 + tuned student``."""
    return system.split(" (")[0].replace(" + ", "_").replace(", ", "_").replace(" ", "_")


def write_qrels(path: Path, qrels: Qrels, query_ids: Sequence[str], passage_ids: Sequence[str]) -> None:
    """A TREC file, ``query 0 passage relevance``; a passage that the corpus lacks gets an id of its own."""
    with path.open("w", encoding="utf-8") as stream:
        for query, passage, relevance in zip(qrels.query, qrels.passage, qrels.relevance, strict=True):
            name = passage_ids[int(passage)] if passage >= 0 else f"not-in-the-corpus{passage}"
            stream.write(f"{query_ids[int(query)]} 0 {name} {relevance}\n")


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
                    below = np.nextafter(above, np.float32(-np.inf))
                    # Some readers, and this process at times, compute with denormals as zeros.
                    above = min(
                        np.float32(0) if abs(score) < _NORMAL else score,
                        -_NORMAL if abs(below) < _NORMAL else below,
                    )
                    ids = query_ids[query], passage_ids[int(passage)]
                    stream.write(f"{ids[0]} Q0 {ids[1]} {rank} {above:.9g} {tag}\n")
