"""How large a run is: by this machine, by choice, and by the corpus."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import WORDS, tiny_tokenizer
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dense_retrieval import scale
from dense_retrieval.chain import describe
from dense_retrieval.config import CONF
from dense_retrieval.models import passage_length, student_settings
from dense_retrieval.records import InputError
from dense_retrieval.search import _model_of
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.tokens import sampled_lengths, shares_cut, whole_for_most
from dense_retrieval.views import tokenized

SIZES = (
    "student.passage_length",
    "groups.list_size",
    "trainer.batch_size",
    "trainer.max_epochs",
    "precision",
)


def composed(*overrides: str):
    with initialize_config_dir(CONF, version_base=None):
        return compose("config", overrides=list(overrides))


def sizes(*overrides: str) -> list:
    config = composed(*overrides)
    return [OmegaConf.select(config, name) for name in SIZES]


@pytest.fixture(params=[False, True], ids=["no gpu", "gpu"])
def gpu(request, monkeypatch) -> bool:
    monkeypatch.setattr(scale, "gpu_memory", lambda: 80_000_000_000 * request.param)
    return request.param


def test_auto_is_what_the_device_asks_for(gpu):
    chosen = "gpu" if gpu else "laptop"
    for data in ("wikiscience", "fiqa"):
        auto, named = (composed(f"data={data}", f"scale={of}") for of in ("auto", chosen))
        assert OmegaConf.to_container(auto, resolve=True) == OmegaConf.to_container(named, resolve=True)
        assert composed(f"data={data}").scale.name == chosen
    assert composed("device=cpu").scale.name == "laptop" and composed("device=cuda").scale.name == "gpu"


def test_a_small_gpu_has_the_small_generator(monkeypatch):
    monkeypatch.setattr(scale, "gpu_memory", lambda: 12_000_000_000)
    written = composed("data=fiqa").generator
    assert (written.path, written.passages) == ("Qwen/Qwen2.5-0.5B-Instruct", 50_000)
    assert composed("data=fiqa", "scale=gpu").generator.path == "Qwen/Qwen2.5-7B-Instruct"


def test_the_sizes():
    assert sizes("scale=laptop") == [96, 10, 32, 1, "auto"]
    assert sizes("scale=gpu") == ["auto", 20, 1024, 10, "auto"]
    assert sizes("scale=paper") == [512, 20, 4096, 30, "bf16-mixed"]
    assert composed("scale=laptop", "student=bge_base").student.passage_length == 512
    totals = [composed(f"scale={of}").querytype.total for of in ("laptop", "gpu", "paper")]
    assert totals == [300, None, None]
    written = [composed("data=fiqa", f"scale={of}").generator for of in ("laptop", "gpu")]
    assert [(of.path.partition("/")[2], of.passages) for of in written] == [
        ("Qwen2.5-0.5B-Instruct", 100),
        ("Qwen2.5-7B-Instruct", 50_000),
    ]


def test_what_is_given_wins():
    given = [
        "student.passage_length=128",
        "groups.list_size=8",
        "trainer.batch_size=16",
        "trainer.max_epochs=3",
    ]
    for chosen in ("auto", "laptop", "gpu", "paper"):
        assert sizes(f"scale={chosen}", *given, "precision=32-true") == [128, 8, 16, 3, "32-true"]
    assert sizes("scale=gpu", "trainer=laptop")[2:4] == [32, 1]
    assert composed("data=fiqa", "scale=gpu", "generator=files").generator.path is None


def test_the_paper_is_of_the_paper_s_size():
    experiment = composed("experiment=paper", "data=fiqa")
    assert experiment.scale == composed("scale=paper").scale
    by_name = composed("scale=laptop", "trainer=paper").trainer
    assert experiment.trainer == by_name
    assert experiment.generator.path == experiment.scale.generator
    assert experiment.generator.passages == experiment.scale.passages
    small = composed("experiment=paper", "data=fiqa", "scale=laptop")
    assert (small.trainer.batch_size, small.loss.teacher_temperature) == (32, 0.3)


TEXTS = [" ".join(WORDS[:n]) for n in range(1, 21)]  # 3 to 22 tokens, with those that begin and end


def test_the_length_that_cuts_one_passage_of_twenty():
    lengths = sampled_lengths(TEXTS, tiny_tokenizer(), "")
    assert lengths.tolist() == list(range(3, 23))
    assert sampled_lengths(TEXTS, tiny_tokenizer(), "the star ").tolist() == list(range(5, 25))
    assert whole_for_most(lengths, 64) == 21 and whole_for_most(lengths, 9) == 9
    assert shares_cut(lengths, 21) == {"length": 21, "cut": 0.05, "lost": round(1 / lengths.sum(), 4)}
    assert shares_cut(lengths, 22) == {"length": 22, "cut": 0.0, "lost": 0.0}
    assert shares_cut(np.array([10, 30]), 20) == {"length": 20, "cut": 0.5, "lost": 0.25}
    assert whole_for_most(np.array([], dtype=int), 9) == 9 and shares_cut(np.array([]), 9)["cut"] == 0


def test_of_many_texts_a_sample_says_it(monkeypatch):
    monkeypatch.setattr("dense_retrieval.student.tokens._SAMPLE", 50)
    lengths = sampled_lengths(TEXTS * 10, tiny_tokenizer(), "")
    assert len(lengths) == 50 and {*lengths} <= {*range(3, 23)}
    assert lengths.tolist() == sampled_lengths(TEXTS * 10, tiny_tokenizer(), "").tolist()


def test_auto_is_in_the_key_before_anything_is_built():
    config = composed("scale=gpu")
    corpus = describe(config, lambda *_: None).parts[""].corpus
    step = tokenized(config, corpus, "passages")
    assert step.made_from["settings"]["length"] == "auto"
    assert student_settings(config)["passage_length"] is None
    assert student_settings(composed("scale=laptop"))["passage_length"] == 96


def test_a_length_that_is_none(encoder_folder):
    assert BiEncoder.load(str(encoder_folder), pooling="cls", passage_length=None).passage_length == 64
    with pytest.raises(
        InputError, match=r"^student.passage_length=long is neither a number of tokens nor auto$"
    ):
        passage_length(composed("student.passage_length=long"))


def test_the_line():
    config = composed("scale=laptop")
    counts = {"length": 96, "cut": 0.614, "lost": 0.339}
    assert scale.line(config, "laptop", counts) == (
        "scale=laptop: passages of up to 96 tokens (61 % are cut, which loses 34 % of all tokens), lists of 10, "
        "steps of 32 queries, 1 epoch at most"
    )
    config = composed("scale=gpu", "data=fiqa", "device=cuda")
    assert scale.line(config, "auto", {}) == (
        "scale=auto: gpu, for a GPU: passages whole, but for the 5 % longest, queries written for 50,000 "
        "passages, lists of 20, steps of 1,024 queries, 10 epochs at most"
    )


def test_a_size_that_is_not_this_machine_s_is_warned_of(finished, run, tmp_path, command):
    """It runs all the same, here with all that counts given."""
    shutil.copytree(finished / "cache", tmp_path / "cache")
    given = ["logger=none", "precision=32-true", "device=cpu", "trainer.patience=2", "hydra.run.dir=run"]
    log = run(tmp_path, *command, *given, "scale=gpu").stdout
    assert "scale=gpu is meant for a GPU, and this runs on a CPU, whose size is scale=laptop" in log
    assert (
        "scale=gpu: passages of up to 32 tokens (0 % are cut, which loses 0 % of all tokens), lists of 4"
        in log
    )
    assert "built in" not in log


def test_the_model_s_length_is_the_one_that_was_found(finished, run, tmp_path, command):
    shutil.copytree(finished / "cache", tmp_path / "cache")
    given = [*command, "logger=none", "student.passage_length=auto", "evaluation.query_length=20"]
    run(tmp_path, *given, "hydra.run.dir=run")
    lengths = json.loads((tmp_path / "run/model/sentence_bert_config.json").read_text())
    assert lengths == {"max_seq_length": 14, "query_length": 20, "document_length": 14}  # of 12 words
    assert json.loads((tmp_path / "run/metrics.json").read_text())["passage_length"] == 14
    assert "passages of up to 14 tokens" in (tmp_path / "run/model/README.md").read_text()


def test_a_run_is_searched_by_the_size_that_it_had(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / ".hydra/overrides.yaml").write_text(json.dumps(["data=fiqa", "scale=auto"]))

    def overrides(*given: str) -> list[str]:
        return _model_of(Path(tmp_path), [*given])[1]

    (tmp_path / "config.yaml").write_text("scale: {name: gpu}")
    assert overrides() == ["scale=gpu", "data=fiqa"]
    assert overrides("scale=paper") == ["data=fiqa", "scale=paper"]
    (tmp_path / "config.yaml").write_text("data: {}")
    assert overrides() == ["scale=laptop", "data=fiqa"]
