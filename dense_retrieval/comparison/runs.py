"""Finished runs, read from their folders."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow.parquet as parquet
import yaml
from omegaconf import MISSING

from dense_retrieval.chain import speed_only
from dense_retrieval.checks import settings as known_settings
from dense_retrieval.config import Config
from dense_retrieval.evaluation.evaluate import canonical
from dense_retrieval.evaluation.table import HYBRID, REPEATED, TUNED
from dense_retrieval.records import InputError
from dense_retrieval.sweep import FAILURE

log = logging.getLogger(__name__)

# Where results are kept and shown, and what is implied by the choice of a loss.
_ELSEWHERE = (
    "cache_dir",
    "scale.",
    "data.known.",
    "data.task",  # where it has an effect, it is in student.query_prefix
    "executor.",
    "logger.",
    "plan",
    "seeds",
    "loss._target_",
    "loss.terms.listwise._t",
    "loss.terms.infonce._t",
)
# Settings that add to what is measured, and change no tuned student's values.
_SIZES = ("scale", "trainer")  # choices of numbers, which the settings are
_MEASURED_TOO = (
    "evaluation.headroom_k",
    "evaluation.headroom_queries",
    "evaluation.heldout_types",
    "evaluation.metrics",
)
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast
_NEEDED = ("systems", "corpus", "split", "choices")


@dataclass(frozen=True, eq=False)
class Run:
    """A run on one corpus; a mixture's run is one of these for each of its corpora.

    Attributes:
        folder: of its ``metrics.json``.
        corpus: the name, and the split if that is not "test".
        settings: ``loss.infonce_weight`` -> value, of all that may change results; ``loss`` -> the choice.
        systems: name -> ``(Q, M)`` values by query id; metrics by ir_measures' own names, the main one first.
        facts: all that ``metrics.json`` says.
        project: in Weights & Biases; None if the run was not logged.
    """

    folder: Path
    corpus: str
    settings: dict[str, Any]
    systems: dict[str, pandas.DataFrame]
    facts: dict[str, Any]
    project: str | None

    @property
    def seed(self) -> int:
        return self.settings["seed"]

    @property
    def metrics(self) -> list[str]:
        return list(self.systems[TUNED].columns)


def find(paths: Iterable[Path]) -> list[Path]:
    """The run folders among and below some folders, each once, in order.

    Raises:
        InputError: a path is no folder.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise InputError(f"{path}: there is no such folder")
        found |= dict.fromkeys(sorted((p.parent for p in path.rglob(".hydra")), key=_natural))
    return list(found)


def read_all(folders: Iterable[Path]) -> tuple[list[Run], dict[Path, str]]:
    """The runs that can be compared, and for each other folder why it cannot."""
    runs: list[Run] = []
    problems: dict[Path, str] = {}
    shared: dict[Any, Any] = {}
    for folder in folders:
        try:
            runs += read(folder, shared)
        except InputError as error:
            problems[folder] = str(error)
    return runs, problems


