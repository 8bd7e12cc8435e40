"""How hard queries are, by hand and by naive loops; and that the hardest are kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dense_retrieval.candidates.difficulty import Difficulty, best_rank, hardest, overlap
from dense_retrieval.records import CandidateList


def test_ranks_by_hand():
    passages = np.array([[4, 2, 7], [1, 0, -1], [3, 5, 6]])
    found = CandidateList(passages, -np.arange(9.0).reshape(3, 3))
    relevant = [np.array([7, 2]), np.array([9]), np.array([3])]
    assert best_rank(found, relevant).tolist() == [2, 4, 1]
    assert best_rank(found, [np.array([], dtype=np.int64)] * 3).tolist() == [4, 4, 4]


def test_shared_words_by_hand():
    passages = [["Basalt is cooled lava", "lava"], ["granite"], [], ["anything"]]
    queries = ["Is basalt LAVA or granite?", "pumice, floating", "kale", "the of"]
    assert overlap(queries, passages).tolist() == pytest.approx([2 / 3, 0, 0, 1])


@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 4), st.sampled_from([0, 0.5, 1])), min_size=1, max_size=20
    )
)
def test_what_is_harder_in_everything_is_harder(rows):
    found = Difficulty(*map(np.array, zip(*rows, strict=True)))
    naive = [
        np.mean(
            [
                np.mean([other[0] <= row[0] for other in rows]),
                np.mean([other[1] <= row[1] for other in rows]),
                np.mean([other[2] >= row[2] for other in rows]),
            ]
        )
        for row in rows
    ]
    np.testing.assert_allclose(found.hardness, naive)


def test_the_hardest_of_each_type_are_kept():
    types = ["claim", "title", "claim", "title", "claim", "claim"]
    measured = Difficulty(
        np.array([1, 9, 5, 1, 5, 2]), np.array([1, 9, 5, 1, 5, 2]), np.array([1, 0, 0, 1, 0, 1.0])
    )
    assert hardest(types, measured, 0.5).tolist() == [1, 2, 4]
    assert hardest(types, measured, 0.25).tolist() == [1, 2]  # of equally hard ones the first
    assert hardest(types, measured, 1).tolist() == [*range(6)]
    assert hardest(types, measured, 0.01).tolist() == [1, 2]  # of each type one at least
    assert hardest([], measured[np.array([], dtype=int)], 0.5).tolist() == []


def test_a_profile_by_hand():
    measured = Difficulty(np.array([1, 1001, 1, 3]), np.array([2, 1, 4, 4]), np.array([1.0, 0.5, 0.5, 0]))
    assert measured.profile() == {
        "queries": 4,
        "first by BM25": 0.5,
        "first by the student": 0.25,
        "words in common": 0.5,
    }
