"""The jobs of a sweep: what their folder is called, and which of them are finished."""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import dense_retrieval
from dense_retrieval.records import InputError
from dense_retrieval.stage import fingerprint

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
                found |= inputs(value)
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
    files = sorted(folder.glob("metrics.json")) or sorted(folder.glob("[0-9]*-*/metrics.json"))
    config, model = folder / "config.yaml", folder / "model"
    old = _settings_of(config)
    if not old and (config.is_file() or model.exists() or files):
        raise InputError(f"{folder} has files that no run made, and that one would replace; choose another")
    if files and (model / "README.md").is_file():  # the card is written last
        metrics = [json.loads(file.read_text()) for file in files]
        same = [m["versions"]["dense_retrieval"] == dense_retrieval.__version__ for m in metrics]
        same += [m.get("inputs") == made_from for m in metrics]
        if all(same) and old == settings:
            return metrics
    for file in [*files, folder / FAILURE]:
        file.unlink(missing_ok=True)
    shutil.rmtree(model, ignore_errors=True)
    return []


def _settings_of(config: Path) -> dict[str, Any]:
    """A run's settings; empty if the file is none of a run's."""
    try:
        values = yaml.safe_load(config.read_text()) if config.is_file() else None
    except yaml.YAMLError:
        values = None
    return values if isinstance(values, dict) and values.keys() >= _IS_OURS else {}
