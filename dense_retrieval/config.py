"""Typed schemas of ``conf/``: every setting with its type, unit, meaning and range.

A wrong key, type or number in a config file or on the command line fails before anything is loaded. Corpora,
generators and models have schemas of their own in :mod:`dense_retrieval.schemas`.
"""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from dense_retrieval import scale, sweep
from dense_retrieval.records import InputError
from dense_retrieval.schemas import corpora, encoders, executors, generators
from dense_retrieval.schemas.generators import LanguageModel
from dense_retrieval.schemas.losses import Loss
from dense_retrieval.schemas.scale import Scale
from dense_retrieval.schemas.setting import setting
from dense_retrieval.schemas.teacher_training import TeacherTraining

__all__ = ["CONF", "GROUPS", "Config", "LanguageModel", "TeacherTraining", "package_file"]

_HERE = Path(__file__).resolve().parent
# In a checkout conf/ stands beside the package, in a wheel inside it.
CONF = str(next(p for p in (_HERE / "conf", _HERE.parent / "conf") if p.is_dir()))


@dataclass
class QueryType:
    """Which training queries: ``conf/querytype/``."""

    types: list[str] = setting(MISSING, "equal shares of each; a name, or the .yaml file of a prompt")
    total: int | None = setting(
        None, "training queries in all, before the filters; null = all there are", least=1
    )
    near_duplicates: float | None = setting(
        None,
        "share of their words, stop words aside, from which on two synthetic queries say the same, such as 0.8: the "
        "second one is dropped; null = none is",
        above=0,
        most=1,
    )
    judge: str | None = setting(
        None,
        "language model that drops the synthetic queries that, as it says, their passages do not answer: generator, "
        "the one that writes them, or another one's overrides, such as 'generator=llama_cpp generator.path=FILE.gguf'; "
        "null = none does",
    )
    difficulty: float | None = setting(
        None,
        "share of each type's synthetic queries that total is drawn from: those whose passage BM25 and the untuned "
        "student rank lowest, and that share the fewest words with it; null = all",
        above=0,
        most=1,
    )


@dataclass
class Retriever:
    """Candidates for training queries, and the BM25 of the results table: ``conf/retriever/``."""

    bm25: bool = setting(MISSING, "candidates by BM25")
    dense: bool = setting(MISSING, "by the untuned student; with bm25, fused by reciprocal rank")
    k: int = setting(100, "candidates a query", least=1)
    fusion_k: int = setting(60, "reciprocal rank fusion: 1 / (fusion_k + rank)", least=0)
    index: str = setting(
        "flat", "of the student's search for candidates: flat is exact; ivf and hnsw, for millions, are not"
    )
    library: str = setting("bm25s", "bm25s or rank_bm25; both rank alike")
    k1: float = setting(1.5, "BM25: how long a repeated word goes on to count", least=0)
    b: float = setting(0.75, "BM25: how much a passage's length counts", least=0, most=1)


@dataclass
class Groups:
    """Filters and labels."""

    list_size: int = setting(10, "passages a query", least=2)
    source_top_k: int = setting(20, "the retriever must rank a query's source passage within", least=1)
    teacher_top1: bool = setting(True, "the teacher must rank it first")
    min_top_percentile: float = setting(
        25.0, "of all scores: a query's best score must reach it", least=0, most=100
    )
    dev_fraction: float = setting(
        0.1, "of the source passages; 0 = no dev set: the last epoch's weights are kept", least=0, most=0.9
    )
    scored_before: int | None = setting(
        None, "training queries; the teacher scores the rest in training. null = all", least=0
    )


