"""What is said of a difference: against the paired t-test, a linear mixed model by hand, and simulated truth."""

import numpy as np
import pytest
from scipy import stats

from dense_retrieval.evaluation.verdict import MARGIN, verdict


def test_with_one_seed_it_is_the_paired_t_test():
    differences = np.random.default_rng(0).normal(0.02, 0.2, (1, 300))
    found = verdict(differences, "nDCG@10")
    low, high = stats.ttest_1samp(differences[0], 0).confidence_interval(0.95)
    assert [found.low, found.high] == pytest.approx([low, high])


def test_two_seeds_by_hand():
    """Mean squares 2 x 0.0425 of queries ... of a table of two by three."""
    differences = np.array([[0.1, 0.3, 0.2], [0.2, 0.6, 0.1]])
    # means: queries 0.15 0.45 0.15, seeds 0.2 0.3, all 0.25
    ms_query = 2 * ((0.1**2) + (0.2**2) + (0.1**2)) / 2
    ms_seed = 3 * (2 * 0.05**2) / 1
    rest = np.array([[0.0, -0.1, 0.1], [0.0, 0.1, -0.1]])
    ms_rest = (rest**2).sum() / 2
    assert (ms_query, ms_seed, ms_rest) == pytest.approx((0.06, 0.015, 0.02))
    found = verdict(differences, "nDCG@10")  # the seeds differ by less than chance: the queries alone count
    half = stats.t.ppf(0.975, 2) * np.sqrt(ms_query / 6)
    assert (found.mean, found.high - found.mean) == pytest.approx((0.25, half))
    differences[1] += 0.4
    ms_seed = 3 * (2 * 0.25**2)
    total = ms_query + ms_seed - ms_rest
    freedom = total**2 / (ms_query**2 / 2 + ms_seed**2 / 1 + ms_rest**2 / 2)
    found = verdict(differences, "nDCG@10")
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, freedom) * np.sqrt(total / 6))


@pytest.mark.parametrize(("seeds", "of_seeds"), [(3, 0.0), (3, 0.01), (5, 0.03), (10, 0.03)])
def test_the_interval_covers_the_truth_as_often_as_it_says(seeds, of_seeds):
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(1000):
        of_query, of_seed = rng.normal(0.03, 0.15, (1, 80)), rng.normal(0, of_seeds, (seeds, 1))
        found = verdict(of_query + of_seed + rng.normal(0, 0.1, (seeds, 80)), "nDCG@10")
        covered.append(found.low <= 0.03 <= found.high)
    assert 0.93 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize(
    ("mean", "deviation", "word"),
    [(0.05, 0.1, "better"), (-0.05, 0.1, "worse"), (0.001, 0.04, "no worse"), (0.01, 0.5, "cannot tell")],
)
def test_the_four_words(mean, deviation, word):
    noise = np.random.default_rng(1).normal(0, 1, (1, 400))
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    found = verdict(mean + deviation * noise, "nDCG@10")
    assert found.word == word and bool(found.settled_by) == (word == "cannot tell")
    half = 1.966 * deviation / 20
    assert str(found).startswith(
        f"{word}: nDCG@10 {mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}] over 400 queries, "
    )


def test_what_would_settle_it_does():
    noise = np.random.default_rng(1).normal(0, 1, 400)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    found = verdict(0.01 + 0.5 * noise[None], "nDCG@10")
    needed = int(found.settled_by.split()[1].replace(",", ""))
    half = stats.t.ppf(0.975, needed - 1) * 0.5 / np.sqrt(needed)
    assert half == pytest.approx(0.01 + MARGIN, rel=0.02)
    seeds = verdict(np.array([[-0.05], [0.0], [0.08]]) + 0.001 * noise, "nDCG@10")
    assert "seeds would settle it" in str(seeds) and "400 queries and 3 seeds" in str(seeds)


def test_equal_students_are_no_worse():
    found = verdict(np.zeros((3, 50)), "nDCG@10")
    assert (found.word, found.low, found.high) == ("no worse", 0.0, 0.0)
