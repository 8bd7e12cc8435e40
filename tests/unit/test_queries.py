"""Cleaning, drawing, and reading queries."""

import gzip
import itertools
import json
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from dense_retrieval.corpus.embedded import wikiscience
from dense_retrieval.queries import draw, files, human
from dense_retrieval.queries.clean import clean
from dense_retrieval.queries.draw import _none_is_lost
from dense_retrieval.queries.prompts import prompts_of
from dense_retrieval.records import PASSAGES, QUERIES, Corpus, InputError, Qrels, features

PASSAGE = "Kale, also called leaf cabbage, belongs to a group of cabbage cultivars primarily grown for their leaves."


@pytest.mark.parametrize(
    ("raw", "querytype", "expected"),
    [
        ('"kale leaves"', "web", "kale leaves"),
        ("Here is a question: What is kale?", "question", "What is kale?"),
        ("Sure! Here's a query:\n“What is kale?”", "question", "What is kale?"),
        ("1. What is kale?\n2. What is cabbage?", "question", "What is kale?"),
        ("- kale varieties", "web", "kale varieties"),
        ("Search for kale varieties", "web", "kale varieties"),
        (
            "The passage clearly states that kale is grown for its leaves.",
            "claim",
            "Kale is grown for its leaves.",
        ),
        ("Factual claim: Kale is grown for its leaves.", "claim", "Kale is grown for its leaves."),
        ("Passage supports the claim that kale is eaten raw.", "claim", "Kale is eaten raw."),
        ("a, b, a, c , d., e, f", "keyword", "a, b, c, d, e"),
        ("Key phrases: kale, green cabbage", "keyword", "kale, green cabbage"),
        ("1. Query: what is kale", "msmarco", "what is kale"),
        ("a) Question 1: What is kale?", "question", "What is kale?"),
        ("# Web search query: kale", "web", "kale"),
        ("Search for Dark Matter at the LHC", "title", "Search for Dark Matter at the LHC"),
        ("E. coli in kale", "title", "E. coli in kale"),
        ("Patients are unable to eat kale", "claim", "Patients are unable to eat kale"),
        ("What is kale?", "question", "What is kale?"),
        ("What is a large language model?", "question", "What is a large language model?"),
        ("I can't sleep at night", "web", "I can't sleep at night"),
        ("\x00\n\x1bWhat\tis\x7f kale\x00\x9b?\x1b", "question", "What is kale?"),
        ("\u200f\u202b\u2067kale\u2069\u061c \u202eleaves\u202c\u200e\ufeff", "web", "kale leaves"),
        ('\x00- \x1b"kale"\x00 ', "web", "kale"),
        ("kale for می\u200cخواهم 👩\u200d🌾", "web", "kale for می\u200cخواهم 👩\u200d🌾"),
    ],
)
def test_a_query_is_cleaned(raw, querytype, expected):
    assert clean(raw, querytype, PASSAGE) == (expected, "")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("It is a leaf vegetable of northern winters.", ("Leaf vegetable of northern winters", "")),
        ("It is the leaf eaten in winter", ("Leaf eaten in winter", "")),
        ("Italian leaf vegetable", ("Italian leaf vegetable", "")),
        ("It is kales in the garden", (None, "names its subject")),
        ("It is a vegetable", (None, "too short")),
        ("A leaf, is it not?", (None, "wrong form")),
    ],
)
def test_a_description_does_not_name_its_subject(raw, expected):
    assert clean(raw, "description", PASSAGE, "Kale (food)") == expected
    assert clean("Kale is eaten in winter", "claim", PASSAGE, "Kale (food)")[1] == ""


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("", "empty"),
        ("Kale is green", "too short"),
        ('""', "empty"),
        ("I'm sorry, but I cannot help with that.", "refusal"),
        ("As a language model, I have no opinion on kale.", "refusal"),
        ("I can't provide a query for this.", "refusal"),
        ("Sorry, but I can't do that.", "refusal"),
        ("Unfortunately, I am unable to write a claim.", "refusal"),
        ("I don't have enough information to write one.", "refusal"),
        ("What does the passage say about kale?", "not self-contained"),
        ("word " * 20, "too long"),
        ("Kale also called leaf cabbage belongs to a group of cabbage cultivars", "copied"),
    ],
)
def test_a_bad_query_is_dropped_with_its_reason(raw, reason):
    assert clean(raw, "claim", PASSAGE) == (None, reason)


