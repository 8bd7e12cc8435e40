"""Paired tests of many systems against their baselines at once, over one corpus or the mean of several.

Everywhere ``strata`` is one array ``(R, Q_c)`` a corpus: the differences of R systems to their baselines
on its Q_c queries, NaN where one of the two was not measured. What is tested is the mean over the corpora
of the mean over a corpus's queries.
"""

from collections.abc import Iterator, Sequence

import numpy as np

_AT_ONCE = 500  # samples whose random numbers are in memory


def mean(strata: Sequence[np.ndarray]) -> np.ndarray:
    """``(R,)``; NaN where a system has no query in common with its baseline on some corpus."""
    return np.concatenate(_weighted(strata), axis=1).sum(1)


def t_test(strata: Sequence[np.ndarray]) -> np.ndarray:
    """``(R,)`` two-sided p-values of Student's paired t-test; of several corpora, Welch's.

    A system that equals its baseline everywhere has p = 1, as has one with a single query.
    """
    from scipy.special import stdtr

    with np.errstate(invalid="ignore", divide="ignore"):
        n = np.stack([(~np.isnan(d)).sum(1) for d in strata])
        # the mean difference's variance, a corpus a row
        variance = np.stack([_variance(d) for d in strata]) / n / len(strata) ** 2
        freedom = variance.sum(0) ** 2 / (variance**2 / (n - 1)).sum(0)
        t = mean(strata) / np.sqrt(variance.sum(0))
        p = 2 * stdtr(freedom, -np.abs(t))
    same_everywhere = (variance.sum(0) == 0) & (n.min(0) > 1) & (mean(strata) != 0)  # t is infinite
    p = np.where(same_everywhere, 0.0, np.where(np.isfinite(p), p, 1.0))
    return np.where(n.min(0) > 0, p, np.nan)


def randomization_test(strata: Sequence[np.ndarray], *, samples: int = 10_000, seed: int = 0) -> np.ndarray:
    """``(R,)`` two-sided p-values of Fisher's paired randomization test.

    p = (1 + c) / (1 + samples), c being the samples in which random signs of the differences give a mean
    at least as large (Smucker, Allan and Carterette, CIKM 2007).
    """
    weighted = np.concatenate(_weighted(strata), axis=1)
    # what is equal but for rounding counts
    least = np.abs(weighted.sum(1)) - 1e-9 * np.abs(weighted).sum(1)
    rng = np.random.default_rng(seed)
    extreme = np.zeros(len(weighted), dtype=np.int64)
    for n in _chunks(samples):
        signs = 2.0 * rng.integers(0, 2, (n, weighted.shape[1]), dtype=np.int8) - 1
        extreme += (np.abs(signs @ weighted.T) >= least).sum(0)
    return np.where(np.isnan(least), np.nan, (1 + extreme) / (1 + samples))


def bootstrap(
    strata: Sequence[np.ndarray], *, confidence: float = 0.95, samples: int = 10_000, seed: int = 0
) -> np.ndarray:
    """``(R, 2)`` percentile confidence intervals of the mean; queries are drawn anew within each corpus."""
    rng = np.random.default_rng(seed)
    means = []
    for n in _chunks(samples):
        total = np.zeros((n, len(strata[0])))
        for differences in strata:
            there = ~np.isnan(differences)
            drawn = _draws(n, differences.shape[1], rng)
            # of a system that was measured on some of the queries only, those of them that are drawn
            measured = there.sum(1) if there.all() else drawn @ there.T.astype(float)
            with np.errstate(invalid="ignore"):
                total += drawn @ np.where(there, differences, 0.0).T / measured
        means.append(total / len(strata))
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    return np.nanquantile(np.concatenate(means), tails, axis=0).T


def holm(p_values: np.ndarray) -> np.ndarray:
    """P-values ``(T,)`` corrected for T tests (Holm 1979): whoever rejects those below alpha makes a false
    discovery with probability alpha at most.

    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def _weighted(strata: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The differences so weighted that they add up to the mean; 0 where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return [
            np.where(np.isnan(d), 0.0, d) / (~np.isnan(d)).sum(1, keepdims=True) / len(strata) for d in strata
        ]


def _variance(differences: np.ndarray) -> np.ndarray:
    there = ~np.isnan(differences)
    n = there.sum(1)
    centred = np.where(there, differences - _mean(differences)[:, None], 0.0)
    variance = (centred**2).sum(1) / (n - 1)
    # a constant's mean is off by rounding
    return np.where(variance < 1e-24, 0.0, variance)


def _mean(differences: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(differences), 0.0, differences).sum(1) / (~np.isnan(differences)).sum(1)


def _chunks(samples: int) -> Iterator[int]:
    for start in range(0, samples, _AT_ONCE):
        yield min(_AT_ONCE, samples - start)


def _draws(n: int, queries: int, rng: np.random.Generator) -> np.ndarray:
    """``(n, Q)``: how often each query is drawn, when as many are drawn as there are."""
    drawn = rng.integers(0, queries, (n, queries)) + queries * np.arange(n)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * queries).reshape(n, queries).astype(float)
