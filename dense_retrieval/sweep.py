"""The jobs of a sweep: what their folder is called, and which of them are finished."""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import dense_retrieval
from dense_retrieval.files import fingerprint
from dense_retrieval.records import InputError

log = logging.getLogger(__name__)

FAILURE = "error.txt"  # in a job's folder, the line that says why it failed
_NAME_LENGTH = 60
_IS_OURS = {"data", "querytype", "loss", "trainer", "evaluation"}  # a config.yaml with these


def name(overrides: Sequence[str]) -> str:
    """A folder's name for a sweep: the same command gives the same one.

    >>> name(["loss=infonce,listwise", "seed=1,2"])
    'loss=infonce,listwise_seed=1,2-baf958b3'
    """
    digest = hashlib.sha256("\0".join(overrides).encode()).hexdigest()[:8]
    return re.sub(r"[^\w.,=+-]+", "-", "_".join(overrides))[:_NAME_LENGTH] + f"-{digest}"


def split_overrides(words: str) -> list[str]:
    """``data=beir data.path='a folder'`` as two overrides; quotes hold together and stay, for Hydra."""
    return re.findall(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""", words)


def inputs(settings: Any) -> dict[str, str]:
    """Path -> fingerprint, of the files and folders that settings name: a corpus, queries, prompts, weights."""
    found: dict[str, str] = {}
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            if name in ("path", "adapter", "queries") and isinstance(value, str) and Path(value).exists():
                found[value] = fingerprint(Path(value))
            else:
                found |= inputs([value] if name == "judge" else value)
    elif isinstance(settings, list):  # of query types, or of overrides: "data=beir data.path=FOLDER"
        words = [
            word.rpartition("=")[2]
            for text in settings
            if isinstance(text, str)
            for word in split_overrides(text)
        ]
        paths = [Path(word.strip("'\"")) for word in words if "/" in word or word.endswith(".yaml")]
        found |= {str(path): fingerprint(path) for path in paths if path.exists()}
    return found


def finished(folder: Path, settings: Mapping[str, Any], made_from: Mapping[str, str]) -> list[dict[str, Any]]:
    """What ``metrics.json`` says of each corpus, if a job with these settings has finished here.

    If it has not, what an older job left is removed.

    Args:
        made_from: the job's :func:`inputs`.

    Raises:
        InputError: the folder holds files that no job made.
    """
    files, config, model = _metrics_in(folder), folder / "config.yaml", folder / "model"
    if not _settings_of(config) and (config.is_file() or model.exists() or files):
        raise InputError(f"{folder} has files that no run made, and that one would replace; choose another")
    if _is_finished(folder):
        metrics = [json.loads(file.read_text()) for file in files]
        versions = [of["versions"]["dense_retrieval"] for of in metrics]
        inputs = [of.get("inputs") for of in metrics]
        if other := other_settings(folder, settings):
            log.info("a finished run with %s is replaced", other)
        elif set(versions) != {dense_retrieval.__version__}:
            log.info("a finished run of version %s is made anew", versions[0])
        elif any(of != made_from for of in inputs):
            log.info("a finished run is made anew: its input files have changed")
        else:
            return metrics
    for file in [*files, folder / FAILURE]:
        file.unlink(missing_ok=True)
    shutil.rmtree(model, ignore_errors=True)
    return []


def other_settings(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The first setting in which a run that has finished in a folder differs from these, such as ``seed=1``."""
    if not _is_finished(folder):
        return None
    old, new = _flat(_settings_of(folder / "config.yaml")), _flat(settings)
    for name in [*new, *old]:
        if name not in old:
            return f"no {name}"
        if name not in new or old[name] != new[name]:
            return f"{name}={old[name]}"
    return None


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _metrics_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("metrics.json")) or sorted(folder.glob("[0-9]*-*/metrics.json"))


def _is_finished(folder: Path) -> bool:
    written_last = folder / "model" / "README.md"
    return bool(_metrics_in(folder) and written_last.is_file() and _settings_of(folder / "config.yaml"))


def _settings_of(config: Path) -> dict[str, Any]:
    """A run's settings; empty if the file is none of a run's."""
    try:
        values = yaml.safe_load(config.read_text()) if config.is_file() else None
    except yaml.YAMLError:
        values = None
    return values if isinstance(values, dict) and values.keys() >= _IS_OURS else {}
