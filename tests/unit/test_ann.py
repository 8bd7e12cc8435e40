"""Approximate search against exact search, which it is where every cell is probed."""

import faiss
import numpy as np
import pytest

from dense_retrieval.candidates import ann
from dense_retrieval.candidates.dense import in_parts, products, search
from dense_retrieval.records import CandidateList, InputError


def vectors(n: int, seed: int, dtype=np.float32) -> np.ndarray:
    """Around 20 centres, of length 1."""
    rng = np.random.default_rng(seed)
    found = (
        np.random.default_rng(9).normal(size=(20, 12))[rng.integers(0, 20, n)] + rng.normal(size=(n, 12)) / 2
    )
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(dtype)


@pytest.fixture(params=[("ivf", np.float32), ("ivf", np.float16), ("hnsw", np.float32), ("hnsw", np.float16)])
def built(request, tmp_path, monkeypatch):
    """Kind, passages and their index, added in several parts."""
    monkeypatch.setattr("dense_retrieval.candidates.dense._PASSAGES_AT_ONCE", 400)
    kind, dtype = request.param
    passages = vectors(1500, 0, dtype)
    ann.build(passages, kind, tmp_path)
    assert not list(tmp_path.glob("*.tmp"))
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-finished"))  # as a store does
    return kind, passages, ann.load_ann(moved)


def test_recall_is_a_naive_count(built):
    kind, passages, index = built
    queries = vectors(50, 1)
    found = ann.approximate(index, queries, 10)
    scores = queries @ passages.astype(np.float32).T
    hits = 0
    for query, row in enumerate(found.passages):
        best = sorted(range(len(passages)), key=lambda p: -scores[query, p])[:10]
        hits += len(set(best) & set(row.tolist()))
    assert ann.recall(found, queries, passages, 10) == (pytest.approx(hits / 500), 50)
    assert hits / 500 > (0.9 if kind == "hnsw" else 0.5)
    np.testing.assert_allclose(
        found.scores, np.take_along_axis(scores, found.passages, 1), rtol=1e-3, atol=1e-3
    )


def test_all_cells_probed_is_exact_search(built):
    kind, passages, index = built
    if kind != "ivf":
        pytest.skip("HNSW has no cells")
    queries = vectors(40, 2)
    found, exact = ann.approximate(index, queries, 10, probed=index.nlist), search(queries, passages, 10)
    np.testing.assert_array_equal(found.passages, exact.passages)
    np.testing.assert_allclose(found.scores, exact.scores, rtol=1e-5)
    assert isinstance(faiss.downcast_InvertedLists(index.invlists), faiss.OnDiskInvertedLists)


def test_an_index_goes_on_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr("dense_retrieval.candidates.dense._PASSAGES_AT_ONCE", 400)
    passages, at_once, killed = vectors(1500, 0), tmp_path / "at once", tmp_path / "killed"
    at_once.mkdir()
    killed.mkdir()
    ann.build(passages, "ivf", at_once)
    whole, parts = ann._written, []

    def dies(index, file):
        if len(parts) == 3:
            raise KeyboardInterrupt
        parts.append(file.name)
        whole(index, file)

    monkeypatch.setattr(ann, "_written", dies)
    with pytest.raises(KeyboardInterrupt):
        ann.build(passages, "ivf", killed)
    monkeypatch.setattr(ann, "_written", lambda index, file: (parts.append(file.name), whole(index, file)))
    ann.build(passages, "ivf", killed)
    assert parts == ["trained.tmp", *(f"part-{start}.tmp" for start in (0, 400, 800, 1200))]
    found = [ann.approximate(ann.load_ann(folder), vectors(30, 3), 7) for folder in (at_once, killed)]
    np.testing.assert_array_equal(found[0].passages, found[1].passages)


def test_recall_of_lists_that_are_too_short():
    passages = vectors(3, 0)
    found = CandidateList(np.array([[0, -1, -1, -1]]), np.zeros((1, 4), dtype=np.float32))
    assert ann.recall(found, vectors(1, 1), passages, 4) == (pytest.approx(1 / 3), 1)


@pytest.mark.parametrize(
    ("n", "expected"), [(1, 1), (39, 1), (1000, 25), (1_000_000, 4000), (8_841_823, 11_894)]
)
def test_cells(n, expected):
    assert ann.cells(n) == expected


def test_an_unknown_index():
    with pytest.raises(InputError, match=r"retriever.index='pq' is unknown; use flat, ivf, hnsw"):
        ann.require_kind("pq")


def test_products_in_parts_are_those_of_all_at_once(monkeypatch):
    monkeypatch.setattr("dense_retrieval.candidates.dense._BYTES_AT_ONCE", 4 * 12 * 5 * 3)
    queries, passages = vectors(11, 0), vectors(40, 1)
    rows = np.random.default_rng(0).integers(-1, 40, (11, 5))
    expected = np.einsum("qd,qkd->qk", queries, passages[rows])
    np.testing.assert_array_equal(products(queries, passages, rows), expected)
    half = passages.astype(np.float16)
    np.testing.assert_array_equal(
        products(queries, half, rows), products(queries, half.astype(np.float32), rows)
    )
    assert [(start, len(part)) for start, part in in_parts(half)] == [(0, 15), (15, 15), (30, 10)]
