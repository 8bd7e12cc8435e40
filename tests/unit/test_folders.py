"""``student=FOLDER``: a run, or a model's folder."""

import json

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dense_retrieval import folders
from dense_retrieval.config import CONF
from dense_retrieval.records import InputError
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.export import export

OF_THE_RUN = {"pooling": "mean", "query_prefix": "query: ", "passage_prefix": "", "query_length": 32}


@pytest.fixture
def model(encoder_folder, tmp_path):
    """As a run leaves it."""
    settings = {"query_prefix": "query: ", "passage_prefix": "passage: ", "passage_length": 48}
    student = BiEncoder.load(str(encoder_folder), pooling="cls", **settings)
    export(student, tmp_path / "runs/a=1,b/model", "")
    return tmp_path / "runs/a=1,b/model"


@pytest.fixture
def finished_run(model):
    """With settings that differ from what the model's files say, and some that are not to be taken."""
    more = {"_target_": "os.system", "path": "elsewhere", "passage_length": 40, "trust_remote_code": True}
    OmegaConf.save({"student": OF_THE_RUN | more}, model.parent / "config.yaml")
    (model.parent / "metrics.json").write_text("{}")
    (model.parent / ".hydra").mkdir()
    return model.parent


def test_a_model_s_files_say_how_it_embeds(model):
    found = folders.student(model)
    assert (found.path, found.pooling) == (str(model), "cls")
    assert (found.query_prefix, found.passage_prefix, found.passage_length) == ("query: ", "passage: ", 48)


def test_a_run_says_it_itself(finished_run):
    for folder in (finished_run, finished_run / "model"):
        found = folders.student(folder)
        assert found.path == str(finished_run / "model")
        assert {name: getattr(found, name) for name in OF_THE_RUN} == OF_THE_RUN
        assert found.passage_length == 40 and found.trust_remote_code is False
        assert found._target_ == "dense_retrieval.student.bi_encoder.BiEncoder.load"


def test_old_names_of_pooling(model):
    config = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (model / "1_Pooling/config.json").write_text(json.dumps(config))
    assert folders.student(model).pooling == "mean"
    (model / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    assert folders.student(model).pooling == "cls"


def test_what_is_no_model_is_refused(finished_run, tmp_path):
    (finished_run / "model").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="has no model: the run did not finish"):
        folders.student(finished_run)
    with pytest.raises(InputError, match="is no run and holds no model"):
        folders.offer([f"student={tmp_path / 'runs'}"])
    with pytest.raises(InputError, match="student=runs/nowhere: there is no such folder"):
        folders.offer(["-m", "student=all_minilm,runs/nowhere"])


def test_a_run_of_queries_alone_is_refused_as_its_passages_are_another_model_s(finished_run):
    OmegaConf.save({"student": OF_THE_RUN | {"tune": "queries"}}, finished_run / "config.yaml")
    for folder in (finished_run, finished_run / "model"):
        with pytest.raises(InputError, match="embeds queries alone .*results.md"):
            folders.student(folder)


def composed(*overrides: str):
    folders.offer(overrides)
    with initialize_config_dir(CONF, version_base=None):
        return compose("config", overrides=list(overrides))


def test_it_is_a_choice_beside_the_others(finished_run, tmp_path, monkeypatch):
    """By an absolute path, a relative one, quoted, in a list of several; and settings beside it win."""
    monkeypatch.chdir(tmp_path)
    absolute = composed(f"student='{finished_run}'").student
    assert absolute.path == str(finished_run / "model") and absolute.query_length == 32
    (tmp_path / "runs/a=1,b").rename(tmp_path / "runs/one")
    assert composed("student=runs/one", "student.query_length=9").student.query_length == 9
    assert composed("student=runs/one/").student.path == "runs/one/model"
    folders.offer(["-m", "student=all_minilm,runs/one/model"])
    with initialize_config_dir(CONF, version_base=None):
        assert compose("config", overrides=["student=runs/one/model"]).student.pooling == "mean"
    assert composed("student=bge_base").student.path == "BAAI/bge-base-en-v1.5"
