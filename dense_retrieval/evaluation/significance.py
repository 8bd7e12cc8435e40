"""Is a difference between two systems, on the same queries, more than chance?"""

from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """A paired comparison over n queries."""

    mean: float
    p_value: float  # two-sided
    n: int


def t_test(system: np.ndarray, baseline: np.ndarray) -> Difference:
    """Student's paired t-test of ``(Q,)`` values; queries where either is NaN do not count.

    Two systems that agree on every query have p = 1.
    """
    both = ~(np.isnan(system) | np.isnan(baseline))
    difference = system[both] - baseline[both]
    n = len(difference)
    if n < 2 or not difference.any():
        return Difference(float(difference.mean()) if n else 0.0, 1.0, n)
    if np.ptp(difference) == 0:  # the same difference everywhere: t is infinite
        return Difference(float(difference[0]), 0.0, n)
    return Difference(
        float(difference.mean()), float(stats.ttest_rel(system[both], baseline[both]).pvalue), n
    )


def randomization_test(
    system: np.ndarray, baseline: np.ndarray, *, samples: int = 10_000, seed: int = 0
) -> Difference:
    """Fisher's paired randomization test of ``(Q,)`` values; queries where either is NaN do not count.

    p = (1 + c) / (1 + samples), c being the samples in which random signs give a mean difference
    at least as large (Smucker, Allan and Carterette, CIKM 2007).
    """
    both = ~(np.isnan(system) | np.isnan(baseline))
    difference = system[both] - baseline[both]
    rng = np.random.default_rng(seed)
    total = abs(difference.sum()) - 1e-9  # what is equal but for rounding counts
    moved = difference[difference != 0]  # a zero is a zero under either sign
    extreme = 0
    for start in range(0, samples, 1000):  # bounds the memory: 1000 x Q at a time
        signs = 2 * rng.integers(0, 2, (min(1000, samples - start), len(moved)), dtype=np.int8) - 1
        extreme += int((np.abs(signs @ moved) >= total).sum())
    n = len(difference)
    return Difference(float(difference.mean()) if n else 0.0, (1 + extreme) / (1 + samples), n)
