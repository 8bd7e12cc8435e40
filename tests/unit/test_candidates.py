"""BM25 against its formula, by both libraries; fusion and filters against hand counts and naive loops."""

import gzip
import json
import math
from collections import Counter
from pathlib import Path

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dense_retrieval
from dense_retrieval.candidates import filters, fusion, postings
from dense_retrieval.candidates.bm25 import BM25
from dense_retrieval.records import CandidateList, InputError

ARTICLES = Path(dense_retrieval.__file__).parent / "corpus" / "wikivital" / "articles.jsonl.gz"
WORDS = ["cell", "star", "planet", "acid", "bird", "river", "the"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)


def lists(rows: list[list[int]], k: int) -> CandidateList:
    """Candidate lists with scores 1, 1/2, 1/3 ..., padded to k."""
    passages = np.full((len(rows), k), -1, dtype=np.int64)
    scores = np.full((len(rows), k), -np.inf, dtype=np.float32)
    for query, row in enumerate(rows):
        passages[query, : len(row)] = row
        scores[query, : len(row)] = 1 / np.arange(1, len(row) + 1)
    return CandidateList(passages, scores)


def rows_of(candidates: CandidateList) -> list[list[int]]:
    assert ((candidates.passages < 0) == (candidates.scores == -np.inf)).all()
    assert (np.diff((candidates.passages < 0).astype(int), axis=1) >= 0).all(), "padding is at the end"
    return [[p for p in row if p >= 0] for row in candidates.passages.tolist()]


def formula(passages: list[str], query: str, k1: float, b: float) -> list[float]:
    """Lucene's BM25, as published, word by word."""
    words = [[w for w in p.split() if w != "the"] for p in passages]
    mean = sum(map(len, words)) / len(words)
    scores = []
    for passage in words:
        score = 0.0
        for word in query.split():
            df, tf = sum(word in other for other in words), Counter(passage)[word]
            idf = math.log(1 + (len(words) - df + 0.5) / (df + 0.5))
            score += 0 if word == "the" else idf * tf / (tf + k1 * (1 - b + b * len(passage) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("library", ["bm25s", "rank_bm25"])
@settings(max_examples=40, deadline=None)
@given(
    passages=st.lists(TEXTS, min_size=1, max_size=12).filter(lambda ps: set(" ".join(ps).split()) - {"the"}),
    query=TEXTS,
    k=st.integers(1, 14),
    k1=st.sampled_from([0.9, 1.5]),
)
def test_bm25_is_its_formula(library, passages, query, k, k1):
    found = BM25(passages, library=library, k1=k1, b=0.75).search([query], k)
    expected = np.round(formula(passages, query, k1, 0.75), 9)
    order = [row for row in np.argsort(-expected, kind="stable") if expected[row] > 0][:k]
    assert rows_of(found) == [order]
    np.testing.assert_allclose(found.scores[0, : len(order)], expected[order], rtol=1e-6)


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4)])
def test_libraries_rank_real_articles_alike(k1, b):
    with gzip.open(ARTICLES, "rt") as stream:
        articles = [json.loads(line) for line, _ in zip(stream, range(400), strict=False)]
    passages = [f"{article['title']} {article['text']}" for article in articles]
    queries = [article["description"] or "" for article in articles[:60]]
    one, other = (BM25(passages, library=x, k1=k1, b=b).search(queries, 100) for x in ("bm25s", "rank_bm25"))
    np.testing.assert_array_equal(one.passages, other.passages)
    np.testing.assert_array_equal(one.scores, other.scores)
    assert np.mean([row in found for row, found in enumerate(one.passages[:, :10])]) > 0.5


@pytest.mark.parametrize("library", ["bm25s", "rank_bm25"])
def test_bm25_without_common_words(library):
    passages = ["A bird, and a BIRD!", "", "the of", "a bird in the river"]
    found = BM25(passages, library=library).search(["birds", "", "the", "Bird", "river river"], 3)
    assert rows_of(found) == [[], [], [], [0, 3], [3]]


