"""A budget of queries: which passages it is spent on, when it ends, and that nothing is paid for twice."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import scipy.stats
from datasets import Dataset

from dense_retrieval.comparison.page import _budget
from dense_retrieval.evaluation.learning_curve import Point, learning_curve
from dense_retrieval.evaluation.report import curve
from dense_retrieval.groups.disagreement import disagreement, mean_disagreement
from dense_retrieval.queries.asked import asked_passages, choose
from dense_retrieval.records import (
    PASSAGES,
    QUERIES,
    RAW_QUERIES,
    Asked,
    CandidateList,
    Corpus,
    InputError,
    TestSet,
    features,
    table,
)
from dense_retrieval.stage import Folder


class Given(Folder):
    """An input that is there."""

    def __init__(self, value, path=None):
        self.value, self._path, self.key = value, path, "given"

    @property
    def path(self):
        return self._path

    def load(self):
        return self.value


def test_disagreement_by_hand():
    """Two lists of three and of two passages; passage 4 is in none, and 2 was not scored in the second."""
    passages = np.array([[0, 1, 2], [1, 3, 2], [-1, -1, -1]])
    teacher = np.array([np.log([6, 3, 1]), [*np.log([1, 3]), np.nan], [-np.inf] * 3])
    student = np.array([np.log([2, 2, 1]), np.log([1, 1, 9]), [0] * 3])
    found = mean_disagreement(passages, teacher, student, 1.0, 1.0, 5)
    first, second = [0.6 - 0.4, 0.3 - 0.4, 0.1 - 0.2], [0.25 - 0.5, 0.75 - 0.5]
    expected = [first[0], (abs(first[1]) + abs(second[0])) / 2, abs(first[2]), second[1], math.nan]
    assert found == pytest.approx(expected, nan_ok=True)
    # at half the temperature a softmax is that of squared odds
    squared = mean_disagreement(passages[:1], teacher[:1], student[:1], 0.5, 1.0, 3)
    assert squared == pytest.approx([36 / 46 - 0.4, abs(9 / 46 - 0.4), abs(1 / 46 - 0.2)])


def test_the_stage_compares_normalised_scores_with_cosines(tmp_path):
    found = CandidateList(np.array([[0, 1]]), np.zeros((1, 2), np.float32))
    np.save(tmp_path / "normalised.npy", np.array([[1.0, 0.0]], np.float32))
    embedded = np.eye(2, dtype=np.float32)
    counts = disagreement.function(
        tmp_path,
        Given(found),
        Given(None, tmp_path),
        Given(None),
        Given(embedded[1:]),
        Given(embedded),
        Given({"teacher_temperature": 0.5, "student_temperature": 1.0}),
    )
    teacher, student = (1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1)))
    assert np.load(tmp_path / "disagreement.npy") == pytest.approx([teacher - student] * 2)
    assert counts == {"pairs": 2, "known": 2}


def test_those_of_greatest_disagreement_come_next_and_the_unknown_last():
    pool, price = np.array([5, 2, 0, 4, 1, 3]), np.array([1, 2, 2, 1, 1, 1])
    first = choose(pool, price, 3)
    assert first.tolist() == [5, 2]
    known = np.array([0.3, np.nan, 9.0, 0.5, np.nan, 9.0])
    assert choose(pool, price, 4, first, known).tolist() == [5, 2, 3]
    assert choose(pool, price, 5, first, known).tolist() == [5, 2, 0, 3]
    assert choose(pool, price, 6, first, known).tolist() == [5, 2, 0, 4, 3]  # of 4 and 1, the pool's first
    assert choose(pool, price, 5, first).tolist() == [5, 2, 0, 4]
    assert choose(pool, price, 99, first, known).tolist() == pool.tolist()
    assert choose(pool, price, 3, first, known).tolist() == first.tolist()


def corpus_of(n: int) -> Corpus:
    rows = {"id": [str(i) for i in range(n)], "title": [""] * n, "text": ["text"] * n}
    return Corpus(Dataset.from_dict(rows, features(PASSAGES)), {}, {}, np.zeros(0, dtype=np.int64))


def test_only_passages_of_a_file_s_queries_of_the_types_are_paid_for(tmp_path):
    source, types = [0, 0, 1, 2, 3, 3, 5], ["claim", "web", "claim", "web", "claim", "claim", "claim"]
    columns = {"id": list("abcdefg"), "text": list("abcdefg"), "querytype": types, "source": source}
    there = table(columns | {"finish": ["stop"] * 7}, RAW_QUERIES)
    settings = {"types": ["claim"], "seed": 0}
    inputs = [Given(corpus_of(6)), {"heldout": Given(np.array([5]))}, Given(there)]
    counts = asked_passages.function(tmp_path, *inputs, None, None, queries=100, **settings)
    asked = Asked.load(tmp_path / "asked.npz")
    assert sorted(zip(asked.rows.tolist(), asked.queries.tolist(), strict=True)) == [(0, 1), (1, 1), (3, 2)]
    assert counts == {"queries": 4, "new": 4, "passages": 3} and asked.left == 0
    with pytest.raises(InputError, match=r"generator.budget: 1 queries of types claim, its first part"):
        asked_passages.function(tmp_path, *inputs, None, None, queries=1, **settings)


@pytest.mark.parametrize(
    ("found", "first", "left", "ended"),
    [
        ([0, 0, 0, 0], False, 3, True),  # none is better
        ([1, 0, 0, 0], False, 3, False),  # 0.25 and surely not more than 1.05
        ([1, 1, 1, 1], False, 3, False),
        ([0, 0, 0, 0], True, 3, False),
        ([1, 1, 1, 1], False, 0, True),
    ],
)
def test_it_ends_where_the_gain_is_surely_small(tmp_path, found, first, left, ended):
    """Of four queries those find their passage that say so; before, none did."""
    point = measured(tmp_path, [0] * 4, found, first, left)
    assert (point.queries, point.passages, point.dev) == (5, 2, 4)
    assert point.mean == point.gain == sum(found) / 4 and point.ended == ended


def test_the_gain_s_interval_is_the_paired_t_test_s(tmp_path):
    before, after = [1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 1, 1]
    point = measured(tmp_path, before, after, False, 3)
    differences = np.array(after) - before
    expected = scipy.stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (point.gain, point.low, point.high) == pytest.approx((differences.mean(), *expected))


@pytest.mark.parametrize(("losses", "ended"), [(20, True), (0, False)])
def test_with_many_queries_a_small_gain_ends_it(tmp_path, losses, ended):
    before, after = np.zeros(5_000), np.zeros(5_000)
    after[:50], before[1_000 : 1_000 + losses] = 1, 1  # a gain of 0.010, or of 0.006
    assert measured(tmp_path, before, after, False, 3).ended == ended


def measured(folder, before, after, first, left) -> Point:
    """Of the students that find the passages of those queries for which a list has 1."""
    n = len(after)
    queries = {"id": ["q"] * n, "text": ["q"] * n, "querytype": ["claim"] * n, "source": list(range(n))}
    tested = TestSet.of_sources(table(queries, QUERIES))

    def ranking(hits):
        rows = np.where(np.array(hits) > 0, np.arange(n), n)
        return Given(CandidateList(rows[:, None], np.ones((n, 1), np.float32)))

    asked = Given(Asked(np.array([0, 1]), np.array([2, 3]), np.array(left)))
    learning_curve.function(
        folder, Given(tested), ranking(after), ranking(before), asked, metric="nDCG@10", first=first
    )
    return Point.load(folder)


def test_the_curve_is_said_in_words_and_in_a_table():
    points = [
        Point("nDCG@10", 0, 0, 60, 0.5, None, None, None, False),
        Point("nDCG@10", 1200, 171, 60, 0.52, 0.02, -0.002, 0.042, True),
    ]
    assert curve(points) == (
        "  untuned student: nDCG@10 0.500 on 60 dev queries\n"
        "  1,200 queries of 171 passages: nDCG@10 0.520 on 60 dev queries, +0.020 [-0.002, +0.042]"
    )
    assert _budget([asdict(point) for point in points]) == [
        ["queries", "passages", "nDCG@10 on 60 dev queries", "gain", "95 % interval"],
        ["0", "0", "0.500", "", ""],
        ["1200", "171", "0.520", "+0.020", "-0.002 to +0.042"],
    ]
