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
from dense_retrieval.corpus.archive import unpack
from dense_retrieval.corpus.text import passage_text
from dense_retrieval.evaluation.evaluate import per_query
from dense_retrieval.queries import human
from dense_retrieval.records import CandidateList, Corpus, InputError

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


def test_no_more_of_a_zip_is_unpacked_than_is_read(folder, tmp_path):
    shutil.make_archive(str(tmp_path / "tiny"), "zip", tmp_path, "tiny")
    with zipfile.ZipFile(tmp_path / "tiny.zip", "a") as archive:
        for name in (
            "model.bin",
            "tiny/images/1.png",
            "tiny/qrels/old/test.tsv",
            "__MACOSX/tiny/._corpus.jsonl",
        ):
            archive.writestr(name, "x")
        archive.getinfo("model.bin").file_size = 10**15  # not read, so no matter
    (tmp_path / "out").mkdir()
    assert unpack(tmp_path / "tiny.zip", tmp_path / "out") == tmp_path / "out" / "tiny"
    found = {str(p.relative_to(tmp_path / "out/tiny")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == {"corpus.jsonl", "queries.jsonl", "qrels/test.tsv"}


@pytest.mark.parametrize(
    ("size", "packed", "free", "message"),
    [
        (3_000_000_000, 3_000_000, 10**10, "corpus.jsonl' would grow 3.0 GB large from 3.0 MB"),
        (3_000_000_000, 1_000_000_000, 10**10, None),  # MS MARCO
        (90_000_000, 100_000, 10**10, None),
        (3_000_000_000, 1_000_000_000, 2 * 10**9, r"needs 3.0 GB, \S+ has 2.0 GB; .*TMPDIR"),
    ],
)
def test_a_zip_that_is_too_large_is_not_unpacked(folder, tmp_path, monkeypatch, size, packed, free, message):
    """The sizes in the zip's table are made up; what is not refused is broken, as a file this small is."""
    with zipfile.ZipFile(tmp_path / "tiny.zip", "w") as archive:
        archive.write(folder / "corpus.jsonl", "tiny/corpus.jsonl")
        archive.infolist()[0].file_size, archive.infolist()[0].compress_size = size, packed
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=message or "no readable zip") as caught:
        beir.read_folder(str(tmp_path / "tiny.zip"))
    assert "\n" not in str(caught.value)


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
        ("corpus.jsonl", '{"_id": "a", "title": [1], "text": "x"}', r"corpus.jsonl:1: the key 'title'"),
        (
            "corpus.jsonl",
            '\n{"_id": "a", "text": ""}\n\n{"_id": "a", "text": ""}',
            r"corpus.jsonl:4: the id 'a' stands already in line 2",
        ),
        ("corpus.jsonl", '{"_id": "a", "text": "\\ud800"}', r"corpus.jsonl: a text is no valid Unicode"),
        ("corpus.jsonl", "\n\n", r"corpus.jsonl: is empty"),
        ("corpus.jsonl", "", r"corpus.jsonl: is empty"),
        ("queries.jsonl", '{"_id": 3, "text": "x"}', r"queries.jsonl:1: the key '_id'"),
        ("qrels/test.tsv", "q1\td9\t1", r"test.tsv:1: the id 'd9' is not in corpus"),
        ("qrels/test.tsv", TSV + "q9\td1\t1", r"test.tsv:5: the id 'q9' is not in queries"),
        (
            "qrels/test.tsv",
            TSV + "q1\td8\t1\nq1\td9\t1\nq3\td9\t1",
            r"test.tsv:5: the id 'd8'.*such ids: 2\)",
        ),
        ("qrels/test.tsv", "q1 d1 1", r"test.tsv:1: .*tabs"),
        ("qrels/test.tsv", "q1\td1\t0.5", r"test.tsv:1: .*whole score"),
        ("qrels/test.tsv", "q1\td1\t--1", r"test.tsv:1: .*whole score"),
        ("qrels/test.tsv", "q1\td1\tinf", r"test.tsv:1: .*whole score"),
        ("qrels/test.tsv", "q1\td1\thigh", r"test.tsv:1: .*whole score"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", r"test.tsv: has no judgement"),
        ("qrels/test.tsv", TSV + "q2\td1\t1001", r"test.tsv:5: the grade 1001 is above 1000"),
        ("qrels/test.tsv", TSV + "q2\td1\t1e300", r"test.tsv:5: the grade .* is above 1000"),
        ("qrels/test.tsv", TSV + "q1\td1\t1", r"test.tsv:5: .*'q1'.*'d1'.* 1, in line 2 it is 2"),
        ("qrels/test.tsv", "q1\td1\t0\nq2\td2\t-1\n", r"test.tsv: no grade is above 0"),
    ],
)
def test_bad_input_is_named(folder, file, content, message):
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=message):
        beir.read_folder(str(folder))


