"""The notebooks run from their first cell to their last, and show what they should."""

from pathlib import Path

import nbformat
import pytest
from finished_runs import with_facts
from nbclient import NotebookClient

from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.export import export

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def shown(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **replaced: str) -> list[str]:
    """The text that each code cell puts out; cells that begin with a name are replaced."""
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parent))
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    for start, source in replaced.items():
        (cell,) = (cell for cell in notebook.cells if cell.source.startswith(start))
        cell.source = source
    resources = {"metadata": {"path": str(folder)}}
    # a kernel that is late sends what one cell prints in several pieces
    NotebookClient(notebook, timeout=300, coalesce_streams=True, resources=resources).execute()
    texts = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            outputs = [
                output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs
            ]
            texts.append("\n".join(outputs))
    return texts


def test_from_a_corpus_to_synthetic_queries(command, tmp_path, monkeypatch):
    overrides = f"OVERRIDES = {[*command, 'querytype.types=[claim,question]']}"
    cells = shown("1_synthetic_queries.ipynb", tmp_path, monkeypatch, OVERRIDES=overrides)
    assert "40 passages, 4 of them held out" in cells[1]
    assert "claim" in cells[2] and "question" in cells[2]
    assert cells[4].count("True") == 1  # one of the listed passages is the source
    assert "retriever filter" in cells[5] and "all" in cells[5]
    assert "label" in cells[6]


def test_reading_a_grid(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    with_facts(tmp_path / "runs")
    cells = shown("2_reading_a_grid.ipynb", tmp_path, monkeypatch)
    assert "2 runs; they differ in loss" in cells[1] and "loss=infonce" in cells[1]
    assert "listwise" in cells[2]
    assert "won " in cells[3] and "difference" in cells[4]


def test_using_a_model(encoder_folder, tmp_path, monkeypatch):
    export(
        BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=32),
        tmp_path / "runs/one/model",
        "",
    )
    cells = shown("3_using_a_model.ipynb", tmp_path, monkeypatch)
    assert cells[2].count("\n") == 3 and cells[2].startswith("rock from a volcano: ")
