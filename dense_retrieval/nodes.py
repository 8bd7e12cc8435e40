"""Nodes of a composed configuration, as what stage functions take."""

import inspect
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from dense_retrieval.checks import check
from dense_retrieval.config import Config
from dense_retrieval.errors import in_one_line
from dense_retrieval.executor import Executor
from dense_retrieval.files import fingerprint
from dense_retrieval.hub import model_folder
from dense_retrieval.records import InputError
from dense_retrieval.stage import Later, Outside, Settings, resolved
from dense_retrieval.student.engine import require
from dense_retrieval.student.sentence_folder import prompts
from dense_retrieval.sweep import split_overrides

_WEIGHTS = ("path", "revision", "adapter")  # their content is an input


def plain(config: Any, *without: str, only: Sequence[str] | None = None) -> dict[str, Any]:
    """A node as JSON values, without some keys, or with these only."""
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items() if k not in without and (only is None or k in only)}


def settings(config: Any, *without: str, unkeyed: Sequence[str] = ()) -> Settings:
    """A node's values, of which those enter a key that differ from the schema's defaults; of a class or function
    of the user's own its source too.

    Args:
        without: keys left out.
        unkeyed: keys that change no result of this stage.
    """
    values = plain(config, *without)
    schema = OmegaConf.get_type(config)
    usual: Any = OmegaConf.structured(schema) if is_dataclass(schema) else OmegaConf.create()
    given = [
        k for k in usual if not OmegaConf.is_missing(usual, k) and not OmegaConf.is_interpolation(usual, k)
    ]
    defaults = {str(key): usual[key] for key in given}
    keyed = {
        key: value
        for key, value in values.items()
        if key not in unkeyed and (key == "_target_" or key not in defaults or defaults[key] != value)
    }
    if target := values.get("_target_"):
        keyed |= {f"source of {file.name}": fingerprint(file) for file in sources(target)}
    return Settings(values, keyed)


def sources(target: str) -> list[Path]:
    """The files outside this package that define a class or function, and the classes that it inherits from.

    Raises:
        InputError: there is no such class or function.
    """
    if target.startswith("dense_retrieval."):
        return []
    try:
        found: Any = get_object(target)
        owner = get_object(target.rpartition(".")[0])
    except Exception as error:
        raise InputError(f"_target_={target}: {' '.join(str(error).split())}") from error
    if inspect.isclass(owner):  # a class's own way of loading it
        found = owner
    own = sys.modules[found.__module__]
    classes = inspect.getmro(found) if inspect.isclass(found) else ()
    modules = {sys.modules[of.__module__] for of in classes} | {own}
    files = {Path(file): module is own for module in modules if (file := getattr(module, "__file__", None))}
    others = (
        Path(__file__).parent,
        *map(Path, set(sysconfig.get_paths().values())),
    )  # this package, and libraries
    return sorted(f for f, chosen in files.items() if chosen or not any(f.is_relative_to(o) for o in others))


def corpora(c: Config) -> dict[str, Config]:
    """The configuration of each corpus that one student is trained on; of a single one without a name.

    Of a mixture each member is what would follow ``python -m dense_retrieval.run`` for it alone; the
    command's other overrides hold for all of them.
    """
    if "members" not in c.data:
        return {"": c}
    if len(c.data.members) < 2:
        raise InputError(
            "data=mixture needs two corpora at least: \"data.members=['data=scifact', 'data=fiqa']\""
        )
    if c.groups.scored_before is not None:
        raise InputError(
            f"groups.scored_before={c.groups.scored_before} and data=mixture do not go together: leave one out"
        )
    shared = [o for o in HydraConfig.get().overrides.task if not o.startswith(("data=", "data.members="))]
    found = {}
    for number, words in enumerate(c.data.members):
        member: Any = compose("config", overrides=[*shared, *split_overrides(words)])
        check(member)
        if _but_for_the_task(member) != _but_for_the_task(c):
            raise InputError(f"data.members: {words!r} has another student; give student= for all")
        found[f"{number}-{words.split()[0].removeprefix('data=')}"] = member
    return found


def _but_for_the_task(c: Config) -> dict[str, Any]:
    """The student, its prefixes as they are written: a query's may name the corpus's task."""
    node = OmegaConf.to_container(c.student, resolve=False)
    assert isinstance(node, dict)
    return plain(c.student) | {name: node[name] for name in ("query_prefix", "passage_prefix")}


def teachers(c: Config) -> tuple[list[Any], dict[str, Outside], list[float] | None]:
    """The teacher, or the members of an ensemble, the files of their weights, and their shares: as
    :func:`dense_retrieval.teacher.scores.score` takes them."""
    found = list(c.teacher.members) if "members" in c.teacher else [c.teacher]
    if len(found) > 1 and c.groups.scored_before is not None:
        raise InputError("groups.scored_before needs a single teacher: choose one with teacher=")
    members: list[Any] = []
    weights: dict[str, Outside] = {}
    for number, member in enumerate(found):
        if member in ("bm25", "student"):
            members.append(member)
        else:
            teacher = _composed(member) if isinstance(member, str) else member
            weights[f"path {number}"] = Outside(
                model_folder(teacher.path, teacher.revision, "teacher=wikivital_minilm")
            )
            if adapter := outside("teacher.adapter", teacher.get("adapter")):
                weights[f"adapter {number}"] = adapter
            members.append(settings(teacher, *_WEIGHTS))
    shares = c.teacher.get("weights")
    return members, weights, None if shares is None else list(shares)


def _composed(words: str) -> Any:
    try:
        member = compose("config", overrides=split_overrides(words))
        check(member)
        return member.teacher
    except (HydraException, InputError) as error:
        raise InputError(f"teacher.members: {words!r}: {in_one_line(error)}") from error


