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

FAILURE = "error.txt"  # in a job's folder, the line that says why it failed
_NAME_LENGTH = 60


def name(overrides: Sequence[str]) -> str:
    """A folder's name for a sweep: the same command gives the same one.

    >>> name(["loss=infonce,listwise", "seed=1,2"])
    'loss=infonce,listwise_seed=1,2-baf958b3'
    """
    digest = hashlib.sha256("\0".join(overrides).encode()).hexdigest()[:8]
    return re.sub(r"[^\w.,=+-]+", "-", "_".join(overrides))[:_NAME_LENGTH] + f"-{digest}"


def finished(folder: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What ``metrics.json`` says of each corpus, if a job with these settings has finished here.

    If it has not, what an older job left is removed.
    """
    files = sorted(folder.glob("metrics.json")) or sorted(folder.glob("*/metrics.json"))
    config, model = folder / "config.yaml", folder / "model"
    if files and (model / "README.md").is_file() and config.is_file():  # the card is written last
        metrics = [json.loads(file.read_text()) for file in files]
        same_version = all(m["versions"]["dense_retrieval"] == dense_retrieval.__version__ for m in metrics)
        if same_version and yaml.safe_load(config.read_text()) == settings:
            return metrics
    for file in [*files, folder / FAILURE]:
        file.unlink(missing_ok=True)
    shutil.rmtree(model, ignore_errors=True)
    return []
