"""The stage store: keys, atomic builds, resumption, two processes at once."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from dense_retrieval.stage import Store, fingerprint, in_shards


def build_counting(calls: list):
    def build(folder: Path) -> dict:
        calls.append(folder)
        (folder / "data.txt").write_text("x")
        return {"rows": 1}

    return build


def test_same_settings_and_inputs_are_built_once(tmp_path):
    calls: list = []
    (tmp_path / "input.txt").write_text("a")
    inputs = {"file": tmp_path / "input.txt"}
    store = Store(tmp_path / "cache")
    first = store.stage("corpus", {"k": 1}, inputs, build_counting(calls))
    second = store.stage("corpus", {"k": 1}, inputs, build_counting(calls))
    assert first == second and len(calls) == 1 and store.reused == []
    later = Store(tmp_path / "cache")
    later.stage("corpus", {"k": 1}, inputs, build_counting(calls))
    assert len(calls) == 1 and later.reused == ["corpus"]
    record = json.loads((first / "stage.json").read_text())
    assert record["settings"] == {"k": 1} and record["counts"] == {"rows": 1}
    assert record["inputs"] == {"file": fingerprint(tmp_path / "input.txt")}


def test_settings_inputs_and_version_are_in_the_key(tmp_path):
    store = Store(tmp_path / "cache")
    calls: list = []
    source = tmp_path / "input.txt"
    source.write_text("a")
    folders = {store.stage("s", {"k": 1}, {"file": source}, build_counting(calls))}
    folders.add(store.stage("s", {"k": 2}, {"file": source}, build_counting(calls)))
    folders.add(store.stage("s", {"k": 1}, {"file": source}, build_counting(calls), version=2))
    folders.add(store.stage("t", {"k": 1}, {"file": source}, build_counting(calls)))
    source.write_text("b")
    folders.add(store.stage("s", {"k": 1}, {"file": source}, build_counting(calls)))
    assert len(folders) == 5


def test_moving_an_input_changes_nothing(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("w")
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    (tmp_path / "two" / "weights").rename(tmp_path / "two" / "other")
    assert fingerprint(tmp_path / "one") != fingerprint(tmp_path / "two")


def test_an_interrupted_build_is_not_an_artifact_and_goes_on(tmp_path):
    store = Store(tmp_path)
    seen = []

    def dies_once(folder: Path) -> None:
        seen.append((folder / "half").exists())
        (folder / "half").write_text("h")
        if len(seen) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.stage("s", {}, {}, dies_once)
    assert not [p for p in tmp_path.iterdir() if (p / "stage.json").exists()]
    done = store.stage("s", {}, {}, dies_once)
    assert seen == [False, True] and (done / "half").exists()


def _build_slowly(root: Path, log: Path) -> None:
    import time

    def build(folder: Path) -> None:
        with log.open("a") as stream:
            stream.write("built\n")
        time.sleep(0.5)

    Store(root).stage("s", {}, {}, build)


def test_two_processes_build_it_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    arguments = (tmp_path / "cache", tmp_path / "log")
    processes = [context.Process(target=_build_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0]
    assert (tmp_path / "log").read_text() == "built\n"


def test_shards_are_computed_once(tmp_path):
    calls = []

    def square(part: np.ndarray) -> np.ndarray:
        calls.append(part.tolist())
        if len(calls) == 2:
            raise KeyboardInterrupt
        return part**2

    parts = [np.array([1, 2]), np.array([3]), np.array([4, 5])]
    with pytest.raises(KeyboardInterrupt):
        in_shards(tmp_path, parts, square)
    result = np.concatenate(in_shards(tmp_path, parts, square))
    assert result.tolist() == [1, 4, 9, 16, 25]
    assert calls == [[1, 2], [3], [3], [4, 5]]
