"""BEIR's layout as folder, zip and hub snapshot; bad input named by file and line."""

import gzip
import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dense_retrieval.corpus import beir, embedded, holdout
from dense_retrieval.corpus.text import passage_text
from dense_retrieval.records import Corpus, InputError

PASSAGES = [
    {"_id": "d1", "title": "Kale", "text": "A cabbage.\nLeaves."},
    {"_id": "d2", "title": "", "text": "A star"},
    {"_id": "d3", "text": ""},
]
QUERIES = [{"_id": f"q{i}", "text": f"query {i}", "metadata": {}} for i in range(4)]
TSV = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq3\td2\t1\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "tiny"
    (path / "qrels").mkdir(parents=True)
    (path / "corpus.jsonl").write_text("\n".join(map(json.dumps, PASSAGES)) + "\n\n")
    (path / "queries.jsonl").write_text("\n".join(map(json.dumps, QUERIES)))
    (path / "qrels" / "test.tsv").write_text(TSV)
    return path


def check(corpus: Corpus) -> None:
    assert list(corpus.passages["id"]) == ["d1", "d2", "d3"]
    assert list(corpus.passages["text"]) == ["Kale A cabbage. Leaves.", "A star", ""]
    assert list(corpus.queries["test"]["id"]) == ["q1", "q3"]
    qrels = corpus.qrels["test"]
    assert [a.tolist() for a in (qrels.query, qrels.passage, qrels.relevance)] == [
        [0, 0, 1],
        [0, 1, 1],
        [2, 0, 1],
    ]


def test_folder_and_what_is_saved_of_it(folder, tmp_path):
    corpus = beir.read_folder(str(folder))
    check(corpus)
    assert set(corpus.queries) == {"test"}
    (tmp_path / "saved").mkdir()
    corpus.save(tmp_path / "saved")
    check(Corpus.load(tmp_path / "saved"))


def test_gzip_text_only_and_limits(folder):
    with gzip.open(folder / "corpus.jsonl.gz", "wt") as stream:
        stream.write((folder / "corpus.jsonl").read_text())
    (folder / "corpus.jsonl").unlink()
    corpus = beir.read_folder(str(folder), text="text_only", passage_characters=5, query_characters=3)
    assert list(corpus.passages["text"]) == ["A cab", "A sta", ""]
    assert list(corpus.queries["test"]["text"]) == ["que", "que"]


def test_zip(folder, tmp_path):
    shutil.make_archive(str(tmp_path / "tiny"), "zip", tmp_path, "tiny")
    check(beir.read_folder(str(tmp_path / "tiny.zip")))


def test_zip_cannot_write_outside_its_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../escaped.txt", "x")
    with pytest.raises(InputError, match="escaped.txt.*outside"):
        beir.read_folder(str(tmp_path / "evil.zip"))
    assert not list(tmp_path.parent.glob("**/escaped.txt"))


def test_broken_zip(tmp_path):
    (tmp_path / "half.zip").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(InputError, match="half.zip: no readable zip"):
        beir.read_folder(str(tmp_path / "half.zip"))


def test_published_zip_is_checked(folder, tmp_path, monkeypatch):
    """BEIR's server is a local folder here."""
    shutil.make_archive(str(tmp_path / "tiny"), "zip", tmp_path, "tiny")
    md5 = hashlib.md5((tmp_path / "tiny.zip").read_bytes()).hexdigest()
    monkeypatch.setattr(beir, "_ZIPS", tmp_path.as_uri())
    check(beir.read_named("mteb/tiny", None, "tiny", md5, zip=True))
    with pytest.raises(InputError, match=f"its MD5 is {md5}, BEIR publishes 0000"):
        beir.read_zip("tiny", "0000")
    with pytest.raises(InputError, match="data=beir data.path"):
        beir.read_zip("absent", "0000")


