"""Typed schemas of ``conf/``: every setting with its type, unit and meaning.

A wrong key or type in a config file or on the command line fails before anything is loaded.
"""

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue

from dense_retrieval import sweep
from dense_retrieval.records import InputError

log = logging.getLogger(__name__)

_HERE = Path(__file__).resolve().parent
# In a checkout conf/ stands beside the package, in a wheel inside it.
CONF = str(next(p for p in (_HERE / "conf", _HERE.parent / "conf") if p.is_dir()))


def _paper_types() -> list[str]:
    return ["claim", "keyword", "question", "title", "msmarco", "web"]


@dataclass
class Data:
    """A corpus: ``conf/data/``."""

    _target_: str = MISSING
    text: str = "title_and_text"  # BEIR's convention, or text_only, the paper's
    passage_characters: int | None = None  # longer passages are cut; None = never
    drop_self_matches: bool = False  # no query finds the passage that has its id (ArguAna)
    queries: str | None = None  # file of synthetic queries that come with the corpus
    mixed: list[str] = field(default_factory=_paper_types)  # the query types of querytype=mixed


@dataclass
class EmbeddedData(Data):
    text: str = "text_only"
    passage_characters: int | None = 2048


@dataclass
class FolderData(Data):
    _target_: str = "dense_retrieval.corpus.beir.read_folder"
    path: str = MISSING  # folder or zip in BEIR's layout
    query_characters: int | None = None
    test_split: str = "test"  # name of the qrels file
    heldout: int = 100  # passages that no training query may come from
    missing_passages: int = 0  # judged passages that the corpus is known to lack


@dataclass
class NamedData(Data):
    _target_: str = "dense_retrieval.corpus.beir.read_named"
    name: str = MISSING  # dataset on the hub
    revision: str | None = None  # branch, tag or commit there
    zip: bool = False  # BEIR's own zip instead of the hub
    zip_name: str = MISSING
    zip_md5: str = MISSING  # as BEIR publishes it
    query_characters: int | None = None
    test_split: str = "test"
    heldout: int = 100
    missing_passages: int = 0  # judged passages that the corpus is known to lack


@dataclass
class Mixture(Data):
    """Several corpora, one student: ``conf/data/mixture.yaml``. What is given here holds for all of them."""

    _target_: str = ""
    members: list[str] = MISSING  # the overrides of each corpus, such as "data=fiqa querytype=mixed"


@dataclass
class QueryFile:
    """Queries that are there already: ``conf/generator/files.yaml``."""

    _target_: str = "dense_retrieval.queries.files.read"
    path: str | None = None  # lines {"passage_id": ..., "querytype": ..., "text": ...}


@dataclass
class LanguageModel:
    """Queries written by a language model: the other choices of ``conf/generator/``."""

    _target_: str = MISSING
    passages: int | None = 300  # sampled from the corpus, one query of each type; None = all
    passage_characters: int = 2048  # longer passages are cut
    passage_first: bool = True  # before the instruction: a prefix cache then serves all types
    seed: int = 0  # of passages, few-shot examples and answers
    temperature: float = 0.8  # 0 = greedy
    top_p: float = 0.95
    max_tokens: int = 50  # of an answer


@dataclass
class LlamaCpp(LanguageModel):
    _target_: str = "dense_retrieval.queries.backends.llama_cpp.LlamaCpp"
    path: str = MISSING  # GGUF file
    context: int = 2048  # tokens of prompt and answer
    threads: int | None = None  # None = all cores


@dataclass
class OpenAI(LanguageModel):
    """A server that speaks OpenAI's chat completions."""

    _target_: str = "dense_retrieval.queries.backends.openai.OpenAI"
    _convert_: str = "all"  # extra_body becomes plain dicts, which JSON can hold
    url: str = MISSING  # of the API, such as http://localhost:8000/v1
    model: str = MISSING  # as the server calls it
    api_key_variable: str = "OPENAI_API_KEY"  # environment variable that holds the key; unset = no key
    concurrency: int = 32  # requests in flight
    retries: int = 5  # further tries of a request that the server could not serve for the moment
    timeout_s: float = 120.0  # seconds without a byte from the server
    max_total_tokens: int | None = None  # of prompts and answers that a run may spend; None = no limit
    # fields of each request, such as {chat_template_kwargs: {enable_thinking: false}}; null leaves one out
    extra_body: Any = None


