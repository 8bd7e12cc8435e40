"""Stages: keys by signature, builds once, resumption, damage, two processes at once."""

import json
import logging
import multiprocessing
import os
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from dense_retrieval.executor import in_shards
from dense_retrieval.files import fingerprint
from dense_retrieval.records import InputError
from dense_retrieval.stage import SPEED, Counts, Folder, Outside, Settings, Step, stage
from dense_retrieval.store import FORMAT, Store, damage

CALLS: list[str] = []


def read_text(folder: Path) -> str:
    return (folder / "data.txt").read_text()


@stage(read_text)
def source(folder: Path, file: Folder[Path] | None, /, *, k: int, tone: str = "plain") -> Counts:
    CALLS.append("source")
    (folder / "data.txt").write_text(f"{file.path.read_text() if file else ''}{k}{tone}")
    return {"rows": k}


@stage(read_text, name="twice", speed=("workers", "hint"))
def doubled(
    folder: Path, one: Folder[str], hint: Folder[str] | None, /, *, workers: int, model: dict | None = None
) -> Counts:
    CALLS.append("doubled")
    (folder / "data.txt").write_text(one.load() * 2)
    return {"workers": workers}


@stage(read_text)
def joined(folder: Path, parts: dict[str, Folder[str]], /, **named: int) -> Counts:
    CALLS.append("joined")
    (folder / "data.txt").write_text("+".join(part.load() for part in parts.values()))
    return named


@pytest.fixture(autouse=True)
def nothing_called():
    CALLS.clear()


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "cache")


def test_calling_a_stage_runs_nothing_and_building_runs_what_is_missing(store, tmp_path):
    step = doubled(source(None, k=3), None, workers=1)
    assert CALLS == [] and step.key.startswith("twice-")
    for ask in (store.load, store.open, store.counts):
        with pytest.raises(TypeError, match="twice was not built"):
            ask(step)
    store.build(step)
    assert CALLS == ["source", "doubled"] and store.load(step) == "3plain3plain"
    assert store.counts(step) == {"workers": 1} and store.reused == []
    record = json.loads((store.open(step).path / "stage.json").read_text())
    assert record["settings"] == {} and record["inputs"] == {"one": source(None, k=3).key}
    later = Store(store.root)
    later.build(doubled(source(None, k=3), None, workers=8))
    assert later.reused == ["twice"] and CALLS == ["source", "doubled"]


def test_what_a_stage_leaves_in_cycles_is_freed_when_it_ends(store):
    left: list[weakref.ref] = []

    class Trainer:
        def __init__(self) -> None:
            self.module = [self]
            left.append(weakref.ref(self))

    @stage(read_text)
    def trained(folder: Path, /) -> Counts:
        Trainer()
        return {}

    store.build(trained())
    assert left[0]() is None


def test_an_input_is_not_asked_for_where_what_needs_it_is_there(store):
    below = source(None, k=3)
    store.build(doubled(below, None, workers=1))
    for file in sorted((store.root / below.key).rglob("*"), reverse=True):
        file.unlink()
    (store.root / below.key).rmdir()
    Store(store.root).build(doubled(below, None, workers=1))
    assert CALLS == ["source", "doubled"]


def test_the_signature_is_the_key(tmp_path):
    """Settings, inputs, name and version count; speed, and settings at their defaults, do not."""
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    one = source(Outside(tmp_path / "a"), k=1)
    others = [
        source(Outside(tmp_path / "a"), k=2),
        source(Outside(tmp_path / "b"), k=1),
        source(None, k=1),
        source(Outside(tmp_path / "a"), k=1, tone="loud"),
        stage(read_text, name="other")(source.function)(Outside(tmp_path / "a"), k=1),
        stage(read_text, version=2)(source.function)(Outside(tmp_path / "a"), k=1),
    ]
    assert len({step.key for step in [one, *others]}) == 7
    assert source(Outside(tmp_path / "a"), k=1, tone="plain").key == one.key
    assert one.made_from["settings"] == {"k": 1}
    assert doubled(one, None, workers=1).key == doubled(one, others[0], workers=2).key
    assert doubled(one, None, workers=1).key != doubled(others[0], None, workers=1).key
    assert {"workers", "hint"} <= SPEED


