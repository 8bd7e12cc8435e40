"""Plans against what a store then builds, and their arithmetic by hand."""

import json
import math
import platform
from pathlib import Path

import pytest

from dense_retrieval import plan, resident
from dense_retrieval.corpus.read import read
from dense_retrieval.forecast import peak
from dense_retrieval.hub import dimension, weights_size
from dense_retrieval.plan import Line
from dense_retrieval.stage import Counts, Folder, Outside, stage
from dense_retrieval.store import Store
from dense_retrieval.student.export_engine import exported
from dense_retrieval.training.train import in_an_epoch


def nothing(folder: Path) -> None:
    return None


@stage(nothing, forecast=lambda n: {"rows": n})
def rows(folder: Path, /, *, n: int) -> Counts:
    (folder / "rows").write_text("x" * n)
    return {"rows": n}


@stage(nothing, forecast=lambda one, each: {"pairs": one["rows"] * each})
def pairs(folder: Path, one: Folder[None], /, *, each: int) -> Counts:
    (folder / "pairs").write_text("x" * 10)
    return {"pairs": json.loads((one.path / "stage.json").read_text())["counts"]["rows"] * each}


@stage(nothing, forecast=lambda hidden: {"pairs": hidden["pairs"]})
def last(folder: Path, hidden: Folder[None], /) -> Counts:
    return {"pairs": 0}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "cache")


def test_a_plan_is_what_a_store_then_builds(store):
    steps = [last(pairs(rows(n=7), each=3)), rows(n=5)]
    planned = plan.lines(store, steps)
    assert [(line.stage, line.state, line.work) for line in planned] == [
        ("rows", "to build", {"rows": 7}),
        ("pairs", "to build", {"pairs": 21}),
        ("last", "to build", {"pairs": 21}),
        ("rows", "to build", {"rows": 5}),
    ]
    assert not store.root.exists()  # nothing was done
    store.build(*steps)
    assert store.built == {line.key for line in planned}
    assert {store.counts(rows(n=7))["rows"], store.counts(steps[1])["rows"]} == {7, 5}
    after = plan.lines(Store(store.root), steps)
    assert {line.state for line in after} == {"there"}
    assert plan.total(after) == "all of 4 stages are there: nothing to build"


def test_what_nothing_missing_reads_is_not_needed(store):
    below = rows(n=7)
    step = pairs(below, each=3)
    store.build(step)
    for file in [*(store.root / below.key).iterdir()]:
        file.unlink()
    (store.root / below.key).rmdir()
    later = Store(store.root)
    assert [line.state for line in plan.lines(later, [step])] == ["not needed", "there"]
    later.build(step)
    assert later.built == set()


def test_time_and_size_are_those_of_earlier_work_on_this_machine(store):
    for n, seconds, host in ((10, 2.0, None), (30, 6.0, None), (100, 999.0, "another")):
        store.build(rows(n=n))
        file = store.root / rows(n=n).key / "stage.json"
        record = json.loads(file.read_text()) | {"seconds": seconds}
        record["host"] = host or platform.node()
        file.write_text(json.dumps(record))
    # 8 s for 40 rows here; a byte a row
    line = plan.lines(store, [rows(n=50)])[0]
    assert (line.seconds, line.size) == (pytest.approx(10.0), pytest.approx(50.0))
    unknown = plan.lines(store, [pairs(rows(n=50), each=2)])[1]
    assert math.isnan(unknown.seconds) and math.isnan(unknown.size) and unknown.work == {"pairs": 100}


def test_the_union_of_jobs_has_each_stage_once():
    lines = [
        Line(key, "s", state, {"rows": 1.0}, 1.0, 2.0, 3.0)
        for key, state in (("a", "there"), ("b", "to build"))
    ]
    other = [
        Line("a", "s", "to build", {"rows": 1.0}, 1.0, 2.0, 3.0),
        Line("c", "s", "there", {}, 1.0, 2.0, 3.0),
    ]
    found = plan.union([[vars(line) for line in part] for part in (lines, other)])
    assert {line.key: line.state for line in found} == {"a": "to build", "b": "to build", "c": "there"}


def test_the_total_counts_what_is_known():
    nan = math.nan
    lines = [
        Line("a", "raw_queries", "to build", {"written": 10.0, "tokens": 5000.0}, 60.0, 1e6, 3e9),
        Line("b", "s", "to build", {"rows": nan}, nan, nan, nan),
        Line("c", "s", "there", {"rows": 9.0}, nan, nan, 5e9),
    ]
    assert plan.total(lines) == (
        "2 of 3 stages to build: 60 s (1 of unknown time), 1.0 MB (1 of unknown size), up to 3.0 GB of memory "
        "(1 of unknown memory), 5,000 tokens for the language model, less what it has answered before"
    )


def test_memory_is_a_process_s_own_and_so_much_a_unit():
    measured = [(100, 1_000.0), (200, 1_100.0), (400, 1_300.0)]  # 900 and 1 a unit
    assert peak(measured, 1_000) == pytest.approx(1_900)
    assert peak(measured, 10) == 1_000  # the least that was seen
    one = [(100, 1_000.0), (150, 1_200.0)]  # too near each other to say what a unit takes
    assert peak(one, 300) == 1_200 and math.isnan(peak(one, 301))
    assert peak([(100, 1_300.0), (400, 1_000.0)], 800) == 1_300
    assert math.isnan(peak(measured, 4_001))
    assert math.isnan(peak([], 1)) and math.isnan(peak(measured, math.nan))


