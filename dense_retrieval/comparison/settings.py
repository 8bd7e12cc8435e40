"""Which settings tell runs apart."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from omegaconf import MISSING

from dense_retrieval.chain import speed_only
from dense_retrieval.checks import settings as known_settings
from dense_retrieval.config import Config

# Choices of what the settings themselves say: of numbers, of several settings, of where results are shown.
NO_SETTINGS = ("scale", "trainer", "experiment", "logger", "executor")
# Where results are kept and shown, and what is implied by the choice of a loss.
_ELSEWHERE = (
    "cache_dir",
    "scale.",
    "experiment",
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
_MEASURED_TOO = (
    "evaluation.headroom_k",
    "evaluation.headroom_queries",
    "evaluation.heldout_types",
    "evaluation.metrics",
)
_GROUPS = ("loss", "querytype", "teacher", "student", "retriever", "generator")


class HasSettings(Protocol):
    """A run: its corpus, and what its settings are."""

    @property
    def corpus(self) -> str: ...
    @property
    def settings(self) -> dict[str, Any]: ...


def with_effect(config: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any]:
    """``loss.infonce_weight`` -> value, of all that may change results.

    A setting that an older version did not have is at its default; a file is what it holds, wherever it lies.

    Args:
        config: nested, as in ``config.yaml``.
        inputs: path -> fingerprint of the content.
    """
    found = _flat(config)
    for name, field in known_settings(Config):
        default = field.default
        if isinstance(default, str) and default.startswith("${"):  # another setting's
            default = found.get(default.strip("${}"), MISSING)
        if default is not dataclasses.MISSING and default != MISSING:
            found.setdefault(name, default)
    speed = speed_only()
    return {
        name: f"{Path(value).name}@{inputs[value][:6]}"
        if isinstance(value, str) and value in inputs
        else value
        for name, value in found.items()
        if name.rpartition(".")[2] not in speed and not name.startswith((*_ELSEWHERE, *_MEASURED_TOO))
    }


def differing(runs: Sequence[HasSettings]) -> tuple[list[str], dict[str, list[str]]]:
    """The settings that differ between runs on the same corpus, but for the seed: columns, and those that follow.

    A setting that follows from its group's choice in all runs, such as ``loss.infonce_weight`` from ``loss``, is no
    column; one that goes with another group's is, since either may be why results differ.

    Returns:
        Columns, choices first; and choice -> settings that follow from it.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    choices = [name for name in _GROUPS if name in names]
    choices += [name for name in names if name not in choices and "." not in name]
    columns: list[str] = []
    follow: dict[str, list[str]] = {}
    for name in [*choices, *(n for n in names if "." in n)]:
        group = name.partition(".")[0]
        if name == "seed" or _told_by([], name, runs) or _is_another(name, group, names, runs):
            continue
        if group in columns and group != name and _told_by([group], name, runs, on_each=False):
            follow.setdefault(group, []).append(name)
        else:
            columns.append(name)
    return columns, follow


def shown(value: Any) -> Any:
    """A setting's value as a table shows it, and as the command line takes it."""
    if isinstance(value, list):
        return f"[{','.join(str(shown(of)) for of in value)}]"
    is_plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return value if is_plain else text(value)


def text(value: Any) -> str:
    """By which values are the same."""
    return json.dumps(value, sort_keys=True, default=str)


def _told_by(columns: list[str], name: str, runs: Sequence[HasSettings], *, on_each: bool = True) -> bool:
    """Whether who knows some settings, and the corpus if ``on_each``, knows another."""
    seen: dict[str, str] = {}
    for run in runs:
        known = text([run.corpus if on_each else "", *(run.settings.get(c) for c in columns)])
        value = text(run.settings.get(name))
        if seen.setdefault(known, value) != value:
            return False
    return True


def _is_another(name: str, group: str, names: Sequence[str], runs: Sequence[HasSettings]) -> bool:
    """``loss.terms.listwise.teacher_temperature`` is ``loss.teacher_temperature``, whose value it takes."""
    *_, above, last = ["", *name.split(".")]
    values = [text(run.settings.get(name)) for run in runs]
    others = [f"{group}.{last}", f"{group}.{above}_{last}"]
    return name.count(".") > 1 and any(
        values == [text(run.settings.get(other)) for run in runs] for other in others if other in names
    )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested settings by dotted names, also in lists of them; lists of plain values as they are."""
    nested: Any = value.items() if isinstance(value, Mapping) else ()
    if isinstance(value, list) and any(isinstance(of, Mapping) for of in value):
        nested = enumerate(value)
    elif not isinstance(value, Mapping):
        return {name: value}
    flat: dict[str, Any] = {}
    for key, of in nested:
        flat |= _flat(of, f"{name}.{key}" if name else str(key))
    return flat