def test_a_new_setting_at_its_default_leaves_old_keys_alone():
    def function(folder: Path, /, *, k: int) -> Counts:
        return {}

    def later(folder: Path, /, *, k: int, added: float = 0.5) -> Counts:
        return {}

    before, after = (stage(read_text, name="s")(f) for f in (function, later))
    assert before(k=1).key == after(k=1).key == after(k=1, added=0.5).key != after(k=1, added=0.6).key


def test_of_some_settings_only_a_part_counts():
    model = {"path": "here", "pooling": "mean"}
    keys = {
        doubled(
            source(None, k=1), None, workers=1, model=Settings(model | {"path": path}, {"pooling": "mean"})
        ).key
        for path in ("here", "there")
    }
    assert len(keys) == 1
    assert (
        doubled(source(None, k=1), None, workers=1, model=Settings(model, {"pooling": "cls"})).key not in keys
    )


def test_several_inputs_and_settings_by_name(store):
    parts = {"0-a": source(None, k=1), "1-b": source(None, k=2)}
    step = joined(parts, depth=3)
    store.build(step)
    assert store.load(step) == "1plain+2plain" and store.counts(step) == {"depth": 3}
    assert step.made_from["inputs"] == {f"parts {name}": part.key for name, part in parts.items()}
    assert joined({"0-a": parts["0-a"], "1-b": parts["0-a"]}, depth=3).key != step.key


