"""A tiny run, handed on: as the commands do it, and what they say."""

import json
import subprocess
import sys

import numpy as np
import pytest

from dense_retrieval import bulk
from dense_retrieval.candidates.dense import search
from dense_retrieval.export import export
from dense_retrieval.index import index
from dense_retrieval.parity import ask
from dense_retrieval.records import InputError
from dense_retrieval.search import opened


@pytest.fixture
def run_folder(project, monkeypatch):
    monkeypatch.chdir(project)
    return project / "runs/first"


def test_the_run_s_own_vectors_are_asked(run_folder):
    """Nothing is embedded again, and what is found is what the run wrote."""
    of = opened(run_folder, [])
    asked = ask(of)
    assert not of.store.built
    found = asked.ranking(asked.queries, asked.passages).passages
    ids = asked.table["id"]
    ranked: dict[str, list[str]] = {}
    for line in (run_folder / "tuned_student.trec").read_text().splitlines():
        ranked.setdefault(line.split()[0], []).append(line.split()[2])
    assert [[ids[int(row)] for row in rows] for rows in found] == [
        of_query[:20] for of_query in ranked.values()
    ]
    assert len(asked.rows) == 10 and asked.qrels.passage.tolist() == list(range(10))


def test_exporting(run_folder, capsys):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    folder = export(run_folder / "model", {"format": "onnx,hub"}, [])
    assert folder == run_folder / "export"
    shown = capsys.readouterr().out
    assert "onnx/model.onnx" in shown and "100.00% of the ten best in common" in shown
    found = json.loads((folder / "parity.json").read_text())["onnx/model.onnx"]
    assert found["cosines"]["min"] > 0.999999 and abs(found["lost"]) < 1e-9 and found["queries"] == 10
    assert {"model.safetensors", "modules.json", "README.md", "tokenizer.json"} <= {
        f.name for f in folder.iterdir()
    }
    readme = (folder / "README.md").read_text()
    assert "model-index:" in readme and "## On CPUs" in readme
    assert "## On CPUs" not in (run_folder / "model/README.md").read_text()


@pytest.mark.parametrize("form", ["faiss", "qdrant", "elasticsearch", "lucene"])
def test_indexing(run_folder, capsys, form):
    pytest.importorskip("qdrant_client" if form == "qdrant" else "faiss")
    found = index(run_folder, {"format": form}, [])
    assert (found.common, found.same) == (1.0, 1.0) and found.scores < 1e-6 and abs(found.lost) < 1e-9
    shown = capsys.readouterr().out
    assert (
        f"{form} against our search: scores differ by at most" in shown
        and f"runs/first/index/{form}" in shown
    )
    with pytest.raises(InputError, match="is there already: remove it, or give another output="):
        index(run_folder, {"format": form}, [])


def test_indexing_on_a_server(run_folder, monkeypatch, capsys):
    qdrant_client = pytest.importorskip("qdrant_client")
    server = qdrant_client.QdrantClient(":memory:")
    monkeypatch.setattr("dense_retrieval.index._client", lambda url: server)
    own = {"format": "qdrant", "url": "http://somewhere", "collection": "kale"}
    assert index(run_folder, own, []).common == 1.0
    assert (
        server.count("kale").count == 40 and "collection kale of http://somewhere" in capsys.readouterr().out
    )
    asked = ask(opened(run_folder, []))
    (point,) = server.retrieve("kale", [3], with_vectors=True)
    np.testing.assert_allclose(point.vector, asked.passages[3], atol=1e-6)
    same = bulk.search_qdrant(server, "kale", asked.queries, 5).passages
    np.testing.assert_array_equal(same, search(asked.queries, asked.passages, 5).passages)
    with pytest.raises(InputError, match="has a collection kale already"):
        index(run_folder, own, [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("export runs/first format=tflite", "format=tflite: choose of onnx, openvino, int8, hub"),
        ("export runs/first format=onnx push=me/kale", "push=me/kale goes with format=hub"),
        ("index runs/first format=annoy", "format=annoy: choose of faiss, qdrant, elasticsearch, lucene"),
        ("index runs/first format=faiss url=http://a", "url=http://a goes with format=qdrant"),
        ("index runs/nowhere format=faiss", "runs/nowhere: there is no such folder"),
    ],
)
def test_what_cannot_be(tmp_path, words, message):
    command = [sys.executable, "-m", *f"dense_retrieval.{words}".split()]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.startswith(f"error: {message}"), refused.stderr


def test_synthetic_test_queries_are_those_of_the_run(run, command, project, monkeypatch):
    run(project, *command, "evaluation.split=synthetic", "hydra.run.dir=runs/synthetic")
    monkeypatch.chdir(project)
    asked = ask(opened(project / "runs/synthetic", []))
    judged = (project / "runs/synthetic/qrels.trec").read_text().splitlines()
    ids = asked.table["id"]
    assert [ids[int(row)] for row in asked.qrels.passage] == [line.split()[2] for line in judged]
    metrics = project / "runs/synthetic/metrics.json"
    left = json.loads(metrics.read_text())
    del left["artifacts"]["test queries"]  # as of a run before they were named
    metrics.write_text(json.dumps(left))
    with pytest.raises(
        InputError, match="was tested on synthetic queries, which cache has no more: run it again"
    ):
        ask(opened(project / "runs/synthetic", []))
