"""What is said of a difference: against the paired t-test, a linear mixed model by hand, and simulated truth."""

import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from dense_retrieval.evaluation import significance
from dense_retrieval.evaluation.verdict import MARGIN, spread, verdict


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


def like(mean: float, of_query: float, of_seed: float, rest: float, seeds: int, queries: int) -> np.ndarray:
    """``(S, Q)`` whose mean and variance components are exactly these."""
    rng = np.random.default_rng(1)

    def exact(values: np.ndarray, variance: float) -> np.ndarray:
        return (values - values.mean()) / values.std(ddof=1) * np.sqrt(variance)

    noise = rng.normal(size=(seeds, queries))
    noise = noise - noise.mean(0) - noise.mean(1)[:, None] + noise.mean()
    noise *= np.sqrt(rest**2 * (seeds - 1) * (queries - 1) / (noise**2).sum()) if seeds > 1 else 0
    by_query = exact(rng.normal(size=queries), of_query**2 + rest**2 / seeds)
    by_seed = exact(rng.normal(size=seeds), of_seed**2 + rest**2 / queries) if seeds > 1 else np.zeros(1)
    return mean + by_query + by_seed[:, None] + noise


def settled(mean: float, of_query: float, of_seed: float, rest: float, seeds: int, queries: int) -> float:
    """The share of 500 experiments with a verdict."""
    rng, words = np.random.default_rng(0), []
    for _ in range(500):
        noise = rng.normal(0, of_query, queries) + rng.normal(0, of_seed, (seeds, 1))
        words.append(
            verdict(mean + noise + rng.normal(0, rest, (seeds, queries)), "nDCG@10").word != "cannot tell"
        )
    return float(np.mean(words))


def numbers(text: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"about ([\d,]+)", text)]


@pytest.mark.parametrize("mean", [0.01, 0.0, -0.03])
def test_as_many_more_queries_as_it_says_settle_it_four_times_in_five(mean):
    found = verdict(like(mean, 0.5, 0.0, 0.0, 1, 200), "nDCG@10")
    assert found.word == "cannot tell"
    (more,) = numbers(found.settled_by)
    assert 0.76 <= settled(mean, 0.5, 0.0, 0.0, 1, 200 + more) <= 0.88
    assert f"; about {more:,} more test queries would settle it" in str(found)
    # (1.96 + 0.84) standard errors to the nearer of 0 and what is no worse
    distance = max(abs(mean), mean + MARGIN)
    assert 200 + more == pytest.approx((0.5 * 2.8016 / distance) ** 2, rel=0.06)


def test_more_queries_or_more_seeds_where_either_settles_it():
    parts = 0.01, 0.03, 0.008, 0.12
    found = verdict(like(*parts, 6, 30), "nDCG@10")
    queries, seeds = numbers(found.settled_by)
    assert re.fullmatch(r"about [\d,]+ more test queries or about \d+ more seeds", found.settled_by)
    assert 0.73 <= settled(*parts, 6, 30 + queries) <= 0.9
    assert 0.73 <= settled(*parts, 6 + seeds, 30) <= 0.9


def test_where_seeds_are_what_is_uncertain_queries_alone_settle_nothing():
    parts = 0.01, 0.05, 0.03, 0.02
    found = verdict(like(*parts, 3, 400), "nDCG@10")
    (seeds,) = numbers(found.settled_by)
    assert found.settled_by == f"about {seeds} more seeds"
    assert 0.73 <= settled(*parts, 3 + seeds, 400) <= 0.9
    assert settled(*parts, 3, 4000) < 0.5
    assert "over 400 queries and 3 seeds; about" in str(found)


def test_where_neither_alone_is_enough_both_are_said():
    parts = 0.01, 0.2, 0.03, 0.1
    found = verdict(like(*parts, 3, 20), "nDCG@10")
    queries, seeds = numbers(found.settled_by)
    assert "more test queries together with about" in found.settled_by
    assert 0.73 <= settled(*parts, 3 + seeds, 20 + queries) <= 0.95


def test_a_single_query_says_nothing():
    found = verdict(np.array([[0.5]]), "nDCG@10")
    assert str(found) == (
        "cannot tell: nDCG@10 +0.500 [+nan, +nan] over 1 queries, one seed; more test queries would settle it"
    )


def test_a_spread_over_several_corpora_by_hand():
    """Two seeds on two corpora: the same formulas, the corpora's means averaged."""
    rng = np.random.default_rng(0)
    strata = [rng.normal(0.1, 0.2, (2, q)) + np.array([[0.0], [0.3]]) for q in (4, 6)]
    found = spread(strata)
    of_seed = (strata[0].mean(1) + strata[1].mean(1)) / 2
    by_query = sum(d.mean(0).var(ddof=1) / d.shape[1] / 4 for d in strata)
    rests = [
        ((d - d.mean(0) - d.mean(1, keepdims=True) + d.mean()) ** 2).sum() / (d.shape[1] - 1) for d in strata
    ]
    left = sum(rest / 2 / d.shape[1] / 4 for rest, d in zip(rests, strata, strict=True))
    assert found.mean == pytest.approx(of_seed.mean()) and found.by_query == pytest.approx(by_query)
    assert found.by_seed == pytest.approx(of_seed.var(ddof=1) / 2 - left) and found.by_seed > 0
    one = [d[:1] for d in strata]
    welch = significance.t_test(one)[0]
    assert spread(one).p_value == pytest.approx(welch)


def test_the_p_value_belongs_to_the_interval():
    differences = np.random.default_rng(0).normal(0.02, 0.2, (3, 60))
    found = spread([differences])
    at_the_end = replace(found, mean=found.half)
    assert at_the_end.p_value == pytest.approx(0.05)
    one = spread([differences[:1]])
    assert one.p_value == pytest.approx(stats.ttest_1samp(differences[0], 0).pvalue)
    assert spread([np.zeros((3, 9))]).p_value == 1.0 and spread([np.ones((3, 9))]).p_value == 0.0


def test_equal_students_are_no_worse():
    found = verdict(np.zeros((3, 50)), "nDCG@10")
    assert (found.word, found.low, found.high) == ("no worse", 0.0, 0.0)