@dataclass
class Trainer:
    """``conf/trainer/``"""

    batch_size: int = setting(32, "queries a step, with all their passages", least=1)
    learning_rate: float = setting(1e-4, "the peak", least=0)
    weight_decay: float = setting(0.01, "of AdamW", least=0)
    warmup_epochs: float = setting(0.5, "until the learning rate has its peak", least=0)
    min_warmup_steps: int = setting(2, "the same in steps, where that is more", least=0)
    final_learning_rate: float = setting(
        0.1, "fraction of the peak, reached in the last epoch", least=0, most=1
    )
    clip: float = setting(1.0, "gradient norm", above=0)
    max_epochs: int = setting(1, "epochs at most", least=1)
    select: str = setting(
        "loss", "whose best epoch is kept, on the dev queries: loss, the paper's rule, or ndcg"
    )
    patience: int = setting(2, "epochs without a better dev loss", least=1)
    chunk_tokens: Any = setting("auto", "padded tokens a forward pass; auto: 2,048, on a GPU 65,536", least=1)
    graph_tokens: Any = setting(
        "auto", "padded tokens whose activations fit in memory; auto: while memory is free", least=0
    )
    compile: bool = setting(
        False, "compile the student with torch.compile, which pays on GPUs in long trainings"
    )
    devices: Any = setting(
        1, "GPUs of a node, or processes on a CPU, that share a step; auto: all GPUs, on a CPU 1", least=1
    )
    num_nodes: int = setting(1, "nodes, each with as many devices, all started by torchrun or srun", least=1)
    shard_optimizer: bool = setting(
        False, "each device keeps its part of AdamW's state (ZeRO-1): 8 bytes a parameter, shared"
    )
    every_n_steps: int | None = setting(
        None, "steps between checkpoints within an epoch; null = only after each epoch", least=1
    )


@dataclass
class Evaluation:
    """What is tested on."""

    split: str = setting(
        "test",
        "whose human queries are tested on; settings are better chosen on train or dev, where there are such, "
        "or on synthetic_dev: the queries whose losses choose the checkpoint; synthetic: queries written for the "
        "held-out passages, of evaluation.heldout_types or else of querytype.types, all that documents alone have",
    )
    metrics: list[str] = setting(
        ["nDCG@10", "R@100", "RR@10", "AP@100"],
        "names of ir_measures, such as P@5 or nDCG(dcg='exp-log2')@10, cut at 100 at most; the first is the main one",
    )
    query_length: int | None = setting(
        None, "tokens of a test query; null = all that the student can read", least=4
    )
    headroom_queries: int | None = setting(100, "test queries that the teacher reranks; null = all", least=1)
    headroom_k: int = setting(20, "of the untuned student's best passages", least=1)
    dimensions: list[int] = setting(
        [],
        "to which the untuned and the tuned student's embeddings are cut, such as [384,128,64]; what that costs is a "
        "table of its own; [] = they are not",
        least=1,
    )
    vectors: list[str] = setting(
        [],
        "as what the passages' embeddings, whole or cut, are kept, likewise: float32, float16, int8, binary; "
        "[] = float32",
    )
    heldout_types: list[str] = setting([], "synthetic queries of held-out passages to test on")


@dataclass
class Logger:
    """``conf/logger/``: Weights & Biases."""

    enabled: bool = setting(True, "log to Weights & Biases")
    project: str = setting("dense_retrieval", "of Weights & Biases")
    model: bool = setting(False, "upload the tuned student too")