def test_negative_grades_and_copies_of_a_judgement_are_measured_as_trec_eval_does_without_them(folder):
    """trec_eval itself reads outside its memory where a grade is below -1."""
    copies = "q1\td1\t2\nq3\td1\t-2\nq3\td1\t-1\n"
    (folder / "qrels" / "test.tsv").write_text(TSV + copies + "q2\td3\t-2147483648\nq2\td1\t1000\n")
    corpus = beir.read_folder(str(folder))
    qrels = corpus.qrels["test"]
    assert list(zip(qrels.query, qrels.passage, qrels.relevance, strict=True)) == [
        *[(0, 0, 2), (0, 1, 0), (2, 1, 1), (2, 0, 0)],
        *[(1, 2, 0), (1, 0, 1000)],
    ]
    ranking = CandidateList(np.tile([0, 2, 1], (3, 1)), np.tile(np.float32([2, 1, 0]), (3, 1)))
    values = per_query(ranking, qrels, ["AP@100", "nDCG@10"])
    np.testing.assert_allclose(values["AP@100"], [1, 1, 1 / 3])
    np.testing.assert_allclose(values["nDCG@10"], [1, 1, 1 / 2])


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


def test_documents_alone_have_no_split(folder, tmp_path):
    (folder / "queries.jsonl").unlink()
    shutil.rmtree(folder / "qrels")
    corpus = beir.read_folder(str(folder))
    corpus.save(tmp_path)
    assert len(corpus.passages) and corpus.queries == corpus.qrels == {} == Corpus.load(tmp_path).queries


def test_a_dev_split_is_read(folder):
    shutil.copy(folder / "qrels/test.tsv", folder / "qrels/dev.tsv")
    corpus = beir.read_folder(str(folder))
    assert corpus.queries["dev"]["id"][:] == corpus.queries["test"]["id"][:]
    assert set(beir.read_folder(str(folder), test_split="dev").queries) == set(corpus.queries) - {"dev"}
    shutil.copy(folder / "qrels/test.tsv", folder / "qrels/train.tsv")
    tested_on = beir.read_folder(str(folder), test_split="train")
    assert set(tested_on.queries) == {"dev", "test"}  # else it might be trained on
    with pytest.raises(InputError, match=r"no human training queries.*data.test_split=train"):
        human.from_train_split(tested_on)


def test_missing_folder():
    with pytest.raises(InputError, match="data.path=/no/where"):
        beir.read_folder("/no/where")


def test_unknown_text_choice():
    with pytest.raises(InputError, match="title_and_text or text_only"):
        passage_text("t", "x", "title", None)


def test_held_out_passages():
    """None is a duplicate; of 9 in 100 it was one when they were drawn before."""
    duplicates = np.arange(0, 5000, 3)
    rows = holdout.draw(5000, duplicates, 100, seed=0)
    assert len(set(rows.tolist())) == 100 and rows.max() < 5000 and (rows % 3).all()
    assert np.array_equal(rows, holdout.draw(5000, duplicates, 100, seed=0))
    assert len(holdout.draw(50, np.array([], dtype=np.int64))) == 5
    assert holdout.draw(50, np.arange(48)).tolist() == [48, 49]


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