def test_a_misspelt_setting_or_a_missing_input_is_a_type_error():
    """At the call; mypy says so before, since a stage keeps its function's signature."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'kk'"):
        source(None, k=1, kk=1)
    with pytest.raises(TypeError, match="missing a required"):
        doubled(workers=1)


def test_moving_an_input_changes_nothing(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "weights").write_text("w")
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    (tmp_path / "two" / "inner" / "weights").rename(tmp_path / "two" / "inner" / "other")
    assert fingerprint(tmp_path / "one") != fingerprint(tmp_path / "two")


def test_linked_folders_count_and_circles_end(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "w").write_text("1")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    without = fingerprint(tmp_path / "model")
    (tmp_path / "model" / "weights").symlink_to(tmp_path / "blobs")
    (tmp_path / "model" / "self").symlink_to(tmp_path / "model")
    linked = fingerprint(tmp_path / "model")
    (tmp_path / "blobs" / "w").write_text("2")
    os.utime(tmp_path / "blobs" / "w", ns=(1, 1))
    assert len({without, linked, fingerprint(tmp_path / "model")}) == 3


def test_a_data_folder_that_holds_a_stage_json_is_keyed_by_its_content(tmp_path):
    for name, text in {"one": "a", "two": "b"}.items():
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "data" / "stage.json").write_text("{}")
        (tmp_path / name / "data" / "corpus").write_text(text)
    assert len({Outside(tmp_path / name / "data").key for name in ("one", "two")}) == 2


@stage(read_text)
def dies_once(folder: Path, /, *, state: str) -> Counts:
    CALLS.append("half" if (folder / "half").exists() else "new")
    (folder / "half").write_text("h")
    (folder / "data.txt").write_text("whole")
    if not Path(state).exists():
        Path(state).touch()
        raise KeyboardInterrupt
    return {}


def test_an_interrupted_build_is_not_an_artifact_and_goes_on(store, tmp_path):
    step = dies_once(state=str(tmp_path / "state"))
    with pytest.raises(KeyboardInterrupt):
        store.build(step)
    assert not list(store.root.glob("*/stage.json"))
    store.build(step)
    assert CALLS == ["new", "half"] and store.load(step) == "whole"


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("harm", [truncated, flipped, lambda f: f.write_bytes(b""), Path.unlink])
@pytest.mark.parametrize("name", ["data.txt", "stage.json"])
def test_what_is_damaged_is_named_and_built_again(store, caplog, harm, name):
    step = source(None, k=1234567)
    store.build(step)
    folder = store.open(step).path
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "stage.json"}
    harm(folder / name)
    os.utime(folder / name, ns=(1, 1)) if (folder / name).exists() else None
    with caplog.at_level(logging.WARNING):
        Store(store.root).build(step)
    assert CALLS == ["source", "source"] and damage(folder) is None
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "stage.json"} == before
    (line,) = caplog.messages
    assert name in line and "building it again" in line and "\n" not in line


def test_counts_that_were_changed_are_damage(store):
    step = source(None, k=5)
    store.build(step)
    file = store.open(step).path / "stage.json"
    file.write_text(file.read_text().replace('"rows": 5', '"rows": 6'))
    assert damage(file.parent) == "stage.json is not the one that was written"


def test_an_artifact_from_before_checksums_is_taken_as_it_is(store):
    step = source(None, k=5)
    store.build(step)
    file = store.open(step).path / "stage.json"
    record = json.loads(file.read_text())
    del record["outputs"], record["sha256"]
    file.write_text(json.dumps(record))
    Store(store.root).build(step)
    assert CALLS == ["source"]


def test_a_cache_of_a_newer_format_is_refused(tmp_path):
    (tmp_path / "FORMAT").write_text(f"{FORMAT + 1}\n")
    with pytest.raises(InputError, match=f"cache of format '{FORMAT + 1}'.*update dense_retrieval"):
        Store(tmp_path)


def test_a_complete_cache_can_be_read_by_who_cannot_write_it(store, tmp_path, monkeypatch):
    step = doubled(source(None, k=1), None, workers=1)
    store.build(step)

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    for name in ("mkdir", "replace", "open", "utime"):
        monkeypatch.setattr(os, name, denied)
    later = Store(store.root)
    later.build(step)
    assert later.load(step) == "1plain1plain"


@stage(read_text)
def slow(folder: Path, /, *, log: str) -> Counts:
    with Path(log).open("a") as stream:
        stream.write("built\n")
    time.sleep(0.5)
    (folder / "data.txt").write_text("x")
    return {}


def _build_slowly(root: Path, log: Path, heard: Path) -> None:
    logging.basicConfig(filename=heard, level=logging.INFO, force=True)
    Store(root).build(slow(log=str(log)))


def test_two_processes_build_it_once_and_who_waits_says_for_whom(tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "cache", tmp_path / "log", tmp_path / "heard")
    processes = [context.Process(target=_build_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0]
    assert (tmp_path / "log").read_text() == "built\n"
    heard = (tmp_path / "heard").read_text()
    assert any(f"waiting for process {p.pid} on {os.uname().nodename} (since 20" in heard for p in processes)


def _dies_holding(root: Path, log: Path) -> None:
    import dense_retrieval.store as module

    module._finish = lambda *_: os._exit(9)
    Store(root).build(slow(log=str(log)))


def test_what_a_dead_process_held_is_taken_over(tmp_path):
    process = multiprocessing.get_context("fork").Process(
        target=_dies_holding, args=(tmp_path / "cache", tmp_path / "log")
    )
    process.start()
    process.join()
    store = Store(tmp_path / "cache")
    store.build(slow(log=str(tmp_path / "log")))
    assert process.exitcode == 9 and (tmp_path / "log").read_text() == "built\nbuilt\n"


def test_shards_are_computed_once(tmp_path):
    calls = []

    def square(part: np.ndarray, advance) -> np.ndarray:
        calls.append(part.tolist())
        if len(calls) == 2:
            raise KeyboardInterrupt
        return part**2

    parts = [np.array([1, 2]), np.array([3]), np.array([4, 5])]
    with pytest.raises(KeyboardInterrupt):
        in_shards(tmp_path, parts, lambda device: square)
    result = np.concatenate([np.load(file) for file in in_shards(tmp_path, parts, lambda device: square)])
    assert result.tolist() == [1, 4, 9, 16, 25]
    assert calls == [[1, 2], [3], [3], [4, 5]]


def test_a_step_is_typed():
    assert isinstance(source(None, k=1), Step)
