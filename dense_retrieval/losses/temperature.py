"""Temperatures of the listwise loss, found from scores before training."""

import math
from collections.abc import Callable

import numpy as np

from dense_retrieval.records import InputError

_BOUNDS = (1e-3, 10.0)  # of any temperature: scores and cosines lie within a range of 1 or 2


def check(setting: str, value: object, automatic: bool = False) -> None:
    """Raise InputError unless a setting is a positive number, or "auto" where it may be."""
    if automatic and value == "auto":
        return
    if not (isinstance(value, int | float) and 0 < value < math.inf):
        raise InputError(f"{setting}={value!r} is not a positive number{' or auto' * automatic}")


def teacher_temperature(scores: np.ndarray, source: np.ndarray) -> float:
    """Temperature scaling: the τ of the highest likelihood of the source passages.

    Args:
        scores: ``(Q, K)`` normalised teacher scores of unfiltered lists, -inf = padding. Only where
            the teacher is sometimes wrong is there a best τ: on filtered lists it would be 0.
        source: ``(Q,)`` position of the source passage in each list.

    Returns:
        τ in 0.001..10. There is no best one where every source passage is ranked first: then τ is
        so small (under 0.01) that the likelihood is 1 in float64, and the labels are one-hot. Where
        the scores say nothing of the source, or the opposite, it is 10.
    """
    from scipy.special import log_softmax

    scores = scores.astype(np.float64)
    rows = np.arange(len(scores))
    return _least(lambda tau: -log_softmax(scores / tau, axis=1)[rows, source].mean())


def student_temperature(similarities: np.ndarray, teacher: np.ndarray, teacher_tau: float) -> float:
    """The τ at which the untuned student's KL from the teacher's distribution is least.

    Args:
        similarities: ``(Q, K)`` cosines of the training lists.
        teacher: ``(Q, K)`` normalised teacher scores of the same lists, -inf = padding; lists with a
            NaN, which the teacher has yet to score, take no part.

    Raises:
        InputError: the teacher has yet to score all of them.
    """
    from scipy.special import log_softmax

    known = ~np.isnan(teacher).any(1)
    if not known.any():
        raise InputError(
            "loss.student_temperature=auto is found from training queries that the teacher scored before, and "
            "none is; raise groups.scored_before, or give loss.student_temperature a number"
        )
    similarities, teacher = similarities[known], teacher[known]
    padding = np.isneginf(teacher)
    log_p = log_softmax(teacher.astype(np.float64) / teacher_tau, axis=1)
    p = np.exp(log_p)
    s = np.where(padding, -np.inf, similarities.astype(np.float64))

    def cross_entropy(tau: float) -> float:
        log_q = log_softmax(s / tau, axis=1)
        return -(p * np.where(padding, 0.0, log_q)).sum(1).mean()

    return _least(cross_entropy)


def _least(objective: Callable[[float], float]) -> float:
    """The minimum over τ, sought over log τ, in which both objectives have one valley."""
    from scipy.optimize import minimize_scalar

    low, high = np.log(_BOUNDS)
    found = minimize_scalar(lambda x: objective(np.exp(x)), bounds=(low, high), method="bounded")
    return float(np.exp(found.x))