def test_another_encoding_and_a_byte_order_mark(folder):
    corpus = folder / "corpus.jsonl"
    corpus.write_bytes(b"\xef\xbb\xbf" + corpus.read_bytes())
    check(beir.read_folder(str(folder)))
    corpus.write_bytes('{"_id": "a", "text": "x"}\n{"_id": "b", "text": "é"}'.encode("latin-1"))
    with pytest.raises(InputError, match=r"corpus.jsonl:2: is not UTF-8"):
        beir.read_folder(str(folder))


def test_broken_gzip(folder):
    whole = gzip.compress((folder / "corpus.jsonl").read_bytes() * 100)
    (folder / "corpus.jsonl").unlink()
    for broken in (whole[: len(whole) // 2], b"no gzip", whole[:20] + b"\xff" * 20):
        (folder / "corpus.jsonl.gz").write_bytes(broken)
        with pytest.raises(InputError, match=r"corpus.jsonl.gz: a broken gzip"):
            beir.read_folder(str(folder))


def test_a_zip_broken_inside_a_member(folder, tmp_path):
    """Whatever byte is flipped, it is one line, or the zip is as good as before."""
    archive = Path(shutil.make_archive(str(tmp_path / "tiny"), "zip", tmp_path, "tiny"))
    whole = archive.read_bytes()
    refused = 0
    for position in range(0, len(whole), 7):
        archive.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            (tmp_path / f"out{position}").mkdir()
            unpack(archive, tmp_path / f"out{position}")
        except InputError as error:
            refused += "\n" not in str(error)
    assert refused > 20


def test_a_message_names_the_zip_not_where_it_was_unpacked(folder, tmp_path):
    (folder / "corpus.jsonl").write_text("{broken")
    archive = shutil.make_archive(str(tmp_path / "tiny"), "zip", tmp_path, "tiny")
    with pytest.raises(InputError) as caught:
        beir.read_folder(archive)
    assert str(caught.value).startswith(f"{archive}/tiny/corpus.jsonl:1: broken JSON")


def test_a_zip_of_several_corpora(folder, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(folder, tmp_path / "both" / name)
    archive = shutil.make_archive(str(tmp_path / "both"), "zip", tmp_path / "both")
    with pytest.raises(InputError, match=r"several corpora \(a, b\)"):
        beir.read_folder(archive)


def test_known_missing_passages_count_against_every_system(folder):
    """As trec_eval does with a judged passage that is not in the corpus: q1 finds one of three."""
    (folder / "qrels" / "test.tsv").write_text(TSV + "q1\td8\t1\nq1\td9\t1\nq2\td9\t1\n")
    corpus = beir.read_folder(str(folder), missing_passages=2)
    qrels = corpus.qrels["test"]
    assert list(zip(qrels.query.tolist(), qrels.passage.tolist(), strict=True)) == [
        *[(0, 0), (0, 1), (2, 1)],
        *[(0, -1), (0, -2), (1, -2)],
    ]
    ranking = CandidateList(np.tile([0, 1, -1], (3, 1)), np.tile(np.float32([2, 1, -np.inf]), (3, 1)))
    assert per_query(ranking, qrels, ["R@100"])["R@100"].tolist() == [pytest.approx(1 / 3), 0.0, 1.0]
    with pytest.raises(InputError, match="d8"):
        beir.read_folder(str(folder), missing_passages=1)


def test_wikiscience_is_the_split_that_it_ships():
    corpus = embedded.wikiscience()
    split = json.loads((Path(embedded.__file__).parent / "wikivital" / "science_split.json").read_text())
    ids = list(corpus.passages["id"])
    assert ids == split["passages"] and len(ids) == 2332
    assert {ids[row] for row in corpus.heldout} == set(split["heldout"]) and len(corpus.heldout) == 100
    for name, n in {"test": 700, "train": 982}.items():
        qrels = corpus.qrels[name]
        assert [ids[row] for row in qrels.passage] == split[f"human_{name}"] and len(qrels.passage) == n
        assert qrels.query.tolist() == list(range(n)) and set(qrels.relevance.tolist()) == {1}
        assert min(len(text.split()) for text in corpus.queries[name]["text"]) >= 4
