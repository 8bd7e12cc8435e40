"""The student and the teachers of a composed configuration, as what stage functions take."""

from typing import Any

from hydra import compose
from hydra.errors import HydraException

from dense_retrieval.checks import check
from dense_retrieval.config import Config
from dense_retrieval.errors import in_one_line
from dense_retrieval.hardware import hardware
from dense_retrieval.hub import model_folder
from dense_retrieval.nodes import outside, plain, settings
from dense_retrieval.records import InputError
from dense_retrieval.sentence_folder import prompts
from dense_retrieval.stage import Outside, Settings, resolved
from dense_retrieval.student.engine import require
from dense_retrieval.sweep import split_overrides

_WEIGHTS = ("path", "revision", "adapter")  # their content is an input


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
