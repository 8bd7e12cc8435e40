"""Paired tests against scipy, enumeration and the step-down procedure; their error rates."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dense_retrieval.evaluation import significance


def differences(rows: int = 4, sizes=(40, 25), seed: int = 0, effect: float = 0.1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(effect, 1, (rows, n)).round(2) for n in sizes]


def test_one_corpus_gives_scipy_s_paired_t_test():
    (d,) = differences(sizes=(40,))
    np.testing.assert_allclose(significance.t_test([d]), stats.ttest_1samp(d, 0, axis=1).pvalue, rtol=1e-9)
    d[0, 3:9] = np.nan
    expected = stats.ttest_1samp(d, 0, axis=1, nan_policy="omit").pvalue
    np.testing.assert_allclose(significance.t_test([d]), expected, rtol=1e-9)


def test_several_corpora_give_welch_s_t_test():
    """The mean of two means is half a difference: of one sample and the other with its sign turned."""
    one, other = differences()
    expected = stats.ttest_ind(one, -other, axis=1, equal_var=False).pvalue
    np.testing.assert_allclose(significance.t_test([one, other]), expected, rtol=1e-9)
    np.testing.assert_allclose(significance.mean([one, other]), (one.mean(1) + other.mean(1)) / 2)


def test_randomization_approaches_the_enumeration_of_all_signs():
    one = np.array([[0.3, -0.1, 0.2, 0.0, 0.4, np.nan], [0.1, 0.1, 0.1, 0.1, 0.1, 0.1]])
    other = np.array([[0.1, -0.2, 0.3], [0.0, 0.0, np.nan]])
    found = significance.randomization_test([one, other], samples=20_000)
    for row in range(2):
        parts = [d[row][~np.isnan(d[row])] for d in (one, other)]
        weighted = np.concatenate([part / len(part) / 2 for part in parts])
        signs = np.array(list(itertools.product([-1, 1], repeat=len(weighted))))
        exact = np.mean(np.abs(signs @ weighted) >= abs(weighted.sum()) - 1e-12)
        assert abs(found[row] - exact) < 0.015
    assert (significance.randomization_test([one, other], samples=20_000) == found).all()


def test_the_bootstrap_interval_is_scipy_s():
    (d,) = differences(rows=3, sizes=(60,))
    found = significance.bootstrap([d], samples=20_000)
    for row in range(3):
        expected = stats.bootstrap((d[row],), np.mean, method="percentile", n_resamples=20_000, rng=1)
        np.testing.assert_allclose(found[row], expected.confidence_interval, atol=0.01)


def test_the_bootstrap_draws_within_each_corpus():
    """Constant corpora have no spread; a corpus that only some were measured on keeps to those."""
    constant = [np.full((1, 30), 0.2), np.full((1, 5), 0.6)]
    np.testing.assert_allclose(significance.bootstrap(constant, samples=500), [[0.4, 0.4]])
    sparse = np.full((2, 30), 0.2)
    sparse[1, 10:] = np.nan
    np.testing.assert_allclose(significance.bootstrap([sparse], samples=500), [[0.2, 0.2]] * 2)


def test_nothing_to_test():
    equal, single, none = np.zeros((1, 9)), np.array([[0.1]]), np.full((1, 4), np.nan)
    for test in (significance.t_test, significance.randomization_test):
        assert test([equal]) == test([single]) == 1
        assert np.isnan(test([none]))
    assert significance.t_test([np.full((1, 9), 0.1)]) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
@settings(deadline=None)
def test_holm_is_the_step_down_procedure(p_values):
    corrected = significance.holm(np.array(p_values))
    for alpha in (0.01, 0.05, 0.3):
        rejected: set[int] = set()
        for step, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
            if p_values[i] * (len(p_values) - step) > alpha:
                break
            rejected.add(i)
        assert set(np.flatnonzero(corrected <= alpha)) == rejected


def test_planted_effects_are_found_and_none_is_not():
    """At 5 %: of 400 null comparisons about 20 are found, of 400 planted ones nearly all."""
    null, planted = (
        significance.randomization_test([d], samples=1000)
        for d in (differences(400, (60,), effect=0)[0], differences(400, (60,), effect=0.6)[0])
    )
    assert 5 <= (null < 0.05).sum() <= 38  # 20 +- 4 standard deviations
    assert (planted < 0.05).mean() > 0.97
    families = significance.t_test([differences(2000, (60,), effect=0, seed=1)[0]]).reshape(200, 10)
    false = sum((significance.holm(family) < 0.05).any() for family in families)
    assert false <= 10 + 4 * 3.1  # 200 families at 5 % each
    intervals = significance.bootstrap([differences(400, (60,), effect=0.5, seed=2)[0]], samples=1000)
    covered = ((intervals[:, 0] < 0.5) & (intervals[:, 1] > 0.5)).mean()
    assert 0.9 < covered < 0.98