@dataclass
class Transformers(LanguageModel):
    """A causal model or an encoder-decoder, in this process."""

    _target_: str = "dense_retrieval.queries.backends.transformers.Transformers"
    path: str = MISSING  # folder or hub name
    revision: str | None = None  # branch, tag or commit on the hub
    context: int | None = None  # tokens of prompt and answer (encoder-decoder: prompt); None = the model's
    max_tokens_a_batch: int = 16_384  # padded tokens, answers included; changes speed only
    device: str = "auto"  # cpu, cuda, or auto: cuda where there is one
    dtype: str = "auto"  # float32, bfloat16, float16, or auto: bfloat16 on cuda, else float32
    trust_remote_code: bool = False


@dataclass
class VLLM(LanguageModel):
    """A causal model on GPUs, in this process."""

    _target_: str = "dense_retrieval.queries.backends.vllm.VLLM"
    path: str = MISSING  # folder or hub name
    revision: str | None = None  # branch, tag or commit on the hub
    context: int = 4096  # tokens of prompt and answer; more take more memory
    dtype: str = "auto"  # float32, bfloat16, float16, or auto: the checkpoint's
    gpus: int = 1  # that share the model
    gpu_memory: float = 0.9  # fraction of a GPU's memory
    trust_remote_code: bool = False


@dataclass
class QueryType:
    """Which training queries: ``conf/querytype/``."""

    types: list[str] = MISSING  # equal shares of each; a name, or the .yaml file of a prompt
    total: int | None = None  # training queries in all, before the filters; None = all there are


@dataclass
class Retriever:
    """Candidates for training queries, and the BM25 of the results table: ``conf/retriever/``."""

    bm25: bool = MISSING
    dense: bool = MISSING  # the untuned student; with bm25, fused by reciprocal rank
    k: int = 100  # candidates a query
    fusion_k: int = 60  # reciprocal rank fusion: 1 / (fusion_k + rank)
    library: str = "bm25s"  # or rank_bm25; both rank alike
    k1: float = 1.5
    b: float = 0.75


@dataclass
class Student:
    """``conf/student/``"""

    _target_: str = "dense_retrieval.student.bi_encoder.BiEncoder.load"
    path: str = MISSING  # folder or hub name
    revision: str | None = None  # branch, tag or commit on the hub
    pooling: str = MISSING  # cls or mean
    query_prefix: str = ""
    passage_prefix: str = ""
    query_length: int = 64  # tokens
    passage_length: int = 512  # tokens
    dropout: float = 0.0  # probability
    trust_remote_code: bool = False


@dataclass
class Teacher:
    """A frozen cross-encoder: ``conf/teacher/``."""

    _target_: str = MISSING
    path: str = MISSING  # folder or hub name
    revision: str | None = None  # branch, tag or commit on the hub
    max_length: int = 512  # tokens of a pair; the passage is what is cut


@dataclass
class SequenceClassifierTeacher(Teacher):
    """The score is the one output of a sequence classifier."""

    _target_: str = "dense_retrieval.teacher.sequence_classifier.SequenceClassifier.load"
    adapter: str | None = None  # folder of a LoRA adapter on it
    trust_remote_code: bool = False


@dataclass
class Seq2SeqTeacher(Teacher):
    """The score is that of the first token an encoder-decoder answers: RankT5, monoT5."""

    _target_: str = "dense_retrieval.teacher.seq2seq.Seq2SeqTeacher.load"
    template: str = MISSING  # with {query} and after it {passage}
    token: str = MISSING  # whose logit is the score
    other_token: str | None = None  # if given, the score is log p(token) among the two
    trust_remote_code: bool = False


@dataclass
class DecoderTeacher(Teacher):
    """The score is that of the token after a decoder's prompt: Qwen3-Reranker, bge-reranker-v2-gemma."""

    _target_: str = "dense_retrieval.teacher.decoder.DecoderTeacher.load"
    max_length: int = 1024
    template: str = MISSING  # with {query} and after it {passage}, and all special tokens
    token: str = MISSING
    other_token: str | None = None
    trust_remote_code: bool = False


@dataclass
class LightweightTeacher(Teacher):
    """bge-reranker-v2.5-gemma2-lightweight."""

    _target_: str = "dense_retrieval.teacher.lightweight.LightweightTeacher.load"
    max_length: int = 1024
    template: str = MISSING  # with {query}, a line break, and {passage}, and all special tokens
    cutoff_layer: int = 28  # layers computed
    compress_layers: list[int] = field(default_factory=lambda: [24, 40])  # before which passages shrink
    compress_ratio: int = 2  # passage tokens that become one; 1 = none