@pytest.mark.parametrize(
    ("raw", "querytype", "expected"),
    [
        ("キャベツ, ケール", "keyword", ("キャベツ, ケール", "")),
        ("日本の野菜は健康に良いとされている。", "claim", ("日本の野菜は健康に良いとされている。", "")),
        ("ケールの特徴は何？", "question", ("ケールの特徴は何？", "")),
        ("ケール", "claim", (None, "too short")),
        ("野菜" * 40, "claim", (None, "too long")),
        ("Kale is a vegetable of the winter", "claim", (None, "another script")),
    ],
)
def test_a_language_without_spaces(raw, querytype, expected):
    assert clean(raw, querytype, "ケールはアブラナ科の野菜で、葉を食べる。") == expected


def test_two_types_of_one_name(tmp_path):
    (tmp_path / "claim.yaml").write_text("prompt: 'Write about {passage}'")
    with pytest.raises(InputError, match="two types are called 'claim'; rename"):
        prompts_of(["claim", f"{tmp_path}/claim.yaml"])


def test_a_type_that_cleaning_drops_altogether_says_why():
    counted = {"claim": {"generated": 7, "cleaned": 0, "dropped": {"too long": 5, "wrong form": 2}}}
    with pytest.raises(InputError, match=r"all 7 queries of type 'claim' .*5 too long, 2 wrong form"):
        _none_is_lost(counted, ["claim"])
    _none_is_lost(counted, ["human", "web"])


def table(counts: dict[str, int]) -> Dataset:
    names = [name for name, n in counts.items() for _ in range(n)]
    rows = range(len(names))
    columns = {
        "id": [str(r) for r in rows],
        "text": ["x"] * len(names),
        "querytype": names,
        "source": list(rows),
    }
    return Dataset.from_dict(columns, features(QUERIES))


def test_equal_shares_and_what_a_small_type_lacks_is_shared():
    queries = table({"claim": 50, "web": 50, "title": 4, "question": 50})
    drawn = draw.draw(queries, ["claim", "web", "title"], 30, seed=0)
    assert Counter(drawn["querytype"]) == {"claim": 13, "web": 13, "title": 4}
    assert len(set(drawn["id"])) == 30
    assert draw.draw(queries, ["claim"], 30, 0)["id"] != draw.draw(queries, ["claim"], 30, 1)["id"]
    assert len(draw.draw(queries, ["claim", "web"], None, 0)) == 100


def test_a_type_without_queries_names_those_there_are():
    with pytest.raises(InputError, match="no queries of type 'title'; there are: claim, web"):
        draw.draw(table({"claim": 1, "web": 1}), ["claim", "title"], None, 0)


@pytest.mark.parametrize(("types", "total"), [([], None), (["claim"], 0), (["claim"], -1)])
def test_nothing_to_draw_is_an_error(types, total):
    with pytest.raises(InputError, match=r"querytype.types.*querytype.total"):
        draw.draw(table({"claim": 3}), types, total, 0)