def test_a_stage_s_memory_is_in_its_record(store, monkeypatch):
    """The most that was held, beside the key: an older record has none, and is as good."""
    held = iter([5, 7])
    monkeypatch.setattr("dense_retrieval.resident.now", lambda: next(held, 6))
    store.build(rows(n=3))
    record = json.loads((store.root / rows(n=3).key / "stage.json").read_text())
    assert record["memory"] == 7
    assert plan.lines(store, [rows(n=4)])[0].memory == 7


def test_memory_is_that_of_the_process():
    before = resident.now()
    with resident.peak() as most:
        held = bytearray(64 * 2**20)
        assert most() >= before + len(held) // 2


@stage(nothing, name="training", forecast=lambda weights: {"rows": 1, "bytes": weights_size(weights)})
def tuned(folder: Path, weights: Folder[Path], /) -> Counts:
    (folder / "model").mkdir()
    (folder / "model/model.safetensors").write_bytes(b"x" * 8)
    return {"rows": 1}


@stage(nothing, forecast=lambda weights, n: {"texts": n, "bytes": n * 4 * dimension(weights)})
def embedded(folder: Path, weights: Folder[Path], /, *, n: int) -> Counts:
    return {"texts": n}


@stage(nothing, name="ranking", forecast=lambda queries, passage_embeddings: {"queries": queries["texts"]})
def searched(folder: Path, queries: Folder[None], passage_embeddings: Folder[None], /) -> Counts:
    return {"queries": 2}


def took(store: Store, step, **values) -> None:
    """What a stage's record says that it took."""
    file = store.root / step.key / "stage.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def models(tmp_path) -> list[Outside]:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
        (tmp_path / name / "config.json").write_text('{"hidden_size": 3}')
    return [Outside(tmp_path / "one"), Outside(tmp_path / "other")]


def test_a_model_s_time_is_that_of_the_same_one_and_of_what_is_tuned_from_it(store, models):
    one, other = models
    first = embedded(one, n=10)
    store.build(first)
    took(store, first, seconds=5.0)
    tuned_one, tuned_other = (embedded(tuned(of).part("model"), n=20) for of in models)
    lines = {line.key: line for line in plan.lines(store, [embedded(one, n=30), tuned_one, tuned_other])}
    assert lines[embedded(one, n=30).key].seconds == pytest.approx(15.0)
    assert lines[embedded(one, n=30).key].size == 30 * 4 * 3
    assert lines[tuned_one.key].seconds == pytest.approx(10.0)
    assert math.isnan(lines[tuned_other.key].seconds)
    assert lines[tuned(one).key].size == 3 and lines[tuned(other).key].size == 5  # of their weights
    store.build(tuned_one)
    took(store, tuned_one, seconds=100.0)
    found = {line.key: line for line in plan.lines(store, [embedded(one, n=30)])}
    assert found[embedded(one, n=30).key].seconds == pytest.approx(105.0)  # 105 s for 30 texts


def test_a_search_takes_as_long_as_there_are_queries_and_passages(store, models):
    few, many = embedded(models[0], n=10), embedded(models[0], n=1_000)
    asked = embedded(models[0], n=2)
    step = searched(asked, few)
    store.build(step)
    took(store, step, seconds=3.0, memory=100)
    found = {line.key: line for line in plan.lines(store, [searched(asked, many)])}
    assert found[searched(asked, many).key].seconds == pytest.approx(300.0)
    assert math.isnan(found[searched(asked, many).key].memory)  # of so many passages nothing is known


def test_a_corpus_that_is_not_there_is_as_large_as_beir_says(store):
    loader = {"_target_": "dense_retrieval.corpus.beir.read_named", "name": "mteb/fiqa"}
    known = {"passages": 57_638, "words": 132.0, "train_queries": None, "test_queries": 648}
    step = read(None, loader=loader, known=known)
    assert step.key == read(None, loader=loader).key
    work = plan.lines(store, [step])[0].work
    assert work == {"passages": 57_638, "test queries": 648, "characters": 57_638 * 132 * 6}


def test_what_an_exported_student_takes_on_disk(store, models):
    settings = {"student": {}}
    sizes = [
        plan.lines(store, [exported(models[1], None, engine=engine, **settings)])[-1].size
        for engine in ("openvino", "onnx_int8", "openvino_int8")
    ]
    assert sizes == [5, 5, 1.25]


@pytest.mark.parametrize(
    ("batch_size", "read"),
    [(2, 20 + 20 + 10), (3, 25 + 20), (5, 25), (1000, 25)],  # five groups of ten of a corpus of 25 passages
)
def test_an_epoch_reads_a_steps_passages_once(batch_size, read):
    assert in_an_epoch(5, 50, batch_size, 25) == read
    assert math.isnan(in_an_epoch(math.nan, math.nan, batch_size, 25))
