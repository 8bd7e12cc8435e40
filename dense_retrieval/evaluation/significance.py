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
