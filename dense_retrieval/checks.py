"""What is wrong with settings that compose: numbers out of range, names that no schema has, a finished run's folder."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import Field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dense_retrieval import sweep
from dense_retrieval.config import GROUPS
from dense_retrieval.records import InputError
from dense_retrieval.schemas.setting import Range


def settings(schema: Any, prefix: str = "") -> Iterator[tuple[str, Field]]:
    """Dotted names and fields of all settings of a schema; where a group has several schemas, of each."""
    for field in fields(schema):
        name = prefix + field.name
        if is_dataclass(field.type) or (field.name in GROUPS and not prefix):
            for nested in GROUPS.get(field.name, {"": field.type}).values():
                yield from settings(nested, f"{name}.")
        elif not field.name.startswith("_"):
            yield name, field


def names(schema: Any) -> list[str]:
    """What an override of a configuration of this schema may set: its groups and settings, and Hydra's.

    Not those of ``scale``, whose names are those of the settings that take their values.
    """
    known = [*settings(schema), *settings(HydraConf, "hydra.")]
    found = [field.name for field in fields(schema)] + [name for name, _ in known]
    return [name for name in found if not name.startswith("scale.")]


def suggestion(name: str, known: Sequence[str]) -> str:
    """``; did you mean ...?``, if anything known is close to a name; else nothing."""
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def check(config: Any) -> None:
    """Raise InputError where a number is out of its range, a name is no setting's, or a device is not there."""
    _check_numbers(config, "")
    precision, device = (OmegaConf.select(config, name) for name in ("precision", "device"))
    if precision not in (None, "auto", "32-true", "bf16-mixed"):
        raise InputError(f"precision={precision} is unknown; use auto, 32-true or bf16-mixed")
    if device not in (None, "auto", "cpu") and not device.startswith("cuda"):
        raise InputError(f"device={device} is unknown; use cpu, cuda or auto")
    if device is not None and device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            raise InputError(f"device={device}: torch finds no such GPU here; use cpu or auto")


def _check_numbers(node: DictConfig, prefix: str) -> None:
    schema: Any = OmegaConf.get_type(node)
    if not is_dataclass(schema):
        return
    ranges = {field.name: field.metadata.get("range") for field in fields(schema)}
    for key in map(str, node):
        name = prefix + key
        if key not in ranges and not key.startswith("_"):  # + on the command line adds any
            known = [prefix + other for other in ranges]
            raise InputError(f"{name}: there is no such setting{suggestion(name, known)}")
        if OmegaConf.is_missing(node, key):
            continue
        if limits := ranges.get(key):
            _check_range(name, node[key], limits)
        elif not OmegaConf.is_interpolation(node, key) and isinstance(node[key], DictConfig):
            _check_numbers(node[key], f"{name}.")


def _check_range(name: str, value: Any, limits: Range) -> None:
    for number in value if isinstance(value, ListConfig) else [value]:
        if isinstance(number, int | float) and number not in limits:
            what = "out of range" if math.isfinite(number) else "no finite number"
            raise InputError(f"{name}={value} is {what}; it is {limits}")


class KeepFinished(Callback):
    """Refuses a run in the folder of a finished one with other settings, before Hydra writes there."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        HydraConfig.instance().set_config(config)  # as Hydra does next; settings may refer to it
        try:
            folder = Path(config.hydra.run.dir)
            own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
            settings: Any = OmegaConf.to_container(own, resolve=True)
        except OmegaConfBaseException:
            return  # the run will say so
        if other := sweep.other_settings(folder, settings):
            raise SystemExit(
                f"error: {folder} holds a finished run with {other}; choose another hydra.run.dir, or delete it"
            )
