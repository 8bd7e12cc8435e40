"""Which stages read which setting: it changes their keys, those of what reads them, and no others."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from dense_retrieval import checks
from dense_retrieval.chain import describe, speed_only
from dense_retrieval.config import CONF, Config
from dense_retrieval.stage import Member, Step, reachable

GOLDEN = Path(__file__).with_name("readers.json")
BASES = {
    "files": ["evaluation.heldout_types=[claim]", "querytype.total=null"],
    "language model": [
        "generator=openai",
        "generator.url=http://localhost:1/v1",
        "generator.model=m",
        "querytype=claim",
        "querytype.total=null",
        "retriever=hybrid",
        "loss.terms.ranknet.weight=0.5",
        "loss.terms.margin_mse.weight=0.5",
    ],
}
OTHER: dict[str, Any] = {
    "querytype.types": ["claim", "question"],
    "querytype.difficulty": 0.5,
    "querytype.near_duplicates": 0.8,
    "data.text": "title_and_text",
    "student.pooling": "cls",
    "student.engine": "openvino",
    "student.tune": "queries",
    "student.append_eos": True,
    "student.dtype": "bfloat16",
    "retriever.library": "rank_bm25",
    "retriever.index": "ivf",
    "precision": "bf16-mixed",
    "evaluation.split": "train",
    "evaluation.heldout_types": ["claim", "question"],
    "evaluation.metrics": ["P@5"],
    "evaluation.dimensions": [64],
    "evaluation.vectors": ["int8"],
    "student.matryoshka": [384, 64],
    "generator.extra_body": {"a": 1},
    "loss.student_temperature": 0.07,
    "loss.teacher_temperature": 0.07,
    "loss.terms": None,
    "trainer.select": "ndcg",
    "trainer.chunk_tokens": 100,
    "trainer.graph_tokens": 100,
}
# Not of the pipeline: where things are kept and shown, what of the rankings is measured; or files, keyed by content.
ELSEWHERE = {
    *("cache_dir", "plan", "experiment", "logger.enabled", "logger.project", "logger.model"),
    *("evaluation.metrics", "data.queries", "data.mixed", "rounds_from", "generator.url"),
    *("data.path", "generator.path", "student.path", "student.revision", "teacher.path", "teacher.revision"),
    *("trainer.num_nodes", "teacher.adapter", "device", "loss.terms"),
    *("generator.parts", "generator.choose"),  # of a budget
    # Of students that ask for it alone.
    *("data.task", "student.lora.alpha", "student.lora.target_modules"),
}


def changed(config: DictConfig, name: str, field: Any) -> Any:
    """Another value of a setting that a configuration has; None if there is none to try."""
    value = OmegaConf.select(config, name)
    if name in OTHER:
        return OTHER[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        limits = field.metadata.get("range")
        wanted = value + 1 if isinstance(value, int) else value * 0.9 or 0.1
        return wanted if limits is None or wanted in limits else value - 1
    if value is None and ("int" in str(field.type) or "float" in str(field.type)):
        return 7
    return f"{value}x" if isinstance(value, str) and name not in ELSEWHERE else None


def own(step: Step[Any]) -> str:
    """What a step is made from; of other steps only that there is one."""
    inputs = {
        f"{name} {item}": "a step" if isinstance(folder, Step | Member) else folder and folder.key
        for name, value in step.arguments.items()
        for item, folder in (value.items() if isinstance(value, dict) else [("", value)])
    }
    return json.dumps([step.made_from["settings"], inputs], sort_keys=True)


def steps_of(config: DictConfig) -> list[Step[Any]]:
    return list(reachable(describe(config, lambda *_: None).steps).values())


@pytest.mark.parametrize("base", BASES)
def test_a_setting_changes_the_keys_of_those_who_read_it(base):
    with initialize_config_dir(CONF, version_base=None):
        config = compose("config", overrides=BASES[base])
    usual = steps_of(config)
    readers: dict[str, list[str]] = {}
    for name, field in checks.settings(Config):
        if name in readers or OmegaConf.select(config, name, default="none") == "none":
            continue
        if name.startswith("scale."):  # the value of another setting, which is here too
            continue
        value = changed(config, name, field)
        if value is None:
            continue
        other = config.copy()
        OmegaConf.update(other, name, value, merge=False)
        now = steps_of(other)
        if [step.stage.name for step in now] != [step.stage.name for step in usual]:
            readers[name] = ["(other stages)"]
            continue
        pairs = list(zip(usual, now, strict=True))
        reads = {new.key for old, new in pairs if own(old) != own(new)}
        below: set[str] = set()
        for step in now:  # inputs come first
            if step.key in reads or any(one.key in below for one in step.inputs):
                below.add(step.key)
        assert {new.key for old, new in pairs if old.key != new.key} == below, name
        readers[name] = sorted({step.stage.name for step in now if step.key in reads})
    idle = {name for name, of in readers.items() if not of}
    assert {name for name in idle if name.rpartition(".")[2] not in speed_only()} <= ELSEWHERE
    golden = json.loads(GOLDEN.read_text())
    assert readers == golden[base]
