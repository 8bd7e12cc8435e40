"""What a command cannot do without: packages, weights, files, datasets; looked for before anything is computed."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dense_retrieval.config import Config
from dense_retrieval.errors import in_one_line
from dense_retrieval.hardware import hardware
from dense_retrieval.models import engine_of, teachers
from dense_retrieval.nodes import outside, plain
from dense_retrieval.prepare import heldout_types, prepare
from dense_retrieval.records import InputError
from dense_retrieval.schemas.corpora import NamedData
from dense_retrieval.store import Store
from dense_retrieval.synthetic import is_language_model, language_model
from dense_retrieval.views import corpus_of, untuned

Part: TypeAlias = Callable[[Config], object]  # raises InputError where something is missing

# class of a generator -> its choice, the package that it imports, and what pip calls it
_PACKAGES = {
    "LlamaCpp": ("llama_cpp", "llama_cpp", "llama-cpp-python"),
    "OpenVINO": ("openvino", "openvino_genai", "openvino-genai"),
    "VLLM": ("vllm", "vllm", "vllm"),
}
_ON_THE_HUB = "Hugging Face hub"


def require(configs: list[Config], *parts: Part) -> None:
    """Look for some parts of what a command needs for each corpus.

    Raises:
        InputError: something is missing; a line for each, with what helps.
    """
    found: dict[str, None] = {}
    for c in configs:
        for part in parts:
            try:
                part(c)
            except (InputError, HydraException, OmegaConfBaseException) as error:
                found.setdefault(in_one_line(error))
    offline = any(
        os.environ.get(name, "0") not in ("", "0") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )
    if offline or any(_ON_THE_HUB in line for line in found):
        for c in configs:
            try:
                _dataset(c)
            except InputError as error:
                found.setdefault(str(error))
    if found:
        lines = list(found)
        said = f"{len(lines)} things are missing or wrong:\n  " + "\n  ".join(lines)
        raise InputError(said if len(lines) > 1 else lines[0])


def corpus(c: Config) -> None:
    """The file or folder that a corpus is read from, and the values that have no default."""
    outside("data.path", plain(c.data).get("path"))


def student(c: Config) -> None:
    """The untuned student's weights."""
    untuned(c)


def engine(c: Config) -> None:
    """The packages by which the student embeds."""
    engine_of(c)


def teacher(c: Config) -> None:
    """Each teacher's weights."""
    teachers(c)


def executor(c: Config) -> None:
    """The packages of what work that splits is done by."""
    if c.executor._target_.endswith("Ray") and find_spec("ray") is None:
        raise InputError("executor=ray needs ray: pip install 'dense_retrieval[ray]', or executor=local")
    hardware(c)


def queries(c: Config) -> None:
    """What has the training queries, or the language model that writes those that are not written yet."""
    if [*c.querytype.types] == ["human"] and not heldout_types(c):
        return
    if not is_language_model(c.generator):
        outside("generator.path", c.generator.path)
        return
    language_model(c.generator)
    choice, package, called = _PACKAGES.get(c.generator._target_.rpartition(".")[2], ("", "", ""))
    if package and find_spec(package) is None and not c.plan and not _is_written(c):
        raise InputError(
            f"generator={choice} needs {called}: pip install {called}, or generator=transformers"
        )


ALL: tuple[Part, ...] = (corpus, queries, student, engine, teacher, executor)


def _is_written(c: Config) -> bool:
    try:
        raw = prepare(c).raw
    except (InputError, OmegaConfBaseException):  # of another part, which says so
        return False
    return raw is None or Store(Path(c.cache_dir)).has(raw)


def _dataset(c: Config) -> None:
    """A dataset of the hub, where the hub cannot be reached and the corpus is not in the cache."""
    named = issubclass(OmegaConf.get_type(c.data) or object, NamedData) and not c.data.zip
    if c.plan or not named or Store(Path(c.cache_dir)).has(corpus_of(c)):
        return
    from dense_retrieval.corpus.beir import at_hand

    at_hand(c.data.name, c.data.revision)
