"""What a command does not need, it does not import: that is most of the seconds that it takes to start."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    *("torch", "pytorch_lightning", "lightning_fabric", "torchmetrics", "transformers", "peft", "tokenizers"),
    *(
        "sentence_transformers",
        "datasets",
        "pyarrow",
        "pandas",
        "scipy",
        "faiss",
        "bm25s",
        "rank_bm25",
        "numba",
        "ray",
    ),
    *("wandb", "altair", "vl_convert", "jinja2", "huggingface_hub", "requests", "matplotlib", "sklearn"),
}


def imported(folder: Path, *command: str) -> set[str]:
    """The packages that ``python -m`` of a command imports."""
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", *command], cwd=folder, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr[-3000:]
    lines = [line for line in process.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


@pytest.mark.parametrize(
    "command",
    [
        "dense_retrieval --help",
        "dense_retrieval run --help",
        "dense_retrieval.run --help",
        "dense_retrieval.evaluate --help",
        "dense_retrieval.evaluate --cfg job",
        "dense_retrieval.mteb --help",
        "dense_retrieval.run --cfg job",
        "dense_retrieval.generate --help",
        "dense_retrieval.generate --cfg job",
        "dense_retrieval.compare --help",
        "dense_retrieval.search --help",
        "dense_retrieval.cache --help",
        "dense_retrieval.export --help",
        "dense_retrieval.index --help",
    ],
)
def test_what_only_says_something_imports_nothing_heavy(tmp_path, command):
    found = imported(tmp_path, *command.split())
    assert "dense_retrieval" in found and not found & HEAVY


def test_a_plan_imports_nothing_heavy(project, command):
    overrides = [*command, "plan=true"]
    found = imported(project, "dense_retrieval.run", *overrides, "hydra.run.dir=runs/planned")
    assert "ir_measures" in found and not found & HEAVY


def test_a_run_that_is_in_the_cache_imports_no_torch(project, command):
    found = imported(project, "dense_retrieval.run", *command, "logger=none", "hydra.run.dir=runs/again")
    assert (project / "runs/again/metrics.json").is_file()
    allowed = {"pyarrow", "pandas", "scipy"}  # Parquet, for which pyarrow loads pandas, and a t-test
    assert found & HEAVY <= allowed
