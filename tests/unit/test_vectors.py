"""Smaller vectors: against numpy, FAISS's own index and sentence-transformers' search."""

import faiss
import numpy as np
import pytest
from scipy.stats import ttest_rel
from sentence_transformers.quantization import quantize_embeddings, semantic_search_faiss

from dense_retrieval.candidates import dense
from dense_retrieval.evaluation.vectors import (
    KINDS,
    WHOLE,
    Kept,
    Vectors,
    all_vectors,
    cells,
    cut,
    markdown,
    rows,
)
from dense_retrieval.records import InputError


def unit(seed: int, n: int, dimension: int = 24) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((n, dimension)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def found(queries: np.ndarray, passages: np.ndarray, vectors: Vectors, k: int = 10):
    return dense.search(cut(queries, vectors.dimension), passages, k, kept=Kept.of(vectors, passages))


def test_bytes_a_passage():
    assert {kind: Vectors(None, kind).size(384) for kind in KINDS} == {
        "float32": 1536,
        "float16": 768,
        "int8": 384,
        "binary": 48,
    }
    assert Vectors(12, "binary").size(384) == 2 and Vectors(12, "binary").named(384) == "12 binary"


def test_whole_float32_vectors_come_first_and_once():
    assert all_vectors([], ["binary"], 8) == [WHOLE, Vectors(None, "binary")]
    assert all_vectors([4], [], 8) == [WHOLE, Vectors(4)]
    assert all_vectors([8, 4], ["float32", "int8"], 8) == [
        *(WHOLE, Vectors(None, "int8")),
        *(Vectors(4), Vectors(4, "int8")),
    ]
    with pytest.raises(
        InputError, match="evaluation.vectors: 'int4' is unknown; use float32, float16, int8, bin"
    ):
        all_vectors([4], ["int4"], 8)


def test_cut_embeddings_have_length_one():
    embeddings = np.array([[3, 4, 12], [0, 0, 1]], dtype=np.float16)
    np.testing.assert_allclose(cut(embeddings, 2), [[0.6, 0.8], [0, 0]])
    np.testing.assert_array_equal(cut(embeddings, 3), embeddings)
    assert cut(embeddings, 2).dtype == cut(embeddings, None).dtype == np.float32


@pytest.mark.parametrize("at_once", [7, 500_000])
@pytest.mark.parametrize("dimension", [None, 8])
@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_floats_equal_numpy(monkeypatch, at_once, dimension, kind):
    monkeypatch.setattr(dense, "_PASSAGES_AT_ONCE", at_once)
    queries, passages = unit(0, 5), unit(1, 60)
    asked, kept = ((of[:, : dimension or 24]).astype(np.float64) for of in (queries, passages))
    asked, kept = (of / np.linalg.norm(of, axis=1, keepdims=True) for of in (asked, kept))
    scores = asked @ kept.astype(kind).T
    ours = found(queries, passages, Vectors(dimension, kind))
    np.testing.assert_array_equal(ours.passages, np.argsort(-scores, axis=1)[:, :10])
    np.testing.assert_allclose(ours.scores, -np.sort(-scores, axis=1)[:, :10], atol=2e-6)


@pytest.mark.parametrize("at_once", [7, 500_000])
@pytest.mark.parametrize("dimension", [None, 16])
def test_int8_equals_the_index_of_faiss(monkeypatch, at_once, dimension):
    """Trained on all passages, also where ours are read in parts."""
    monkeypatch.setattr(dense, "_PASSAGES_AT_ONCE", at_once)
    queries, passages = unit(0, 5), unit(1, 200)
    short = cut(passages, dimension)
    index = faiss.IndexScalarQuantizer(
        short.shape[1], faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    index.train(short)
    index.add(short)
    assert index.sa_code_size() == Vectors(dimension, "int8").size(24)
    scores, expected = index.search(cut(queries, dimension), 10)
    ours = found(queries, passages, Vectors(dimension, "int8"))
    np.testing.assert_array_equal(ours.passages, expected)
    np.testing.assert_allclose(ours.scores, scores, atol=1e-5)
    kept = Kept.of(Vectors(dimension, "int8"), passages)
    step = (short.max(0) - short.min(0)) / 255
    assert (np.abs(kept(passages) - short) <= step / 2 + 1e-6).all()
    assert not np.array_equal(kept(passages), short)


def test_int8_by_hand():
    """0 and 255 are 255 steps of 1 apart; a value stands in the middle of its step, an unvarying one for itself."""
    passages = np.array([[0, 5], [255, 5], [100.2, 5]], dtype=np.float32)
    kept = Kept.of(Vectors(None, "int8"), passages)
    np.testing.assert_allclose(kept(passages)[:, 0], [0.5, 255.5, 100.5], atol=1e-3)
    np.testing.assert_allclose(kept(passages)[:, 1], 5, atol=1e-3)


@pytest.mark.parametrize("dimension", [None, 16])
def test_binary_equals_sentence_transformers_rescoring(dimension):
    """Of float queries by the bits of all passages; its bits are 0 and 1, which orders alike."""
    queries, passages = unit(0, 5), unit(1, 40)
    asked, short = cut(queries, dimension), cut(passages, dimension)
    bits = quantize_embeddings(short, precision="ubinary")
    assert bits.shape[1] == Vectors(dimension, "binary").size(24)
    theirs, _ = semantic_search_faiss(
        asked, bits, corpus_precision="ubinary", top_k=10, rescore=True, rescore_multiplier=4
    )
    ours = found(queries, passages, Vectors(dimension, "binary"))
    np.testing.assert_array_equal(ours.passages, [[hit["corpus_id"] for hit in of] for of in theirs])
    scores = (asked @ np.where(short > 0, 1, -1).T.astype(np.float32)).max(1)
    np.testing.assert_allclose(ours.scores[:, 0], scores, atol=1e-6)


def test_rows_are_compared_with_the_students_whole_vectors():
    rng = np.random.default_rng(0)
    values = {v: {"nDCG@10": rng.random(30)} for v in (WHOLE, Vectors(None, "binary"), Vectors(64, "int8"))}
    table = rows("tuned student", 384, values)
    assert [(row.dimension, row.kind, row.bytes) for row in table] == [
        (384, "float32", 1536),
        (384, "binary", 48),
        (64, "int8", 64),
    ]
    whole, last = values[WHOLE]["nDCG@10"], values[Vectors(64, "int8")]["nDCG@10"]
    difference = table[2].row.differences["nDCG@10"]
    assert difference.mean == pytest.approx((last - whole).mean())
    assert difference.p_value == pytest.approx(ttest_rel(last, whole).pvalue)
    assert not table[0].row.differences
    as_json = table[2].as_json()
    assert (as_json["student"], as_json["bytes"], as_json["n"]) == ("tuned student", 64, 30)
    assert as_json["means"]["nDCG@10"] == pytest.approx(last.mean())
    assert cells(table)[1] == ["tuned student", "384 float32", "1,536", f"{whole.mean():.3f}"]
    header, rule, first = markdown(table).splitlines()[:3]
    assert (
        header == "| system | vectors | bytes a passage | nDCG@10 |" and rule == "| --- | --- | ---: | --- |"
    )
    assert first == f"| tuned student | 384 float32 | 1,536 | {whole.mean():.3f} |"
