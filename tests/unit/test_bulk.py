"""What other search engines are given: that they find what our own search finds, and the files' form."""

import json

import numpy as np
import pytest

from dense_retrieval import bulk
from dense_retrieval.bulk import Passages
from dense_retrieval.candidates.dense import search
from dense_retrieval.records import PASSAGES, read_table, table, write_table

N, D, K = 2_345, 24, 11  # passages: more than are read at once


def unit(n: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def passages(tmp_path_factory) -> Passages:
    """From memory-mapped files, as a store gives them."""
    folder = tmp_path_factory.mktemp("passages")
    ids = [f"doc/{i}" for i in range(N)]
    texts = [f'the "{i}"th passage\u2028über Kohl' for i in range(N)]
    write_table(
        table({"id": ids, "title": ["title"] * N, "text": texts}, PASSAGES), folder / "passages.arrow"
    )
    np.save(folder / "vectors.npy", unit(N, 0))
    return Passages(read_table(folder / "passages.arrow"), np.load(folder / "vectors.npy", mmap_mode="r"))


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return unit(7, 1)


def same(found, expected) -> None:
    np.testing.assert_array_equal(found.passages, expected.passages)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)


@pytest.mark.parametrize("form", bulk.WRITE)
def test_what_is_written_finds_what_our_search_finds(passages, queries, tmp_path, form):
    bulk.WRITE[form](passages, tmp_path)
    same(bulk.SEARCH[form](tmp_path, queries, K), search(queries, passages.vectors, K))


def test_faiss_s_numbers_are_lines(passages, queries, tmp_path):
    faiss = pytest.importorskip("faiss")
    bulk.write_faiss(passages, tmp_path)
    index = faiss.read_index(str(tmp_path / "passages.faiss"))
    assert index.ntotal == N and index.metric_type == faiss.METRIC_INNER_PRODUCT
    np.testing.assert_array_equal(index.reconstruct(1234), passages.vectors[1234])
    lines = (tmp_path / "passages.jsonl").read_text().split("\n")
    assert json.loads(lines[1234]) == passages.table[1234] and len(lines) == N + 1


def test_float16_stays_float16_in_faiss(passages, queries, tmp_path):
    faiss = pytest.importorskip("faiss")
    half = Passages(passages.table, passages.vectors.astype(np.float16))
    bulk.write_faiss(half, tmp_path)
    index = faiss.read_index(str(tmp_path / "passages.faiss"))
    assert index.sa_code_size() == 2 * D
    np.testing.assert_array_equal(index.reconstruct(5), half.vectors[5].astype(np.float32))
    same(bulk.search_faiss(tmp_path, queries, K), search(queries, half.vectors, K))


def test_qdrant_finds_what_our_search_finds(passages, queries, tmp_path):
    qdrant_client = pytest.importorskip("qdrant_client")
    client = qdrant_client.QdrantClient(path=str(tmp_path / "qdrant"))
    bulk.write_qdrant(passages, client, "kale")
    client.close()
    client = qdrant_client.QdrantClient(path=str(tmp_path / "qdrant"))
    assert client.count("kale").count == N
    (point,) = client.retrieve("kale", [1234], with_vectors=True)
    assert point.payload == passages.table[1234]
    np.testing.assert_allclose(point.vector, passages.vectors[1234], atol=1e-7)
    same(bulk.search_qdrant(client, "kale", queries, K), search(queries, passages.vectors, K))
    client.close()


def test_few_passages_are_padded(tmp_path, queries):
    qdrant_client = pytest.importorskip("qdrant_client")
    few = Passages(table({"id": ["a", "b"], "title": ["", ""], "text": ["x", "y"]}, PASSAGES), unit(2, 0))
    client = qdrant_client.QdrantClient(":memory:")
    bulk.write_qdrant(few, client, "few")
    bulk.write_faiss(few, tmp_path)
    expected = search(queries, few.vectors, 5)
    for found in (bulk.search_qdrant(client, "few", queries, 5), bulk.search_faiss(tmp_path, queries, 5)):
        same(found, expected)
        assert (found.passages[:, 2:] == -1).all() and (found.scores[:, 2:] == -np.inf).all()


def test_elasticsearch_s_lines(passages, tmp_path, monkeypatch):
    """An action and a document in turn, in files of the size that a request may have."""
    monkeypatch.setattr(bulk, "_FILE", 100_000)
    bulk.write_elasticsearch(passages, tmp_path)
    mapping = json.loads((tmp_path / "mapping.json").read_text())["mappings"]["properties"]
    assert mapping["title"] == mapping["text"] == {"type": "text"}
    assert mapping["vector"]["type"] == "dense_vector" and mapping["vector"]["dims"] == D
    files = sorted(tmp_path.glob("bulk-*.ndjson"))
    assert len(files) > 5 and all(file.stat().st_size <= 100_000 for file in files)
    assert all(file.read_bytes().endswith(b"\n") for file in files)
    lines = [json.loads(line) for file in files for line in file.read_text().split("\n") if line]
    assert lines[::2] == [{"index": {"_id": id_}} for id_ in passages.table["id"]]
    document = lines[2 * 1234 + 1]
    vector = document.pop("vector")
    assert document == {"title": "title", "text": passages.table[1234]["text"]}
    np.testing.assert_allclose(vector, passages.vectors[1234], atol=6e-10, rtol=0)


def test_lucene_s_lines(passages, tmp_path):
    bulk.write_lucene(passages, tmp_path)
    (file,) = tmp_path.glob("vectors-*.jsonl")
    lines = [json.loads(line) for line in file.read_text().split("\n") if line]
    assert [line["docid"] for line in lines] == [line["id"] for line in lines] == passages.table["id"][:]
    assert lines[7]["contents"] == passages.table[7]["text"] and set(lines[7]) == {
        "docid",
        "id",
        "contents",
        "vector",
    }
    vectors = np.array([line["vector"] for line in lines])
    np.testing.assert_allclose(vectors, passages.vectors, atol=6e-10, rtol=0)
