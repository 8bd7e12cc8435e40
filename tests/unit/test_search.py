"""Exact search against numpy; what a user who searches sees."""

import io
from dataclasses import replace

import numpy as np
import pytest
import yaml
from rich.console import Console

from dense_retrieval.candidates import dense
from dense_retrieval.records import CandidateList, InputError
from dense_retrieval.search import Hit, _best, _model_of, beside_each_other


def numpy_search(queries: np.ndarray, passages: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries @ passages.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, 1)


def unit(rng: np.random.Generator, n: int) -> np.ndarray:
    vectors = rng.standard_normal((n, 24)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("at_once", [1, 7, 100, 500_000])
@pytest.mark.parametrize("k", [1, 10, 120])
@pytest.mark.parametrize("n_queries", [1, 33])
def test_equals_numpy_however_it_is_cut(monkeypatch, at_once, k, n_queries):
    monkeypatch.setattr(dense, "_PASSAGES_AT_ONCE", at_once)
    rng = np.random.default_rng(k)
    queries, passages = unit(rng, n_queries), unit(rng, 250)
    rows, scores = numpy_search(queries, passages, k)
    found = dense.search(queries, passages, k)
    np.testing.assert_array_equal(found.passages, rows)
    np.testing.assert_allclose(found.scores, scores, atol=1e-6)
    assert found.passages.dtype == np.int64 and found.scores.dtype == np.float32


def test_reads_memory_mapped_passages(monkeypatch, tmp_path):
    monkeypatch.setattr(dense, "_PASSAGES_AT_ONCE", 40)
    rng = np.random.default_rng(0)
    queries, passages = unit(rng, 5), unit(rng, 100)
    np.save(tmp_path / "passages.npy", passages)
    found = dense.search(queries, np.load(tmp_path / "passages.npy", mmap_mode="r"), 10)
    np.testing.assert_array_equal(found.passages, numpy_search(queries, passages, 10)[0])


@pytest.mark.parametrize("at_once", [13, 500_000])
def test_ties_are_ordered_by_row(monkeypatch, at_once):
    """Integers, so that scores tie exactly, also between parts; with k = N nothing is left out."""
    monkeypatch.setattr(dense, "_PASSAGES_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    queries, passages = (rng.integers(-1, 2, (n, 4)).astype(np.float32) for n in (9, 60))
    rows, scores = numpy_search(queries, passages, 60)
    found = dense.search(queries, passages, 60)
    np.testing.assert_array_equal(found.passages, rows)
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_array_equal(dense.search(queries, passages, 10).scores, scores[:, :10])


@pytest.mark.parametrize("n", [0, 3])
def test_few_passages_are_padded(n):
    rng = np.random.default_rng(0)
    queries, passages = unit(rng, 4), unit(rng, n)
    found = dense.search(queries, passages, 5)
    np.testing.assert_array_equal(found.passages[:, :n], numpy_search(queries, passages, n)[0])
    assert (found.passages[:, n:] == -1).all() and (found.scores[:, n:] == -np.inf).all()


def shown(query: str, found: dict[str, list[Hit]], width: int = 80) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(beside_each_other(query, found))
    return [line.strip() for line in console.export_text().splitlines()]


def test_brackets_are_shown():
    found = {"BM25": [Hit(1.0, "[a]", "", "aspirin [in vivo] and [/b] in mice")]}
    lines = shown("a [/INST] query", found)
    assert "a [/INST] query" in lines[0] and any(line.startswith("[a]") for line in lines)
    assert any("aspirin [in vivo] and [/b] in mice" in line for line in lines)


def test_each_passage_once_with_its_ranks_and_scores():
    """The tuned student's order, then what others found."""
    kale, rock = Hit(12.5, "kale.md#2", "Kale", "## Growing it Sow in May."), Hit(0.25, "rock", "", "Basalt.")
    found = {
        "BM25": [kale, rock],
        "untuned student": [Hit(0.5, "leaf", "Leaf", "green " * 50)],
        "tuned student": [rock, replace(kale, score=0.125)],
    }
    lines = shown("how to sow", found)
    assert max(map(len, lines)) <= 80
    starts = [next(n for n, line in enumerate(lines) if line.startswith(i)) for i in ("rock", "kale", "leaf")]
    assert starts == sorted(starts)
    assert lines[starts[0]].split() == ["rock", "2", "0.250", "-", "1", "0.250"]
    assert lines[starts[0] + 1] == "Basalt."
    assert lines[starts[1]].split() == ["kale.md#2", "Kale", "1", "12.500", "-", "2", "0.125"]
    assert lines[starts[1] + 1] == "## Growing it Sow in May."
    assert lines[starts[2]].startswith("leaf  Leaf") and any(line.endswith("…") for line in lines)


@pytest.mark.parametrize(("titled", "text"), [(True, "Blue is a colour."), (False, "Blue is a colour.")])
def test_the_title_stands_apart_from_the_text(titled, text):
    passage = {"id": "b", "title": "Blue", "text": f"Blue {text}" if titled else text}
    found = CandidateList(np.array([[0, -1]]), np.array([[0.5, -np.inf]], np.float32))
    assert _best(found, [passage], titled) == [Hit(0.5, "b", "Blue", text)]


def run_with(folder, *overrides: str) -> None:
    (folder / ".hydra").mkdir()
    (folder / "model").mkdir()
    (folder / ".hydra/overrides.yaml").write_text(yaml.safe_dump(list(overrides)))


def test_another_corpus_than_the_run_s_replaces_all_of_it(tmp_path):
    own = ["data=beir", "data.path='a FOLDER'", "student=bge_base", "precision=bf16-mixed"]
    run_with(tmp_path, *own, "seed=1", "teacher=rankt5_3b")
    assert _model_of(tmp_path, ["data=fiqa"]) == (tmp_path / "model", [*own[2:], "data=fiqa"])
    assert _model_of(tmp_path, ["data.path=OTHER"])[1] == [own[0], *own[2:], "data.path=OTHER"]
    assert _model_of(tmp_path / "model", ["data=fiqa"]) == _model_of(tmp_path, ["data=fiqa"])


@pytest.mark.parametrize(
    "override",
    [
        "student.trust_remote_code=true",
        "++student.trust_remote_code=true",
        "student={trust_remote_code:true}",
        "student._target_=os.system",
        "data._target_=os.system",
        "+data._args_=[ls]",
        "student=../../foreign/settings",
        "experiment=[losses,../../foreign]",
        "data@student=fiqa",
        "data.path=${oc.env:HOME}",
    ],
)
def test_a_run_of_somebody_else_starts_no_code(tmp_path, override, caplog):
    """But for what the user gives with this command."""
    run_with(tmp_path, "data=fiqa", override, "experiment=[paper,losses]")
    assert _model_of(tmp_path, [])[1] == ["data=fiqa", "experiment=[paper,losses]"]
    (record,) = caplog.records
    assert record.message.endswith(f": {override}; give it again if you trust the run")
    assert _model_of(tmp_path, [override])[1][-1] == override


@pytest.mark.parametrize(
    "override",
    [
        "hydra.searchpath=[file:///foreign]",
        "hydra/launcher=joblib",
        "generator.url=http://elsewhere",
        "teacher=custom",
    ],
)
def test_what_searching_does_not_need_is_not_taken_from_a_run(tmp_path, override):
    run_with(tmp_path, "student=bge_base", override)
    assert _model_of(tmp_path, [])[1] == ["student=bge_base"]


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(InputError, match="is no run and holds no model"):
        _model_of(tmp_path, [])
