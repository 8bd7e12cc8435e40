"""How hard queries are, by hand and by naive loops; and that the hardest are kept."""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import WORDS
from hypothesis import given
from hypothesis import strategies as st

from dense_retrieval.candidates.bm25 import BM25
from dense_retrieval.candidates.difficulty import Difficulty, best_rank, difficulty, hardest, overlap
from dense_retrieval.records import PASSAGES, QUERIES, CandidateList, TestSet, table


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


def test_a_sample_is_measured_as_all_are():
    """Against ranks by naive sorting."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 12)) for _ in range(30)]
    rows = rng.permutation(30)[:9]
    columns = {"id": [f"q{n}" for n in range(9)], "text": [" ".join(texts[row].split()[:3]) for row in rows]}
    queries = table(columns | {"querytype": ["claim"] * 9, "source": rows.tolist()}, QUERIES)
    passages = table({"id": list(map(str, range(30))), "title": [""] * 30, "text": texts}, PASSAGES)
    embedded = rng.normal(size=(9, 4)).astype(np.float32), rng.normal(size=(30, 4)).astype(np.float32)
    inputs = TestSet.of_sources(queries), SimpleNamespace(passages=passages), BM25(texts), *embedded
    found = {}
    for sample in (None, 4):
        with tempfile.TemporaryDirectory() as folder:
            folders = [SimpleNamespace(load=lambda of=of: of) for of in inputs]
            difficulty.function(Path(folder), *folders, sample=sample, device="cpu")
            found[sample] = Difficulty.load(Path(folder))
    scores = embedded[0] @ embedded[1].T
    naive = [1 + (scores[q] > scores[q, row]).sum() for q, row in enumerate(rows)]
    assert found[None].student.tolist() == naive and found[None].rows.tolist() == [*range(9)]
    chosen = found[4].rows
    assert len(chosen) == 4
    for name in ("bm25", "student", "overlap"):
        assert getattr(found[4], name).tolist() == getattr(found[None], name)[chosen].tolist()


def test_a_profile_by_hand():
    measured = Difficulty(np.array([1, 1001, 1, 3]), np.array([2, 1, 4, 4]), np.array([1.0, 0.5, 0.5, 0]))
    assert measured.profile() == {
        "queries": 4,
        "first by BM25": 0.5,
        "first by the student": 0.25,
        "words in common": 0.5,
    }
