"""Several teachers' scores of the same candidates as one: normalised, then averaged."""

from collections.abc import Sequence

import numpy as np

from dense_retrieval.records import CandidateList, InputError


def percentile_range(scores: np.ndarray) -> tuple[float, float]:
    """The 1st percentile of finite scores, and the distance from it to the 99th, above 0."""
    low, high = np.percentile(scores, [1, 99])
    # Where all scores are alike they say nothing: all become 0.
    return low, max(high - low, np.finfo(np.float32).tiny)


def unit_scale(scores: np.ndarray, low: float, width: float) -> np.ndarray:
    """Scores of any shape with ``low``..``low + width`` mapped to 0..1 and clipped; -inf becomes 0.

    >>> unit_scale(np.array([-3.0, 1.0, 2.0, 9.0]), *percentile_range(np.array([0.0, 4.0]))).round(2).tolist()
    [0.0, 0.24, 0.5, 1.0]
    """
    with np.errstate(over="ignore"):
        return np.clip((scores - low) / width, 0.0, 1.0)


def normalise(scored: CandidateList, querytypes: Sequence[str]) -> np.ndarray:
    """Scores ``(Q, K)`` float32 in 0..1 of one teacher, each query type scaled by its own percentiles.

    Args:
        scored: ``(Q, K)``, -1 = padding.
        querytypes: Q names.

    Returns:
        -inf at padding.

    Raises:
        InputError: a score that is not a finite number.
    """
    listed = scored.passages >= 0
    _require_finite(scored, listed)
    types = np.array(querytypes)
    normalised = np.full(scored.scores.shape, -np.inf, dtype=np.float32)
    for name in np.unique(types):
        of_type = listed & (types == name)[:, None]
        if of_type.any():
            scores = scored.scores[of_type]
            normalised[of_type] = unit_scale(scores, *percentile_range(scores))
    return normalised


def average(
    lists: Sequence[CandidateList], querytypes: Sequence[str], weights: Sequence[float] | None = None
) -> CandidateList:
    """The weighted mean of the teachers' normalised scores (arXiv 2505.19274 averages two teachers).

    Args:
        lists: one a teacher, each ``(Q, K)`` with the same passages in the same order, -1 = padding.
        querytypes: Q names; the scores of each type are normalised apart.
        weights: one a teacher, above 0, of any sum; None = all alike.

    Returns:
        ``(Q, K)``, scores float32 in 0..1, -inf at padding.

    Raises:
        InputError: different candidates, a score that is not a finite number, wrong weights.
    """
    weights = [1.0] * len(lists) if weights is None else list(weights)
    if not lists or len(weights) != len(lists) or not all(0 < w < np.inf for w in weights):
        raise InputError(
            f"weights={weights} of {len(lists)} averaged teachers: each teacher needs one finite weight above 0"
        )
    passages = lists[0].passages
    for number, scored in enumerate(lists[1:], start=2):
        if not np.array_equal(scored.passages, passages):
            raise InputError(
                f"averaged teachers 1 and {number} have scored different candidates; score the same candidate "
                "lists with every teacher"
            )
    if len(querytypes) != len(passages):
        raise InputError(f"{len(querytypes)} query types for {len(passages)} queries; give one a query")
    scores = [normalise(scored, querytypes) for scored in lists]
    mean = np.average(np.stack(scores), axis=0, weights=weights).astype(np.float32)
    return CandidateList(passages, mean)


def _require_finite(scored: CandidateList, listed: np.ndarray) -> None:
    bad = np.argwhere(listed & ~np.isfinite(scored.scores))
    if len(bad):
        query, position = bad[0]
        raise InputError(
            f"{len(bad)} teacher scores are not finite, the first one {scored.scores[query, position]} of query "
            f"row {query} with passage row {scored.passages[query, position]}; score them again in float32 "
            "(precision=32-true) or choose another teacher="
        )