@dataclass
class Config:
    """``conf/config.yaml``; a group that is Any has several schemas, in ``GROUPS``."""

    scale: Scale = setting(MISSING, "how much is done")
    data: Any = setting(MISSING, "the corpus")
    querytype: QueryType = setting(MISSING, "which training queries")
    generator: Any = setting(MISSING, "the language model that writes them, or files that hold them")
    retriever: Retriever = setting(
        MISSING, "what finds the training queries' candidates; of evaluate: what is tested"
    )
    teacher: Any = setting(MISSING, "the cross-encoder whose scores are learnt from")
    student: encoders.Student = setting(
        MISSING, "the bi-encoder that is tuned, or the folder of a run or model"
    )
    loss: Loss = setting(MISSING, "what is minimised")
    trainer: Trainer = setting(MISSING, "how it is minimised")
    logger: Logger = setting(MISSING, "where the curves go")
    executor: Any = setting(MISSING, "where work that splits is done")
    experiment: Any = setting(None, "settings of several groups together, such as the paper's")
    groups: Groups = field(default_factory=Groups)
    evaluation: Evaluation = field(default_factory=Evaluation)
    rounds: int = setting(
        1, "after each the tuned student finds new candidates, and training begins again", least=1
    )
    rounds_from: str = setting("untuned", "weights that a further round starts from: untuned or tuned")
    plan: bool = setting(False, "show what there is to do, and do nothing")
    seed: int = setting(0, "of all that is drawn at random", least=0, most=2**32 - 1)
    seeds: int = setting(
        1, "trainings on the same groups, each with a seed of its own; the model is the first one's", least=1
    )
    precision: str = setting(
        "auto",
        "32-true or bf16-mixed, of training, embeddings and scores; auto: bf16-mixed on a GPU that has it",
    )
    device: str = setting("auto", "cpu, cuda, or auto: cuda where there is one")
    cache_dir: str = setting("cache", "finished stages, shared by all runs")


def package_file(module: str, relative: str) -> str:
    """Absolute path of a file that an installed package ships: ``${package_file:module,relative}``.

    Raises:
        InputError: the package is not installed, or has no such file.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise InputError(f"the package {module!r} is not installed: pip install {module.replace('_', '-')}")
    path = Path(spec.origin).parent / relative
    if not path.exists():
        raise InputError(f"the package {module!r} has no {relative!r}; reinstall it")
    return str(path)


def of_this_machine(setting: str, *, _root_: Any) -> Any:
    """``${of_this_machine:batch_size}``, of ``scale=auto``."""
    return scale.of_machine(Path(CONF, "scale"), setting, _root_.get("device") or "auto")


# Config group -> its schemas, as the files of conf/ call them in their defaults.
GROUPS: dict[str, dict[str, type]] = {
    "scale": {"schema": Scale},
    "data": {
        "documents_schema": corpora.DocumentsData,
        "embedded": corpora.EmbeddedData,
        "folder": corpora.FolderData,
        "named": corpora.NamedData,
        "several": corpora.Mixture,
    },
    "querytype": {"schema": QueryType},
    "generator": {
        "file": generators.QueryFile,
        "llama_cpp_schema": generators.LlamaCpp,
        "openai_schema": generators.OpenAI,
        "openvino_schema": generators.OpenVINO,
        "transformers_schema": generators.Transformers,
        "vllm_schema": generators.VLLM,
    },
    "retriever": {"schema": Retriever},
    "teacher": {
        "schema": encoders.SequenceClassifierTeacher,
        "seq2seq_schema": encoders.Seq2SeqTeacher,
        "decoder_schema": encoders.DecoderTeacher,
        "lightweight_schema": encoders.LightweightTeacher,
        "ensemble_schema": encoders.EnsembleTeacher,
    },
    "student": {"schema": encoders.Student},
    "loss": {"schema": Loss},
    "trainer": {"schema": Trainer},
    "logger": {"schema": Logger},
    "executor": {"local_schema": executors.Local, "ray_schema": executors.Ray},
}

OmegaConf.register_new_resolver("package_file", package_file, replace=True)
OmegaConf.register_new_resolver("of_this_machine", of_this_machine, replace=True)
# Cached: a sweep's jobs, which have overrides of their own, get the name that the sweep has.
OmegaConf.register_new_resolver("sweep_name", sweep.name, replace=True, use_cache=True)


def _not_copied(memo: object) -> ConfigStore:
    """For --help Hydra copies all schemas a hundred times, though it copies again whatever it takes from them."""
    return ConfigStore.instance()


_store = ConfigStore.instance()
setattr(_store, "__deepcopy__", _not_copied)  # noqa: B010
_store.store(name="schema", node=Config)
_store.store(name="teacher_training_schema", node=TeacherTraining)
for _group, _schemas in GROUPS.items():
    for _name, _schema in _schemas.items():
        _store.store(group=_group, name=_name, node=_schema)
