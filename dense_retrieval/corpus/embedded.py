"""Corpora inside this package: English Wikipedia's vital articles, and the sciences among them."""

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dense_retrieval.corpus.text import passage_text
from dense_retrieval.records import PASSAGES, QUERIES, Corpus, Qrels, table

_FOLDER = Path(__file__).parent / "wikivital"


def wikiscience(text: str = "text_only", passage_characters: int | None = 2048) -> Corpus:
    """2,332 articles on the sciences; the queries of both splits are short descriptions by people."""
    split = json.loads((_FOLDER / "science_split.json").read_text())
    by_id = {article["_id"]: article for article in _articles()}
    articles = [by_id[i] for i in split["passages"]]
    row = {i: n for n, i in enumerate(split["passages"])}
    queries = {s: [row[i] for i in split[f"human_{s}"]] for s in ("train", "test")}
    heldout = np.sort([row[i] for i in split["heldout"]])
    return _corpus(articles, queries, heldout, text, passage_characters)


def wikipedia_vital(text: str = "text_only", passage_characters: int | None = 2048) -> Corpus:
    """All 10,033 articles. The test queries are wikiscience's; the training queries are the other
    unique descriptions of four words or more."""
    articles = _articles()
    test_ids = set(json.loads((_FOLDER / "science_split.json").read_text())["human_test"])
    described = _uniquely_described(articles)
    test = [row for row in described if articles[row]["_id"] in test_ids]
    train = sorted(set(described) - set(test))
    none = np.array([], dtype=np.int64)
    return _corpus(articles, {"train": train, "test": test}, none, text, passage_characters)


def teacher_pairs() -> tuple[Corpus, np.ndarray]:
    """(description, article) pairs of the topics outside wikiscience, to train a teacher on.

    Returns:
        The corpus of those 7,701 articles, whose split "train" has the 6,003 pairs, and ``(N,)``
        the topic number of each article.
    """
    science = set(json.loads((_FOLDER / "science_split.json").read_text())["passages"])
    everything = _articles()
    usable = {everything[row]["_id"] for row in _uniquely_described(everything)}
    articles = [a for a in everything if a["_id"] not in science]
    train = [row for row, article in enumerate(articles) if article["_id"] in usable]
    corpus = _corpus(articles, {"train": train}, np.array([], dtype=np.int64), "text_only", None)
    return corpus, np.unique([a["topic"] for a in articles], return_inverse=True)[1]


def _articles() -> list[dict[str, str]]:
    with gzip.open(_FOLDER / "articles.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _uniquely_described(articles: Sequence[dict]) -> list[int]:
    """Rows of the articles whose description has four words or more and is no other article's."""
    times = Counter(article["description"] for article in articles)
    return [
        row
        for row, article in enumerate(articles)
        if article["description"]
        and times[article["description"]] == 1
        and len(article["description"].split()) >= 4
    ]


def _corpus(
    articles: Sequence[dict],
    described: dict[str, list[int]],
    heldout: np.ndarray,
    text: str,
    passage_characters: int | None,
) -> Corpus:
    """A corpus whose queries are the descriptions of some articles, by split."""
    passages = {
        "id": [a["_id"] for a in articles],
        "title": [a["title"] for a in articles],
        "text": [passage_text(a["title"], a["text"], text, passage_characters) for a in articles],
    }
    queries, qrels = {}, {}
    for split, rows in described.items():
        columns = {
            "id": [f"description-{articles[row]['_id']}" for row in rows],
            "text": [articles[row]["description"] for row in rows],
            "querytype": ["human"] * len(rows),
            "source": rows,
        }
        queries[split] = table(columns, QUERIES)
        ones = np.ones(len(rows), dtype=np.int64)
        qrels[split] = Qrels(np.arange(len(rows)), np.array(rows, dtype=np.int64), ones)
    return Corpus(table(passages, PASSAGES), queries, qrels, heldout)
