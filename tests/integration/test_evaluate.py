"""dense_retrieval.evaluate: the numbers of a run, from its cache; and a corpus that has nothing to train on."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dense_retrieval.evaluate import beside_each_other


@pytest.fixture(scope="module")
def evaluated(project):
    """Runs the command in the folder of the tiny run."""

    def start(*overrides: str, check: bool = True):
        process = subprocess.run(
            [sys.executable, "-m", "dense_retrieval", "evaluate", *overrides],
            cwd=project,
            capture_output=True,
            text=True,
            env=os.environ | {"COLUMNS": "200"},
        )
        assert not check or process.returncode == 0, process.stderr[-3000:]
        return process

    return start


@pytest.fixture(scope="module")
def searched(command):
    """Of the tiny run's overrides those of its corpus and of its student's lengths."""
    return [o for o in command if o.startswith(("data", "evaluation.headroom"))]


def means(folder):
    return {
        name: row["means"]
        for name, row in json.loads((folder / "metrics.json").read_text())["systems"].items()
    }


def test_students_of_a_sweep_have_the_numbers_of_their_run(
    evaluated, searched, command, project, cross_encoder_folder
):
    """The run's own folder is its tuned student; what it started from was tested there too, and is in the cache."""
    student = [o for o in command if o.startswith("student")]
    teacher = ["teacher=custom", f"teacher.path={cross_encoder_folder}", "teacher.max_length=48"]
    log = evaluated(*searched, *student, *teacher, "hydra.run.dir=runs/before").stdout
    assert "built in" not in log
    ran, before = means(project / "runs/first"), means(project / "runs/before")
    (reranked,) = [name for name in ran if name.startswith("teacher")]
    assert before == {
        "BM25": ran["BM25"],
        "student": ran["untuned student"],
        "BM25 + student": ran["BM25 + untuned student"],
        reranked: ran[reranked],
    }
    shown = evaluated(
        "-m", *searched, "student=runs/first,runs/first/model", "hydra.sweep.dir=runs/both"
    ).stdout
    for job in "01":
        after = means(project / "runs/both" / job)
        assert after == {
            "BM25": ran["BM25"],
            "student": ran["tuned student"],
            "BM25 + student": ran["BM25 + tuned student"],
        }
    assert "student=runs/first/model" in shown and (project / "runs/both/evaluation.md").is_file()
    found = beside_each_other([project / "runs/both/0", project / "runs/both/1"])
    ((title, systems),) = found.items()
    assert title.endswith(", test queries") and list(systems) == [
        "BM25",
        "student=runs/first",
        "BM25 + student=runs/first",
        "student=runs/first/model",
        "BM25 + student=runs/first/model",
    ]
    values = systems["student=runs/first"]["nDCG@10"]
    assert np.isclose(values.mean(), ran["tuned student"]["nDCG@10"]) and values.shape == (10,)


def test_bm25_alone_needs_neither_models_nor_training_queries(evaluated, corpus, project, tmp_path):
    folder = tmp_path / "judged"
    shutil.copytree(corpus, folder)
    (folder / "qrels/train.tsv").unlink()
    (folder / "synthetic.jsonl").unlink()
    overrides = [
        "data=beir",
        f"data.path={folder}",
        "student=custom",
        "student.path=nowhere",
        "student.pooling=cls",
    ]
    log = evaluated(*overrides, "retriever=bm25", "hydra.run.dir=runs/words").stdout
    assert set(re.findall(r"(\w+): built in", log)) <= {"corpus", "test_split", "bm25_index", "bm25"}
    assert means(project / "runs/words") == {"BM25": means(project / "runs/first")["BM25"]}
    files = {file.name for file in (project / "runs/words").iterdir()}
    assert files >= {
        "metrics.json",
        "results.md",
        "per_query.parquet",
        "BM25.trec",
        "qrels.trec",
        "config.yaml",
    }
    failed = evaluated(*overrides, "hydra.run.dir=runs/none", check=False)
    assert failed.returncode == 1 and "model 'nowhere' is no local folder" in failed.stderr


def test_no_queries_are_written(evaluated, searched):
    said = evaluated(*searched, "retriever=bm25", "evaluation.split=synthetic", check=False).stderr
    assert "error: evaluation.split=synthetic: no queries are written here; choose test, dev or train" in said