def read(folder: Path, shared: dict[Any, Any] | None = None) -> list[Run]:
    """A run, on each of its corpora; empty if the folder is of ``dense_retrieval.generate``.

    Args:
        shared: what other runs have in common with it, to be filled.

    Raises:
        InputError: it did not finish, its files are broken, of another version, or hold no number.
    """
    files = sorted(folder.glob("metrics.json")) or sorted(folder.glob("*/metrics.json"))
    if not files and any(folder.glob("**/queries.jsonl")):  # dense_retrieval.generate was here
        return []
    if not files:
        failure = folder / FAILURE
        why = f" ({failure.read_text()})" if failure.is_file() else ""
        raise InputError(f"{folder} has no metrics.json: the run did not finish{why}; start it again")
    try:
        config = yaml.load((folder / "config.yaml").read_text(), _YAML)
        found = [_read(file.parent, config, {} if shared is None else shared) for file in files]
        return [run for of_corpus in found for run in _by_seed(of_corpus)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise InputError(
            f"{folder}: broken, or of another version: {' '.join(str(error).split())}"
        ) from error


def _read(folder: Path, config: Mapping[str, Any], shared: dict[Any, Any]) -> Run:
    facts = json.loads((folder / "metrics.json").read_text())
    if missing := [name for name in _NEEDED if name not in facts]:
        raise InputError(
            f"{folder}/metrics.json lacks {missing[0]!r}: it is of another version; run the command again"
        )
    table = parquet.read_table(folder / "per_query.parquet", read_dictionary=["system"])
    metrics = {name: column for column in table.column_names if (name := canonical(column))}
    if not metrics:
        raise InputError(f"{folder}/per_query.parquet has no metric; run the command again")
    system_of = table["system"].combine_chunks()
    queries = table["query"].to_numpy()
    values = np.stack([table[column].to_numpy() for column in metrics.values()], axis=1)
    if not len(table) or not np.isfinite(values).all():
        raise InputError(f"{folder}/per_query.parquet has values that are no number; run the command again")
    codes = system_of.indices.to_numpy()
    systems = {
        name: _by_query(queries[codes == code], list(metrics), values[codes == code], shared)
        for code, name in enumerate(system_of.dictionary.to_pylist())
    }
    if TUNED not in systems:
        raise InputError(f"{folder}/per_query.parquet has no {TUNED!r}; run the command again")
    choices = {group: choice for group, choice in facts["choices"].items() if group not in _SIZES}
    settings = _with_effect(_flat(config)) | choices
    corpus = facts["corpus"] + (f" ({facts['split']})" if facts["split"] != "test" else "")
    logger = config["logger"]
    return Run(folder, corpus, settings, systems, facts, logger["project"] if logger["enabled"] else None)


def _by_seed(run: Run) -> list[Run]:
    """A run that trained several times is as many runs."""
    of_seed = {int(name.removeprefix(REPEATED)): name for name in run.systems if name.startswith(REPEATED)}
    shared = {name: of for name, of in run.systems.items() if not name.startswith(REPEATED)}
    others = {name: of for name, of in shared.items() if name not in (TUNED, HYBRID[TUNED])}
    return [
        dataclasses.replace(run, systems=shared),
        *(
            dataclasses.replace(
                run, settings=run.settings | {"seed": seed}, systems=others | {TUNED: run.systems[name]}
            )
            for seed, name in of_seed.items()
        ),
    ]


def _with_effect(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without what changes no result; a setting that an older version did not have is at its default."""
    found = dict(settings)
    for name, field in known_settings(Config):
        default = field.default
        if isinstance(default, str) and default.startswith("${"):  # another setting's
            default = found.get(default.strip("${}"), MISSING)
        if default is not dataclasses.MISSING and default != MISSING:
            found.setdefault(name, default)
    speed = speed_only()
    return {
        name: value
        for name, value in found.items()
        if name.rpartition(".")[2] not in speed and not name.startswith((*_ELSEWHERE, *_MEASURED_TOO))
    }


def _by_query(
    queries: np.ndarray, metrics: list[str], values: np.ndarray, shared: dict[Any, Any]
) -> pandas.DataFrame:
    """Metrics by query, sorted. Many runs have the same queries and the same BM25: these are in memory once."""
    key = tuple(queries)
    if key not in shared:
        order = np.argsort(queries)
        shared[key] = order, pandas.Index(queries[order])
    order, index = shared[key]
    content = id(index), *metrics, hashlib.sha256(values.tobytes()).digest()
    if content not in shared:
        shared[content] = pandas.DataFrame(values[order], index=index, columns=metrics)
    return shared[content]


def _flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by dotted names; lists as they are."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{name}.")
        else:
            flat[f"{above}{name}"] = value
    return flat


def _natural(path: Path) -> tuple:
    """Sorts job 2 before job 10."""
    return tuple((len(part), part) if part.isdigit() else (0, part) for part in path.parts)