@dataclass
class EnsembleTeacher:
    """The weighted mean of several teachers' normalised scores."""

    members: list[str] = MISSING  # such as "teacher=rankt5_base"; also bm25, and student: the untuned one
    weights: list[float] | None = None  # one a member; None = all alike


@dataclass
class Loss:
    """``conf/loss/``; temperatures are numbers or "auto"."""

    _target_: str = "dense_retrieval.losses.combined.DistillationLoss"
    listwise_weight: float = MISSING
    infonce_weight: float = MISSING
    student_temperature: Any = "auto"  # of the cosines, in the listwise loss
    teacher_temperature: Any = "auto"  # of the normalised teacher scores
    infonce_temperature: float = 0.01
    false_negative_ratio: float = 0.6  # of the positive's teacher score: above it no negative


@dataclass
class Groups:
    """Filters and labels."""

    list_size: int = 10  # passages a query
    source_top_k: int = 20  # the retriever must rank a query's source passage within
    teacher_top1: bool = True  # the teacher must rank it first
    min_top_percentile: float = 25.0  # of all scores: a query's best score must reach it
    dev_fraction: float = 0.1  # of the source passages; 0 = no dev set: the last epoch's weights are kept
    scored_before: int | None = None  # training queries; the teacher scores the rest in training. None = all


@dataclass
class Trainer:
    """``conf/trainer/``"""

    batch_size: int = 32  # queries a step, with all their passages
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup_epochs: float = 0.5
    min_warmup_steps: int = 2
    final_learning_rate: float = 0.1  # fraction of the peak, reached in the last epoch
    clip: float = 1.0  # gradient norm
    max_epochs: int = 1
    patience: int = 2  # epochs without a better dev loss
    chunk_tokens: int = 2048  # padded tokens a forward pass; changes speed only
    graph_tokens: int = 8192  # padded tokens whose activations fit in memory; changes speed only
    devices: int = 1


@dataclass
class Evaluation:
    # Whose human queries are tested on. Settings are better chosen on "train" or "dev", where there are
    # such, or on "synthetic_dev": the queries whose losses choose the checkpoint, all that documents alone have.
    split: str = "test"
    headroom_queries: int | None = 100  # test queries that the teacher reranks; None = all
    headroom_k: int = 20  # of the untuned student's best passages
    heldout_types: list[str] = field(
        default_factory=list
    )  # synthetic queries of held-out passages to test on


@dataclass
class Logger:
    """``conf/logger/``: Weights & Biases."""

    enabled: bool = True
    project: str = "dense_retrieval"
    model: bool = False  # upload the tuned student too


@dataclass
class Config:
    """``conf/config.yaml``"""

    data: Any = MISSING
    querytype: QueryType = MISSING
    generator: Any = MISSING
    retriever: Retriever = MISSING
    teacher: Any = MISSING
    student: Student = MISSING
    loss: Loss = MISSING
    trainer: Trainer = MISSING
    logger: Logger = MISSING
    experiment: Any = None
    groups: Groups = field(default_factory=Groups)
    evaluation: Evaluation = field(default_factory=Evaluation)
    seed: int = 0
    precision: str = "32-true"  # or bf16-mixed: of training, embeddings and teacher scores
    device: str = "auto"  # cpu, cuda, or auto: cuda where there is one
    cache_dir: str = "cache"  # finished stages, shared by all runs


@dataclass
class TeacherTraining:
    """``conf/train_teacher.yaml``, for ``python -m dense_retrieval.teacher.train``."""

    base: str = MISSING  # folder or hub name of the bi-encoder whose weights it starts from
    output: str = MISSING  # folder for the adapter; default: a new one in runs/
    corpus: str | None = None  # folder or zip in BEIR's layout; None = Wikipedia outside wikiscience
    pairs: list[str] = field(default_factory=lambda: ["human"])  # human, title, or types of queries in file
    file: str | None = None  # synthetic queries, as python -m dense_retrieval.generate writes them
    queries: int = 4000  # for training at most, as many of each kind of pairs; up to 200 others measure it
    negatives_each: int = 2  # from BM25's list and from the bi-encoder's; one more shares the topic
    depth: int = 20  # candidates that the negatives are drawn from
    max_length: int = 128  # tokens of a pair
    rank: int = 48  # of the LoRA matrices
    learning_rate: float = 1e-3
    batch_size: int = 16  # queries a step
    max_tokens: int = 4096  # padded tokens a forward pass
    seed: int = 0


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


