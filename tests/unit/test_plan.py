"""Plans against what a store then builds, and their arithmetic by hand."""

import json
import math
import platform
from pathlib import Path

import pytest

from dense_retrieval import plan, resident
from dense_retrieval.forecast import peak
from dense_retrieval.plan import Line
from dense_retrieval.stage import Counts, Folder, stage
from dense_retrieval.store import Store


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
        "2 of 3 stages to build: 60 s (1 of unknown time), 1.0 MB (1 of unknown size), at most 3.0 GB of memory, "
        "5,000 tokens for the language model, less what it has answered before"
    )


def test_memory_is_a_process_s_own_and_so_much_a_unit():
    measured = [(100, 1_000.0), (200, 1_100.0), (400, 1_300.0)]  # 900 and 1 a unit
    assert peak(measured, 1_000) == pytest.approx(1_900)
    assert peak(measured, 10) == 1_000  # the least that was seen
    one = [(100, 1_000.0), (150, 1_200.0)]  # too near each other to say what a unit takes
    assert peak(one, 300) == 1_200 and math.isnan(peak(one, 301))
    assert peak([(100, 1_300.0), (400, 1_000.0)], 800) == 1_300
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
