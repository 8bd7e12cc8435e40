"""Queries that repeat an earlier one, and what a step from written to trained queries writes and counts."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dense_retrieval.queries.clean import load_queries
from dense_retrieval.queries.distinct import content_words, distinct_queries, near_duplicates
from dense_retrieval.records import QUERIES, read_table, table


@pytest.mark.parametrize(
    ("earlier", "later", "similarity"),
    [
        ("What is the purpose of science?", "what is PURPOSE of “science”", 1),
        ("What are the four fundamental interactions?", "what are the fundamental interactions?", 3 / 4),
        ("What is the atomic number of argon?", "What is the atomic number of neon?", 3 / 5),
        ("vitamin C deficiency", "vitamin D deficiency", 2 / 4),
        ("Kale is eaten", "Kale is not eaten", 2 / 3),
        ("Battle of 1816", "Battle of 1916", 1 / 3),
        ("ﬁre ants", "fire ants", 1),
        ("is it this?", "is it that?", 2 / 4),  # stop words alone
        ("什么是羽衣甘蓝?", "什么是羽衣甘蓝？", 1),
        ("什么是羽衣甘蓝?", "什么是甘蓝?", 0),
        ("???", "!!!", 0),
    ],
)
def test_how_similar_two_queries_are(earlier, later, similarity):
    both = content_words(earlier), content_words(later)
    assert len(both[0] & both[1]) / len(both[0] | both[1]) == pytest.approx(similarity)
    if similarity:
        assert near_duplicates([earlier, later], similarity).tolist() == [-1, 0]
    assert near_duplicates([earlier, later], min(1, similarity + 0.01)).tolist() == [
        -1,
        0 if similarity == 1 else -1,
    ]


def naive(texts: list[str], similarity: float) -> list[int]:
    """Each text against all earlier ones that stay."""
    words, found = [set(text.split()) for text in texts], []
    for row, of in enumerate(words):
        earlier = (e for e in range(row) if found[e] < 0)
        same = [e for e in earlier if len(of & words[e]) / len(of | words[e]) >= similarity - 1e-12]
        found.append(same[0] if same else -1)
    return found


@given(
    st.lists(st.lists(st.sampled_from("bcdefghijk"), min_size=1, max_size=9).map(" ".join), max_size=30),
    st.sampled_from([0.3, 0.5, 0.55, 0.6, 2 / 3, 0.7, 0.8, 0.9, 1]),
)
def test_no_pair_is_missed(texts, similarity):
    assert near_duplicates(texts, similarity).tolist() == naive(texts, similarity)


def test_a_chain_of_similar_queries_ends_where_it_is_too_far_from_the_first():
    """The third repeats the second, which is dropped, and not the first."""
    assert near_duplicates(["b c d e", "b c d e f", "b c d e f g"], 0.8).tolist() == [-1, 0, -1]


def test_what_a_step_keeps_drops_and_counts(tmp_path):
    rows = [
        ("claim", 0, "argon is a gas"),
        ("web", 0, "Argon: a gas"),
        ("claim", 1, "argon is the gas"),  # for another passage
        ("claim", 2, "neon glows"),  # held out
        ("claim", 3, "neon glows"),  # so not repeated by this one, whose passage is a duplicate
        ("claim", 4, "neon glows"),
        ("title", 4, "argon gas"),  # of no type that is trained on
    ]
    kinds, sources, texts = zip(*rows, strict=True)
    columns = {"id": [str(n) for n in range(7)], "text": texts, "querytype": kinds, "source": sources}
    by_type = {
        "claim": {"generated": 6, "cleaned": 4, "dropped": {"copied": 2}},
        "title": {"generated": 1, "cleaned": 1, "dropped": {}},
        "web": {"generated": 1, "cleaned": 1, "dropped": {}},
    }
    (tmp_path / "stage.json").write_text(json.dumps({"counts": {"by type": by_type}}))
    queries = SimpleNamespace(path=tmp_path, load=lambda: table(columns, QUERIES))
    untrained = {
        name: SimpleNamespace(load=lambda of=of: np.array([of]))
        for name, of in [("heldout", 2), ("duplicates", 3)]
    }
    (out := tmp_path / "out").mkdir()
    counts = distinct_queries.function(Path(out), queries, untrained, types=["claim", "web"], similarity=0.9)
    assert load_queries(out)["id"][:] == ["0", "5"]
    dropped = read_table(out / "dropped.arrow")
    assert dict(zip(dropped["id"], dropped["reason"], strict=True)) == {
        "1": "near-duplicate",
        "2": "near-duplicate",
        "4": "of a duplicate passage",
    }
    assert dropped["text"][0] == "Argon: a gas"
    reasons = {"copied": 2, "near-duplicate": 1, "of a duplicate passage": 1}
    assert counts == {
        "queries": 2,
        "by type": {
            "claim": {"generated": 6, "cleaned": 4, "dropped": reasons, "distinct": 2},
            "web": {"generated": 1, "cleaned": 1, "dropped": {"near-duplicate": 1}, "distinct": 0},
        },
    }
