"""Jobs that are finished, and folders that no job made."""

import json
import logging

import pytest
import yaml

import dense_retrieval
from dense_retrieval import sweep
from dense_retrieval.records import InputError

SETTINGS = {"data": {}, "querytype": {}, "loss": {}, "trainer": {}, "evaluation": {}, "seed": 0}


def job(folder, made_from: dict, settings: dict = SETTINGS) -> None:
    (folder / "model").mkdir(parents=True)
    (folder / "model/README.md").touch()
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    metrics = {"versions": {"dense_retrieval": dense_retrieval.__version__}, "inputs": made_from}
    (folder / "metrics.json").write_text(json.dumps(metrics))


def test_a_job_is_finished_as_long_as_its_settings_and_inputs_are_the_same(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    job(tmp_path, {"a.jsonl": "1"})
    assert len(sweep.finished(tmp_path, SETTINGS, {"a.jsonl": "1"})) == 1 and not caplog.messages
    assert sweep.finished(tmp_path, SETTINGS, {"a.jsonl": "2"}) == []
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml"}
    job(tmp_path / "other", {})
    assert sweep.finished(tmp_path / "other", SETTINGS | {"seed": 1}, {}) == []
    assert caplog.messages == [
        "a finished run is made anew: its input files have changed",
        "a finished run with seed=0 is replaced",
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"seed": 1}, "seed=0"),
        ({"loss": {"temperature": 1, "weight": 2}}, "loss.weight=1"),
        ({"loss": {"temperature": 1}}, "loss.weight=1"),
        ({"loss": {"temperature": 1, "weight": 1, "new": 3}}, "no loss.new"),
    ],
)
def test_the_first_setting_in_which_a_finished_run_differs(tmp_path, changed, said):
    old = SETTINGS | {"loss": {"temperature": 1, "weight": 1}}
    job(tmp_path, {}, old)
    assert sweep.other_settings(tmp_path, old | changed) == said
    (tmp_path / "model/README.md").unlink()  # not finished
    assert sweep.other_settings(tmp_path, old | changed) is None


@pytest.mark.parametrize("settings", [None, "a: [", "name: my project"])
def test_files_of_others_are_left_alone(tmp_path, settings):
    (tmp_path / "model").mkdir()
    (tmp_path / "0-day").mkdir()
    (tmp_path / "0-day/metrics.json").touch()
    if settings:
        (tmp_path / "config.yaml").write_text(settings)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="has files that no run made"):
        sweep.finished(tmp_path, SETTINGS, {})
    assert sorted(tmp_path.rglob("*")) == before


def test_inputs_are_the_files_that_settings_name(tmp_path):
    """By content: of a corpus, of queries, of a prompt, of weights, of a judge, of a mixture's members."""
    for name in ("corpus.jsonl", "mine.yaml", "weights", "member.zip", "judge.gguf", "cache"):
        (tmp_path / name).write_text(name)
    settings = {
        "data": {
            "path": f"{tmp_path}/corpus.jsonl",
            "members": [f"data=beir data.path='{tmp_path}/member.zip'"],
        },
        "querytype": {
            "types": ["claim", f"{tmp_path}/mine.yaml"],
            "judge": f"generator=llama_cpp generator.path={tmp_path}/judge.gguf",
        },
        "teacher": {"path": "BAAI/bge-reranker-v2-m3", "adapter": f"{tmp_path}/weights"},
        "cache_dir": f"{tmp_path}/cache",
    }
    found = sweep.inputs(settings)
    named = ("corpus.jsonl", "mine.yaml", "weights", "member.zip", "judge.gguf")
    assert set(found) == {f"{tmp_path}/{name}" for name in named}
    (tmp_path / "mine.yaml").write_text("changed")
    changed = sweep.inputs(settings)
    assert {name for name in found if found[name] != changed[name]} == {f"{tmp_path}/mine.yaml"}