def test_hub_snapshot(folder, tmp_path, monkeypatch):
    """The hub's cache as it lies on disk, offline; mteb's qrels are JSON lines."""
    snapshot = tmp_path / "hub" / "datasets--mteb--tiny" / "snapshots" / ("a" * 40)
    shutil.copytree(folder, snapshot)
    (snapshot / "qrels" / "test.tsv").unlink()
    rows = [line.split("\t") for line in TSV.splitlines()[1:]]
    lines = [json.dumps({"query-id": q, "corpus-id": p, "score": float(s)}) for q, p, s in rows]
    (snapshot / "qrels" / "test.jsonl").write_text("\n".join(lines))
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(
        beir, "snapshot_download", lambda *a, **k: original(*a, cache_dir=str(tmp_path / "hub"), **k)
    )
    check(beir.read_hub("mteb/tiny"))
    check(beir.read_hub("mteb/tiny", revision="a" * 40))
    with pytest.raises(InputError, match=r"mteb/absent.*data.zip=true"):
        beir.read_hub("mteb/absent")


original = beir.snapshot_download


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl", '{"_id": "d1", "text": "x"}\n{broken', r"corpus.jsonl:2: broken JSON"),
        ("corpus.jsonl", '{"text": "x"}', r"corpus.jsonl:1: the key '_id'"),
        ("corpus.jsonl", '{"_id": "d1"}', r"corpus.jsonl:1: the key 'text'"),
        ("corpus.jsonl", "[]", r"corpus.jsonl:1: a JSON object"),
        ("corpus.jsonl", '{"_id": "a", "text": ""}\n{"_id": "a", "text": ""}', r"corpus.jsonl:2: the id 'a'"),
        ("corpus.jsonl", "", r"corpus.jsonl: is empty"),
        ("queries.jsonl", '{"_id": 3, "text": "x"}', r"queries.jsonl:1: the key '_id'"),
        ("qrels/test.tsv", "q1\td9\t1", r"test.tsv:1: the id 'd9' is not in corpus"),
        ("qrels/test.tsv", TSV + "q9\td1\t1", r"test.tsv:5: the id 'q9' is not in queries"),
        ("qrels/test.tsv", "q1 d1 1", r"test.tsv:1: .*tabs"),
        ("qrels/test.tsv", "q1\td1\thigh", r"test.tsv:1: .*whole score"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", r"test.tsv: has no judgement"),
    ],
)
def test_bad_input_is_named(folder, file, content, message):
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=message):
        beir.read_folder(str(folder))


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("corpus.jsonl", "corpus.jsonl is missing"),
        ("qrels/test.tsv", "test.tsv is missing; the splits there: dev"),
    ],
)
def test_missing_files_are_named(folder, removed, message):
    (folder / "qrels" / "dev.tsv").write_text(TSV)
    (folder / removed).unlink()
    with pytest.raises(InputError, match=message):
        beir.read_folder(str(folder))


def test_missing_folder():
    with pytest.raises(InputError, match="data.path=/no/where"):
        beir.read_folder("/no/where")


def test_unknown_text_choice():
    with pytest.raises(InputError, match="title_and_text or text_only"):
        passage_text("t", "x", "title", None)


def test_held_out_passages():
    rows = holdout.draw(5000, 100, seed=0)
    assert len(set(rows.tolist())) == 100 and rows.max() < 5000
    assert np.array_equal(rows, holdout.draw(5000, 100, seed=0))
    assert len(holdout.draw(50)) == 5


def test_teacher_pairs_are_outside_wikiscience():
    corpus, topic = embedded.teacher_pairs()
    assert len(corpus.passages) == len(topic) == 7701 and len(corpus.queries["train"]) == 6003
    assert not set(corpus.passages["id"]) & set(embedded.wikiscience().passages["id"])
    pair = corpus.queries["train"][0]
    assert len(pair["text"].split()) >= 4


def test_wikipedia_vital_splits_do_not_overlap():
    corpus = embedded.wikipedia_vital()
    assert len(corpus.passages) == 10_033 and len(corpus.queries["test"]) == 700
    assert not set(corpus.qrels["train"].passage) & (set(corpus.qrels["test"].passage) | set(corpus.heldout))