def outside(setting: str, path: str | None) -> Outside | None:
    """A file or folder that a setting names.

    Raises:
        InputError: there is none.
    """
    if path and not Path(path).exists():
        raise InputError(f"{setting}={path}: there is no such folder or file")
    return Outside(Path(path)) if path else None


@dataclass(frozen=True)
class Hardware:
    """Where and how the work is done; of this only the precision changes a result."""

    device: Any  # str, as max_tokens not before a stage runs
    precision: str
    bf16: bool
    max_tokens: Any  # int, padded tokens a forward pass: what fits a CPU's cache, what fills a GPU
    memos: Path  # folder of the answers and scores that are never computed twice
    executor: Executor  # of work that splits
    workers: Any  # its devices: cpu or cuda; str, not before a stage runs


def hardware(c: Config) -> Hardware:
    wanted = c.device

    def device() -> str:
        import torch

        return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"

    executor: Executor = instantiate(c.executor)

    def workers() -> str:
        return executor.device(wanted)

    def fills() -> int:
        return 65_536 if workers().startswith("cuda") else 2_048

    precision = c.precision
    if precision == "auto":
        precision = "bf16-mixed" if wanted != "cpu" and _gpu_has_bf16() else "32-true"
    bf16, memos = precision == "bf16-mixed", Path(c.cache_dir)
    return Hardware(Later(device), precision, bf16, Later(fills), memos, executor, Later(workers))


def _gpu_has_bf16() -> bool:
    if not any(Path("/dev").glob("nvidia*")) and not Path("/dev/dxg").exists():
        return False  # known without loading torch
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def token_limits(c: Config) -> tuple[Any, int | None]:
    """Of training: padded tokens a forward pass, and with a graph; None is as many as fit in memory.

    Raises:
        InputError: neither a number nor auto.
    """
    given = plain(c.trainer, only=("chunk_tokens", "graph_tokens"))
    for name, value in given.items():
        if value != "auto" and not isinstance(value, int):
            raise InputError(f"trainer.{name}={value} is neither a number of tokens nor auto")
    chunk, graph = given["chunk_tokens"], given["graph_tokens"]
    return hardware(c).max_tokens if chunk == "auto" else chunk, None if graph == "auto" else graph


def asked_devices(c: Config) -> tuple[int | str, int, Callable[[], int | None]]:
    """Of training: devices a node, nodes, and what counts the GPUs here, as :mod:`dense_retrieval.ranks` takes them.

    Raises:
        InputError: neither a number of devices nor auto.
    """
    given = plain(c.trainer, only=("devices", "num_nodes"))
    devices, num_nodes = given["devices"], given["num_nodes"]
    if devices != "auto" and not isinstance(devices, int):
        raise InputError(f"trainer.devices={devices} is neither a number of devices nor auto")

    def gpus() -> int | None:
        if not resolved(hardware(c).device).startswith("cuda"):
            return None
        import torch

        return torch.cuda.device_count()

    return devices, num_nodes, gpus


def engine_of(c: Config) -> str:
    """What computes embeddings: ``student.engine``, or what is fastest here.

    Raises:
        InputError: there is no such engine, it lacks a package, or it cannot compute what is asked for.
    """
    name, on = c.student.engine, hardware(c)
    if name == "torch":
        return name
    on_cpu = resolved(on.device) == "cpu"
    if name == "auto":
        from dense_retrieval.student.fastest import fastest

        can = on_cpu and c.student.pooling != "lasttoken"  # decoders cannot be exported
        return fastest(on.memos, on.bf16) if can else "torch"
    require(name)
    if not on_cpu:
        raise InputError(f"student.engine={name} is for CPUs: use student.engine=torch or device=cpu")
    if name.startswith("onnx") and on.bf16:
        raise InputError(
            f"student.engine={name} computes in float32: use precision=32-true or another engine"
        )
    return name


def student_settings(c: Config, *unkeyed: str) -> Settings:
    """The arguments of the student, but for its weights; a length that the corpus says is None."""
    elsewhere = (
        "path",
        "revision",
        "engine",
        "float16_from",
        "tune",
        "matryoshka",
        "lora",
        "gradient_checkpointing",
    )
    found = settings(c.student, *elsewhere, unkeyed=unkeyed)
    values = found | prefixes(c)
    return Settings(values | {"passage_length": None} if passage_length(c) == "auto" else values, found.keyed)


def prefixes(c: Config) -> dict[str, str]:
    """``query_prefix`` and ``passage_prefix``; "auto" is the prompt that the model's folder has."""
    given = plain(c.student, only=("query_prefix", "passage_prefix"))
    if "auto" not in given.values():
        return given
    said = prompts(model_folder(c.student.path, c.student.revision), f"student.path={c.student.path}")
    found = {"query_prefix": said["query"], "passage_prefix": said["document"]}
    return {name: found[name] if prefix == "auto" else prefix for name, prefix in given.items()}


def adapters(c: Config) -> dict[str, Any] | None:
    """``student.lora``; None if all weights are trained."""
    return None if c.student.lora.rank is None else plain(c.student.lora)


def passage_length(c: Config) -> int | str:
    """``student.passage_length``: tokens, or auto.

    Raises:
        InputError: neither.
    """
    found = c.student.passage_length
    if found != "auto" and (isinstance(found, bool) or not isinstance(found, int)):
        raise InputError(f"student.passage_length={found} is neither a number of tokens nor auto")
    return found


def tunes_passages(c: Config) -> bool:
    """Whether the passages' embeddings are learnt too, or only the queries': ``student.tune``.

    Raises:
        InputError: neither.
    """
    if c.student.tune not in ("both", "queries"):
        raise InputError(f"student.tune={c.student.tune} is unknown; use both or queries")
    return c.student.tune == "both"
