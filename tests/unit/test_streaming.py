"""Corpora in several files, compressed and in Parquet: the same as one file of JSON lines, row by row."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from dense_retrieval.corpus import beir, lines
from dense_retrieval.corpus.ids import Ids
from dense_retrieval.records import (
    PASSAGES,
    Column,
    InputError,
    column,
    read_table,
    table,
    write_rows,
    write_table,
)

ROWS = [{"_id": f"d{i}", "title": f"Title {i}", "text": f"A text, number {i}: é."} for i in range(25)]
QUERIES = [{"_id": f"q{i}", "text": f"query {i}"} for i in range(4)]
TSV = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td24\t0\nq3\td2\t1\n"


def jsonl(rows: list[dict]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def zstd(content: bytes) -> bytes:
    half = len(content) // 2  # two frames, as several threads write them
    return b"".join(pyarrow.compress(x, "zstd", asbytes=True) for x in (content[:half], content[half:]))


def as_parquet(rows: list[dict], file: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=7)


WRITERS: dict[str, Callable[[list[dict], Path], object]] = {
    ".jsonl": lambda rows, file: file.write_bytes(jsonl(rows)),
    ".jsonl.gz": lambda rows, file: file.write_bytes(gzip.compress(jsonl(rows))),
    ".jsonl.zst": lambda rows, file: file.write_bytes(zstd(jsonl(rows))),
    ".parquet": as_parquet,
}


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "tiny"
    (path / "qrels").mkdir(parents=True)
    (path / "queries.jsonl").write_bytes(jsonl(QUERIES))
    (path / "qrels" / "test.tsv").write_text(TSV)
    return path


def check(folder: Path) -> None:
    corpus = beir.read_folder(str(folder))
    assert list(corpus.passages["id"]) == [row["_id"] for row in ROWS]
    assert list(corpus.passages["text"]) == [f"{row['title']} {row['text']}" for row in ROWS]
    assert corpus.qrels["test"].passage.tolist() == [1, 24, 2]
    assert list(corpus.queries["test"]["id"]) == ["q1", "q3"]


@pytest.mark.parametrize("ending", WRITERS)
def test_one_file(folder, ending, monkeypatch):
    monkeypatch.setattr(lines, "_ROWS_AT_ONCE", 4)
    WRITERS[ending](ROWS, folder / f"corpus{ending}")
    WRITERS[ending](QUERIES, folder / f"queries{ending}")
    if ending != ".jsonl":
        (folder / "queries.jsonl").unlink()
    check(folder)


@pytest.mark.parametrize("named", ["corpus-{:05d}-of-00003{}", "corpus/part{}{}"])
def test_several_files_in_the_order_of_their_names(folder, named):
    (folder / "corpus").mkdir()
    for number, ending in enumerate([".parquet", ".jsonl.zst", ".jsonl"]):
        WRITERS[ending](ROWS[number * 10 : number * 10 + 10], folder / named.format(number, ending))
    (folder / "corpus" / "README.md").write_text("no table")
    check(folder)


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_qrels_of_other_forms(folder, ending):
    WRITERS[".jsonl"](ROWS, folder / "corpus.jsonl")
    (folder / "qrels" / "test.tsv").unlink()
    judged = [line.split("\t") for line in TSV.splitlines()[1:]]
    rows = [{"query-id": q, "corpus-id": p, "score": int(s)} for q, p, s in judged]
    WRITERS[ending](rows, folder / "qrels" / f"test{ending}")
    check(folder)


@pytest.mark.parametrize("ending", WRITERS)
def test_a_file_of_documents_alone(tmp_path, ending):
    file = tmp_path / f"anything{ending}"
    WRITERS[ending](ROWS, file)
    corpus = beir.read_folder(str(file), text="text_only")
    assert list(corpus.passages["text"]) == [row["text"] for row in ROWS] and not corpus.queries


def test_an_id_in_two_files_is_named_with_both(folder):
    WRITERS[".jsonl.gz"](ROWS[:5], folder / "corpus-0.jsonl.gz")
    WRITERS[".jsonl.zst"]([*ROWS[5:9], ROWS[3]], folder / "corpus-1.jsonl.zst")
    with pytest.raises(
        InputError, match=r"corpus-1.jsonl.zst:5: the id 'd3' stands already in \S+corpus-0.jsonl.gz:4$"
    ):
        beir.read_folder(str(folder))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus-1.jsonl", b'{"_id": "a", "text": "x"}\n\n{broken', r"corpus-1.jsonl:3: broken JSON"),
        ("corpus-1.jsonl.zst", zstd(jsonl(ROWS))[:-40], r"corpus-1.jsonl.zst: a broken zstd, .* line \d+"),
        ("corpus-1.jsonl.zst", b"no zstd", r"corpus-1.jsonl.zst: a broken zstd, readable up to line 0"),
        ("corpus-1.parquet", b"no parquet", r"corpus-1.parquet: a broken Parquet, readable up to row 0"),
    ],
)
def test_what_is_broken_is_named(folder, file, content, message):
    WRITERS[".jsonl"]([{"_id": "first", "text": "x"}], folder / "corpus-0.jsonl")
    (folder / file).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        beir.read_folder(str(folder))
    assert "\n" not in str(caught.value)


def test_a_parquet_row_without_a_text_is_named(folder):
    as_parquet([*ROWS[:11], {"_id": "d11", "title": "", "text": None}], folder / "corpus.parquet")
    with pytest.raises(InputError, match=r"corpus.parquet:12: the key 'text' is missing or no string"):
        beir.read_folder(str(folder))
    as_parquet([{"_id": 1, "text": "x"}], folder / "corpus.parquet")
    with pytest.raises(InputError, match=r"corpus.parquet:1: the key '_id' is missing or no string"):
        beir.read_folder(str(folder))


def test_a_hub_corpus_in_parquet(folder, tmp_path, monkeypatch):
    """Parquet is asked for only where there are no JSON lines."""
    WRITERS[".parquet"](ROWS, folder / "corpus-00000-of-00001.parquet")
    asked: list[list[str]] = []

    def snapshot(name, allow_patterns, **_):
        asked.append(allow_patterns)
        there = tmp_path / f"snapshot{len(asked)}"
        shutil.copytree(folder, there)
        if "*.parquet" not in allow_patterns:
            for file in there.glob("*.parquet"):
                file.unlink()
        return str(there)

    monkeypatch.setattr(beir, "snapshot_download", snapshot)
    assert len(beir.read_hub("mteb/tiny").passages) == 25 and len(asked) == 2
    WRITERS[".jsonl"](ROWS, folder / "corpus.jsonl")
    assert len(beir.read_hub("mteb/tiny").passages) == 25 and len(asked) == 3


@settings(max_examples=25, deadline=None)
@given(ids=st.lists(st.text(st.sampled_from("abcé"), max_size=2), min_size=1, max_size=30))
def test_ids_are_a_dict_of_rows(ids):
    found = Ids(table({"id": ids, "title": ids, "text": ids}, PASSAGES))
    firsts: dict[str, int] = {}
    repeated = None
    for row, identifier in enumerate(ids):
        if firsts.setdefault(identifier, row) != row and repeated is None:
            repeated = row, firsts[identifier]
    assert {i: found.get(i) for i in ids} == firsts
    assert found.get("other") is None and "other" not in found and ids[0] in found
    assert found.repeated() == repeated


def test_equal_hashes_are_no_equal_ids(monkeypatch):
    monkeypatch.setattr("dense_retrieval.corpus.ids.hash", lambda _: 7, raising=False)
    ids = ["a", "b", "c", "b"]
    found = Ids(table({"id": ids, "title": ids, "text": ids}, PASSAGES))
    assert [found.get(i) for i in "abcd"] == [0, 1, 2, None] and found.repeated() == (3, 1)


def test_rows_written_one_by_one_are_the_table(tmp_path):
    rows = [{"id": str(i), "title": "", "text": f"é {i}"} for i in range(25_000)]
    whole = table({name: [row[name] for row in rows] for name in PASSAGES}, PASSAGES)
    write_rows(iter(rows), PASSAGES, tmp_path / "rows.arrow")
    write_table(whole, tmp_path / "table.arrow")
    found, expected = read_table(tmp_path / "rows.arrow"), read_table(tmp_path / "table.arrow")
    assert found.features == expected.features == whole.features and found[:] == expected[:] == whole[:]
    assert [len(part) for part in column(found, "text")] == [10_000, 10_000, 5_000]


def test_a_column_on_disk_is_a_sequence(tmp_path):
    names = [str(i) for i in range(10_500)]
    write_table(table(dict.fromkeys(PASSAGES, names), PASSAGES), tmp_path / "table.arrow")
    found = Column(tmp_path / "table.arrow", "id")
    assert list(found) == names == np.array(found).tolist() and len(found) == 10_500
    assert found[10_499] == found[-1] == "10499" and found[9_998:10_002] == names[9_998:10_002]


def test_a_table_in_another_order_is_written_in_large_batches(tmp_path):
    whole = table({name: [str(i) for i in range(300)] for name in PASSAGES}, PASSAGES)
    write_table(whole.select(range(299, -1, -1)), tmp_path / "table.arrow")
    with pyarrow.ipc.open_stream(tmp_path / "table.arrow") as stream:
        assert [batch.num_rows for batch in stream] == [300]


@pytest.mark.parametrize("where", ["qrels", "data"])
def test_a_dataset_of_the_hub_in_parquet(tmp_path, monkeypatch, where):
    """NanoBEIR's layout: a folder for each configuration, one split called train, judgements without grades."""
    for name, rows in {"corpus": ROWS[:20], "queries": QUERIES}.items():
        (tmp_path / name).mkdir()
        as_parquet(
            [{k: row[k] for k in ("_id", "text")} for row in rows],
            tmp_path / name / "train-00000-of-00001.parquet",
        )
    (tmp_path / where).mkdir()
    judged = [("q1", "d1"), ("q1", "d14"), ("q3", "d2")]
    rows = [{"query-id": query, "corpus-id": passage} for query, passage in judged]
    as_parquet(rows, tmp_path / where / "train-00000-of-00001.parquet")
    asked = []
    monkeypatch.setattr(beir, "snapshot_download", lambda *a, **k: asked.append((a, k)) or str(tmp_path))
    corpus = beir.read_named("org/Nano", None, "", "", test_split="train")
    assert [of["repo_type"] for _, of in asked] == ["dataset"] and asked[0][0] == ("org/Nano",)
    assert len(corpus.passages) == 20 and list(corpus.queries) == ["test"]
    assert list(corpus.queries["test"]["id"]) == ["q1", "q3"]
    qrels = corpus.qrels["test"]
    assert [qrels.query.tolist(), qrels.passage.tolist(), qrels.relevance.tolist()] == [
        [0, 0, 1],
        [1, 14, 2],
        [1, 1, 1],
    ]
    assert corpus.passages["text"][3] == ROWS[3]["text"]