def naive_best(scores: np.ndarray, k: int) -> tuple[list[int], list[float]]:
    """Rows and values of the k greatest positive scores, rounded, ties by row."""
    rows = np.flatnonzero(scores)
    values = scores[rows].round(9)
    order = np.argsort(-values, kind="stable")[:k]
    return rows[order].tolist(), values[order].tolist()


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 700),
    values=st.integers(1, 40),
    k=st.sampled_from([1, 2, 5, 64, 100, 400, 1000]),
    order=st.sampled_from(["random", "rising", "falling"]),
)
def test_the_best_are_those_of_a_stable_sort(seed, n, values, k, order):
    """Few values, so that many tie, some of them only when they are rounded."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, values, n) / 7 + rng.choice([0.0, 1e-13, 4e-10, 6e-10], n)
    if order != "random":
        scores = np.sort(scores)[:: 1 if order == "rising" else -1].copy()
    expected = naive_best(scores, k)
    rows, found = np.full((1, k), -1), np.full((1, k), -np.inf)
    postings.take_best(scores, rows[0], found[0])
    rows, found = postings.ranked(rows, found)
    assert rows[0].tolist() == expected[0] + [-1] * (k - len(expected[0]))
    assert found[0].tolist() == expected[1] + [-np.inf] * (k - len(expected[1]))
    assert not scores.any()  # ready for the next query


@settings(max_examples=25, deadline=None)
@given(
    passages=st.lists(TEXTS, min_size=1, max_size=200).filter(lambda ps: set(" ".join(ps).split()) - {"the"}),
    queries=st.lists(TEXTS, max_size=40),
    k=st.sampled_from([1, 3, 50, 300]),
)
def test_a_search_is_a_sort_of_bm25s_own_scores(passages, queries, k):
    words = bm25s.tokenize(passages, stopwords="en", show_progress=False)
    theirs = bm25s.BM25(dtype="float64")
    theirs.index(words, create_empty_token=False, show_progress=False)
    found = BM25(passages).search(queries, k)
    assert found.passages.shape == found.scores.shape == (len(queries), k)
    for row, query in enumerate(queries):
        ids = [words.vocab[word] for word in query.split() if word in words.vocab]
        rows, values = naive_best(theirs.get_scores_from_ids(ids), k)
        assert rows_of(found)[row] == rows
        assert found.scores[row, : len(rows)].tolist() == np.float32(values).tolist()


@pytest.mark.parametrize("library", ["bm25s", "rank_bm25"])
def test_an_index_on_disk_is_the_one_in_memory(library, tmp_path):
    passages = ["A bird, and a BIRD!", "", "the of", "a bird in the river", "a planet's river"]
    queries = ["river bird", "zebra", "planet"]
    built = BM25(passages, library=library, k1=0.9, b=0.4)
    built.save(tmp_path)
    loaded = BM25.load(tmp_path)
    one, other = built.search(queries, 3), loaded.search(queries, 3)
    np.testing.assert_array_equal(one.passages, other.passages)
    np.testing.assert_array_equal(one.scores, other.scores)
    pairs = CandidateList(np.array([[0, 3], [1, 2], [4, -1]]), np.zeros((3, 2)))
    np.testing.assert_array_equal(built.score(queries, pairs).scores, loaded.score(queries, pairs).scores)


def test_a_word_of_every_passage_still_finds():
    found = BM25(["same word"] * 20_000).search(["same"], 3)
    assert rows_of(found) == [[0, 1, 2]]


def test_bm25_names_what_is_wrong():
    with pytest.raises(InputError, match="rank_bm25"):
        BM25(["bird"], library="lucene")
    with pytest.raises(InputError, match="no passage has a word"):
        BM25(["", "the a of"])


def test_reciprocal_rank_by_hand():
    fused = fusion.reciprocal_rank([lists([[7, 3], [4]], 3), lists([[3, 5, 7], []], 3)])
    assert rows_of(fused) == [[3, 7, 5], [4]]
    expected = [1 / 61 + 1 / 62, 1 / 61 + 1 / 63, 1 / 62]
    np.testing.assert_allclose(fused.scores[0], expected, rtol=1e-6)
    np.testing.assert_allclose(fused.scores[1, 0], 1 / 61, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.permutations(range(9))] * 3), min_size=1, max_size=3), n=st.integers(1, 9)
)
def test_reciprocal_rank_is_a_sum_over_lists(rows, n):
    """Equal sums, which three lists add up in any order, are ordered by row."""
    retrievers = [lists([row[i][: n - i] for row in rows], 9) for i in range(3)]
    fused = fusion.reciprocal_rank(retrievers, k=10)
    for query, ranked in enumerate(rows_of(fused)):
        total = Counter()
        for retriever in retrievers:
            for rank, passage in enumerate(retriever.passages[query], 1):
                if passage >= 0:
                    total[int(passage)] += 1 / (10 + rank)
        assert ranked == sorted(total, key=lambda p: (-round(total[p], 11), p))[:9]


@given(
    rows=st.lists(st.permutations(range(8)).map(lambda p: p[:6]), min_size=1, max_size=5),
    heldout=st.sets(st.integers(0, 9)),
    size=st.integers(1, 8),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_filters_are_naive_loops(rows, heldout, size, data):
    source = data.draw(st.lists(st.integers(-1, 8), min_size=len(rows), max_size=len(rows)))
    left = filters.drop_passages(lists(rows, 6), np.array(sorted(heldout), dtype=np.int64))
    expected = [[p for p in row if p not in heldout] for row in rows]
    assert rows_of(left) == expected
    for query, row in enumerate(expected):  # each passage keeps its own score
        np.testing.assert_array_equal(
            left.scores[query, : len(row)], np.float32([1 / (rows[query].index(p) + 1) for p in row])
        )

    kept = filters.keep_source_within(left, np.array(source), size)
    assert kept.tolist() == [s in row[:size] for s, row in zip(source, expected, strict=True)]

    cut = filters.cut(left, np.array(source), size)
    for query, row in enumerate(rows_of(cut)):
        np.testing.assert_array_equal(
            cut.scores[query, : len(row)], np.float32([1 / (rows[query].index(p) + 1) for p in row])
        )
    for row, s, all_left in zip(rows_of(cut), source, expected, strict=True):
        if s in all_left[size:]:
            assert row == [*all_left[: size - 1], s]
        else:
            assert row == all_left[:size]


def test_equal_sums_are_ties_in_whatever_order_they_are_added():
    """In floating point, 1/61 + 1/67 + 1/62 is less than 1/62 + 1/61 + 1/67."""
    ranks = {5: (1, 7, 2), 8: (2, 1, 7)}
    rows = [[10 + 10 * i + rank for rank in range(7)] for i in range(3)]
    for passage, of_passage in ranks.items():
        for row, rank in zip(rows, of_passage, strict=True):
            row[rank - 1] = passage
    fused = fusion.reciprocal_rank([lists([row], 7) for row in rows])
    assert fused.passages[0, :2].tolist() == [5, 8]


def test_long_lists_keep_their_order_when_they_close_up():
    rows = np.random.default_rng(0).permutation(200)[:100].tolist()
    left = filters.drop_passages(lists([rows], 100), np.arange(50))
    assert rows_of(left) == [[p for p in rows if p >= 50]]


def test_self_matches_go():
    found = lists([[0, 1, 2], [2, 0, 1], [1]], 3)
    left = filters.drop_self_matches(found, ["b", "query", "b"], ["a", "b", "c"])
    assert rows_of(left) == [[0, 2], [2, 0, 1], []]


@pytest.mark.parametrize("library", ["bm25s", "rank_bm25"])
def test_bm25_of_given_pairs_is_that_of_the_search(library):
    passages = [
        "kale is a cabbage",
        "basalt is a dark rock",
        "a fen is a wet land with kale",
        "rock rock rock",
    ]
    queries = ["kale rock", "dark basalt rock", "zebra", "the"]
    index = BM25(passages, library=library)
    found = index.search(queries, 4)
    asked = CandidateList(np.array([[3, 0, 2], [1, -1, -1], [0, 1, -1], [2, 3, 0]]), np.zeros((4, 3)))
    scored = index.score(queries, asked)
    for row, (rows, values) in enumerate(zip(asked.passages, scored.scores, strict=True)):
        known = dict(zip(found.passages[row].tolist(), found.scores[row].tolist(), strict=True))
        for passage, value in zip(rows.tolist(), values.tolist(), strict=True):
            expected = -np.inf if passage < 0 else known.get(passage, 0.0)
            assert value == pytest.approx(expected, rel=1e-6)