@given(
    counts=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 12), min_size=1),
    total=st.integers(1, 40),
    seed=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_no_type_gives_more_than_one_above_its_share_unless_another_has_no_more(counts, total, seed):
    drawn = draw.draw(table(counts), list(counts), total, seed)
    got = Counter(drawn["querytype"])
    assert len(drawn) == len(set(drawn["id"])) == min(total, sum(counts.values()))
    for name, other in itertools.permutations(counts, 2):
        assert got[name] <= got[other] + 1 or got[other] == counts[other]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "queries.jsonl:2"),
        ('{"passage_id": "p0", "text": "x"}', "queries.jsonl:2.*querytype"),
        ('{"passage_id": "p9", "querytype": "web", "text": "x"}', "queries.jsonl:2: passage_id 'p9'"),
        ("[1]", "queries.jsonl:2"),
        ('{"passage_id": ["p0"], "querytype": "web", "text": "x"}', "queries.jsonl:2: the key 'passage_id'"),
        ('{"passage_id": "p0", "querytype": "web", "text": null}', "queries.jsonl:2: the key 'text'"),
        (
            '{"passage_id": "p0", "querytype": "web", "text": "\\ud800"}',
            "queries.jsonl:2: 'text' is no valid",
        ),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    passages = Dataset.from_dict({"id": ["p0"], "title": [""], "text": ["t"]}, features(PASSAGES))
    good = json.dumps({"passage_id": "p0", "querytype": "web", "text": "x", "other": 1})
    path = tmp_path / "queries.jsonl"
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(InputError, match=message):
        files.read(str(path), passages)
    path.write_text(good)
    assert files.read(str(path), passages)[0] == {
        "id": "p0-web-1",
        "text": "x",
        "querytype": "web",
        "source": 0,
        "finish": "stop",
    }


def test_a_compressed_file_is_read_as_it_was(tmp_path):
    passages = Dataset.from_dict({"id": ["p0"], "title": [""], "text": ["t"]}, features(PASSAGES))
    line = json.dumps({"passage_id": "p0", "querytype": "web", "text": "größer"}).encode()
    (plain := tmp_path / "queries.jsonl").write_bytes(line)
    (packed := tmp_path / "queries.jsonl.gz").write_bytes(gzip.compress(line))
    assert files.read(str(packed), passages)[:] == files.read(str(plain), passages)[:]


def test_no_file_names_the_overrides_that_work():
    with pytest.raises(InputError, match=r"generator.path=FILE.*querytype=human"):
        files.read(None, wikiscience().passages)


def people_s(texts: list[str]) -> Dataset:
    n = len(texts)
    ids = [f"q{i}" for i in range(n)]
    return Dataset.from_dict(
        {"id": ids, "text": texts, "querytype": ["human"] * n, "source": [-1] * n}, features(QUERIES)
    )


def test_a_human_query_that_is_tested_on_is_not_trained_on(caplog):
    passages = Dataset.from_dict({"id": [], "title": [], "text": []}, features(PASSAGES))
    train = people_s(["Kale is green.", "kale  IS\tred. ", "Kale is new", "KALE IS GREEN"])
    judged = Qrels(np.arange(4), np.arange(4) + 7, np.ones(4, dtype=np.int64))
    test, dev = people_s(["KALE is  green.", "Kale is red."]), people_s(["Kale is new"])
    corpus = Corpus(
        passages,
        {"train": train, "test": test, "dev": dev},
        dict.fromkeys(["train", "test", "dev"], judged),
        np.array([]),
    )
    with caplog.at_level("INFO"):
        found = human.from_train_split(corpus)
    assert (found["text"][:], found["source"][:]) == (["Kale is new", "KALE IS GREEN"], [9, 10])
    assert caplog.messages == ["2 human training queries are test queries too: left out"]


def test_the_source_of_a_human_query_is_its_most_relevant_passage():
    queries = people_s(["x", "y", "z"])
    # q1's best passage, row -1, is one that the corpus lacks.
    qrels = Qrels(np.array([0, 0, 1, 1, 1, 2]), np.array([5, 4, -1, 7, 6, 8]), np.array([1, 2, 3, 1, 1, 0]))
    passages = Dataset.from_dict({"id": [], "title": [], "text": []}, features(PASSAGES))
    found = human.from_train_split(Corpus(passages, {"train": queries}, {"train": qrels}, np.array([])))
    assert (list(found["id"]), list(found["source"])) == (["q0", "q1"], [4, 6])
    with pytest.raises(InputError, match="querytype=mixed generator=transformers"):
        human.from_train_split(Corpus(passages, {}, {}, np.array([])))