# Smallest and largest value; None is without limit.
_RANGES: dict[str, tuple[float, float | None]] = {
    "seed": (0, 2**32 - 1),
    "data.heldout": (0, None),
    "data.missing_passages": (0, None),
    "retriever.k": (1, None),
    "student.query_length": (4, None),
    "student.passage_length": (4, None),
    "teacher.max_length": (4, None),
    "groups.list_size": (2, None),
    "groups.source_top_k": (1, None),
    "groups.min_top_percentile": (0, 100),
    "groups.dev_fraction": (0, 0.9),
    "evaluation.headroom_queries": (1, None),
    "evaluation.headroom_k": (1, None),
    "trainer.batch_size": (1, None),
    "trainer.learning_rate": (0, None),
    "trainer.max_epochs": (1, None),
    "trainer.patience": (1, None),
    "trainer.chunk_tokens": (1, None),
    "trainer.graph_tokens": (1, None),
    "trainer.devices": (1, None),
    # of dense_retrieval.teacher.train
    "queries": (1, None),
    "negatives_each": (1, None),
    "max_length": (4, None),
    "batch_size": (1, None),
}


def check(config: Any) -> None:
    """Raise InputError where a setting is out of its range, or names a device that is not there."""
    for name, (low, high) in _RANGES.items():
        value = OmegaConf.select(config, name)
        if value is not None and not low <= value <= (math.inf if high is None else high):
            limit = f"{low} or more" if high is None else f"{low} to {high}"
            raise InputError(f"{name}={value} is out of range; it is {limit}")
    precision, device = (OmegaConf.select(config, name) for name in ("precision", "device"))
    if precision not in (None, "32-true", "bf16-mixed"):
        raise InputError(f"precision={precision} is unknown; use 32-true or bf16-mixed")
    if device not in (None, "auto", "cpu") and not device.startswith("cuda"):
        raise InputError(f"device={device} is unknown; use cpu, cuda or auto")
    if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device={device}: torch finds no such GPU here; use cpu or auto")


def one_line_errors(main: Callable[[Any], float | None]) -> Callable[[Any], float | None]:
    """A Hydra main function whose user's errors are one line, without a traceback.

    A job of a sweep that fails returns NaN and leaves the line in its folder: the others go on.
    """

    @functools.wraps(main)
    def wrapped(config: Any) -> float | None:
        try:
            check(config)
            return main(config)
        except Exception as error:
            cause = users_error(error)
            job = HydraConfig.get()
            if job.mode == RunMode.MULTIRUN:
                line = f"error: {cause or repr(error)}"
                log.error(line, exc_info=None if cause else error)
                Path(job.runtime.output_dir, sweep.FAILURE).write_text(line)
                return math.nan
            if cause is None:
                raise
            raise SystemExit(f"error: {cause}") from None

    return wrapped


def users_error(error: BaseException | None) -> str | None:
    """What to tell the user, if an error is of their making."""
    if isinstance(error, MissingMandatoryValue | InterpolationToMissingValueError):
        return f"{error.full_key} has no value; give one with {error.full_key}="
    if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
        return f"{error.filename} cannot be written: {error.strerror}"
    if error is None or isinstance(error, InputError):
        return str(error) if error else None
    return users_error(error.__cause__)  # Hydra wraps what a target raises


OmegaConf.register_new_resolver("package_file", package_file, replace=True)
# Cached: a sweep's jobs, which have overrides of their own, get the name that the sweep has.
OmegaConf.register_new_resolver("sweep_name", sweep.name, replace=True, use_cache=True)
_store = ConfigStore.instance()
_store.store(name="schema", node=Config)
_store.store(name="teacher_training_schema", node=TeacherTraining)
_DATA = {"embedded": EmbeddedData, "folder": FolderData, "named": NamedData, "several": Mixture}
for _name, _schema in _DATA.items():
    _store.store(group="data", name=_name, node=_schema)
for _name, _schema in {
    "file": QueryFile,
    "llama_cpp_schema": LlamaCpp,
    "openai_schema": OpenAI,
    "transformers_schema": Transformers,
    "vllm_schema": VLLM,
}.items():
    _store.store(group="generator", name=_name, node=_schema)
for _name, _schema in {
    "schema": SequenceClassifierTeacher,
    "seq2seq_schema": Seq2SeqTeacher,
    "decoder_schema": DecoderTeacher,
    "lightweight_schema": LightweightTeacher,
    "ensemble_schema": EnsembleTeacher,
}.items():
    _store.store(group="teacher", name=_name, node=_schema)
for _group, _schema in {
    "querytype": QueryType,
    "retriever": Retriever,
    "student": Student,
    "loss": Loss,
    "trainer": Trainer,
    "logger": Logger,
}.items():
    _store.store(group=_group, name="schema", node=_schema)
