"""Duplicate passages against the paper's description taken literally."""

import re
import unicodedata

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from dense_retrieval.corpus import dedup
from dense_retrieval.corpus.dedup import comparable, duplicates


def table(texts: list[str]) -> Dataset:
    return Dataset.from_dict({"text": texts})


def literal(texts: list[str], neighbours: int) -> list[int]:
    """Everything in memory: sort, look at the next few, sort by the reversed text, again."""
    left = [(comparable(t), i) for i, t in enumerate(texts) if len(comparable(t)) >= 10]
    for direction in (1, -1):
        left = sorted(((t[::direction], i) for t, i in left), key=lambda item: (item[0], -item[1]))
        left = [
            (t[::direction], i)
            for at, (t, i) in enumerate(left)
            if not any(t in other for other, _ in left[at + 1 : at + 1 + neighbours])
        ]
    return sorted(set(range(len(texts))) - {i for _, i in left})


WORDS = st.sampled_from(["kale", "is", "a", "cabbage", "rock", "é", "12", "ﬁn", "—"])
TEXTS = st.lists(st.lists(WORDS, max_size=9).map(" ".join), max_size=25)


@given(texts=TEXTS, neighbours=st.integers(1, 4), key=st.integers(1, 12), at_once=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_equals_the_literal_algorithm_whatever_the_sizes(texts, neighbours, key, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "_KEY", key)
        patch.setattr(dedup, "_AT_ONCE", at_once)
        found = duplicates(table(texts), neighbours)
    assert found.tolist() == literal(texts, neighbours)


@given(TEXTS)
@settings(max_examples=60, deadline=None)
def test_what_is_dropped_is_contained_in_what_stays(texts):
    dropped = set(duplicates(table(texts)).tolist())
    stay = [comparable(t) for i, t in enumerate(texts) if i not in dropped]
    for row in dropped:
        assert len(comparable(texts[row])) < 10 or any(comparable(texts[row]) in other for other in stay)
    assert len(set(stay)) == len(stay)


def test_by_hand():
    texts = [
        "Basalt is a dark rock of cooled lava.",  # 0 stays: the first of equal ones
        "BASALT is a dark rock, of cooled lava (1999)!",  # 1 equal
        "Basalt is a dark rock",  # 2 a beginning
        "a dark rock of cooled lava",  # 3 an end
        "The café's naïve rôle: a résumé",  # 4 stays
        "the cafes naive role\na resume",  # 5 equal without accents
        "is a dark rock of",  # 6 in the midst, and no neighbour: stays
        "123 456 789 0123",  # 7 nothing left
        "Too short",  # 8
        "Full width ｔｅｘｔ",  # 9 stays
        "full width text",  # 10 equal
    ]
    assert duplicates(table(texts), neighbours=2).tolist() == [1, 2, 3, 5, 7, 8, 10]


def test_only_the_first_2048_characters_count():
    long = "abcdefghij " * 300
    assert duplicates(table([long + "one", long + "two"])).tolist() == [1]


@given(st.text(max_size=60))
def test_comparable_is_what_the_paper_says(text):
    folded = unicodedata.normalize("NFKC", text.lower())
    marks = "".join(c for c in unicodedata.normalize("NFD", folded) if unicodedata.category(c) != "Mn")
    letters = "".join(c for c in marks if unicodedata.category(c)[0] not in "NPS")
    assert comparable(text) == re.sub(r"\s+", " ", unicodedata.normalize("NFKD", letters)).strip()


def test_an_empty_corpus():
    assert duplicates(table([])).dtype == np.int64
