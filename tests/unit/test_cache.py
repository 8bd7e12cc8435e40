"""What the cache command lists, and what it removes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dense_retrieval import cache
from dense_retrieval.records import InputError
from dense_retrieval.stage import Counts, stage
from dense_retrieval.store import Store

DAY = 86_400


@stage(lambda folder: folder)
def letter(folder: Path, /, *, of: str) -> Counts:
    (folder / "data").write_text(of * 100)
    return {}


@pytest.fixture
def project(tmp_path) -> Path:
    """Three artifacts, of which a run needs the first; the second was last used 40 days ago; and answers."""
    store = Store(tmp_path / "cache")
    steps = [letter(of=of) for of in "abc"]
    store.build(*steps)
    (tmp_path / "runs/one").mkdir(parents=True)
    (tmp_path / "runs/one/metrics.json").write_text(json.dumps({"used": [steps[0].key]}))
    (tmp_path / "runs/other").mkdir()
    (tmp_path / "runs/other/metrics.json").write_text("[no run of ours]")
    (tmp_path / "cache/scores-0.sqlite").touch()
    old = store.root / steps[1].key
    for path in (*old.iterdir(), old):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 40 * DAY))
    return tmp_path


def ran(project: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "dense_retrieval.cache", *arguments]
    return subprocess.run(command, cwd=project, capture_output=True, text=True)


def test_artifacts_have_their_size_their_last_use_and_their_runs(project):
    found = cache.artifacts(project / "cache", project / "runs")
    assert [artifact.folder.name for artifact in found][-1] == letter(of="b").key
    by_key = {artifact.folder.name: artifact for artifact in found}
    assert by_key[letter(of="a").key].runs == (project / "runs/one",)
    assert by_key[letter(of="c").key].runs == () and all(artifact.size > 100 for artifact in found)
    now = by_key[letter(of="c").key].used
    assert round((now - by_key[letter(of="b").key].used) / DAY) == 40


@pytest.mark.parametrize(
    ("keep_runs", "older_than", "removed"),
    [(True, None, "bc"), (False, 30, "b"), (True, 30, "b"), (True, 50, ""), (False, 0, "abc")],
)
def test_what_is_pruned_is_all_that_is_asked_for(project, keep_runs, older_than, removed):
    found = cache.artifacts(project / "cache", project / "runs")
    now = max(artifact.used for artifact in found) + 1
    chosen = {artifact.folder.name for artifact in cache.unneeded(found, keep_runs, older_than, now)}
    assert chosen == {letter(of=of).key for of in removed}
    for name, expected in {"letter": chosen, "lett": set()}.items():
        of_stage = cache.unneeded(found, keep_runs, older_than, now, name)
        assert {artifact.folder.name for artifact in of_stage} == expected


def test_the_command(project):
    """A dry run first; the answers that were paid for stay."""
    b, c = letter(of="b").key, letter(of="c").key
    dry = ran(project, "prune", "--keep-runs")
    assert (
        dry.returncode == 0 and dry.stdout.count("would remove") == 2 and "--yes removes them" in dry.stdout
    )
    assert (project / "cache" / b).exists()
    (project / "cache" / c / "data").write_text("d" * 100)
    verified = ran(project, "verify")
    assert verified.returncode == 1 and f"{c}: data has another content" in verified.stdout
    assert ran(project, "prune", "--keep-runs", "--yes").returncode == 0
    left = {path.name for path in (project / "cache").iterdir() if path.is_dir()}
    assert left == {letter(of="a").key} and (project / "cache/scores-0.sqlite").exists()
    assert letter(of="a").key in ran(project, "list").stdout


def test_what_cannot_be(project, tmp_path):
    with pytest.raises(InputError, match="there is no such cache"):
        cache.artifacts(tmp_path / "nowhere", tmp_path)
    refused = ran(project, "prune")
    assert refused.returncode == 1 and refused.stderr.startswith("error: prune needs --keep-runs or")
