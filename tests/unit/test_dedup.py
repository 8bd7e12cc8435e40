"""Duplicate passages against the paper's description taken literally."""

import itertools
import re
import unicodedata

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dense_retrieval.corpus import dedup
from dense_retrieval.corpus.dedup import comparable, duplicates
from dense_retrieval.corpus.text import passage_text


def table(texts: list[str]) -> Dataset:
    return Dataset.from_dict({"text": texts})


def contained(texts: list[str], shortest: int, neighbours: int) -> list[int]:
    """By the definition, all pairs: too short, or contained in one of the next few, forwards or backwards."""
    left = [(comparable(t), i) for i, t in enumerate(texts) if len(comparable(t)) >= shortest]
    stays = {i for _, i in left}
    for direction in (1, -1):
        # how many come between two of them; of equal ones the first comes last
        ranks = {item: (item[0][::direction], -item[1]) for item in left}
        for short in left:
            for long in left:
                between = sum(ranks[short] < ranks[other] <= ranks[long] for other in left)
                if short[0] in long[0] and 1 <= between <= neighbours:
                    stays.discard(short[1])
    return sorted(set(range(len(texts))) - stays)


WORDS = st.sampled_from(["kale", "is", "a", "cabbage", "rock", "é", "12", "ﬁn", "—"])
LETTERS = st.text("ab", max_size=6)
TEXTS = st.lists(st.lists(WORDS, max_size=9).map(" ".join), max_size=25) | st.lists(LETTERS, max_size=25)


@given(
    texts=TEXTS,
    shortest=st.integers(1, 10),
    neighbours=st.integers(1, 4) | st.just(100),
    key=st.integers(1, 12),
    at_once=st.integers(1, 9),
)
@example(texts=["abba", "bb", "abb"], shortest=1, neighbours=100, key=1, at_once=9)
@settings(max_examples=60, deadline=None)
def test_equals_the_definition_whatever_the_sizes(texts, shortest, neighbours, key, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "MIN_CHARACTERS", shortest)
        patch.setattr(dedup, "_KEY", key)
        patch.setattr(dedup, "_AT_ONCE", at_once)
        found = duplicates(table(texts), neighbours=neighbours)
    assert found.tolist() == contained(texts, shortest, neighbours)


@given(TEXTS)
@settings(max_examples=60, deadline=None)
def test_what_is_dropped_is_contained_in_what_stays(texts):
    dropped = set(duplicates(table(texts)).tolist())
    shown = [comparable(t) for t in texts]
    stay = [t for i, t in enumerate(shown) if i not in dropped]
    for row in dropped:
        assert len(shown[row]) < 10 or any(shown[row] in other for other in stay)
        assert shown[row] not in stay or shown.index(shown[row]) < row
    assert len(set(stay)) == len(stay)
    for start, end in itertools.permutations(stay, 2):  # found whatever stands between them
        assert not end.startswith(start) and not end.endswith(start)


def test_what_is_dropped_contains_others_still():
    """An end of a passage that is itself the beginning of another one."""
    assert duplicates(table(["rock of lavas", "a rock of lavas", "a rock of lavas cooled"])).tolist() == [
        0,
        1,
    ]


def test_titles_are_not_compared():
    titles = ["Kale", "Borecole", " A rock\nthat is a very long title ", "", "Fen", "A title without a text"]
    texts = [
        "It is a leaf cabbage.",
        "It is a leaf cabbage.",
        "Wetland",
        "Kale is a leaf",
        "Fen wetlands",
        "",
    ]
    for titled, cut, expected in ((True, None, [1, 2, 5]), (True, 12, [0, 1, 2, 4, 5]), (False, None, [])):
        shown = [
            passage_text(title, text, "title_and_text", cut)
            for title, text in zip(titles, texts, strict=True)
        ]
        passages = Dataset.from_dict({"title": titles, "text": shown})
        assert duplicates(passages, titled=titled).tolist() == expected


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
