"""Nodes of a composed configuration, as what stage functions take."""

import inspect
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import OmegaConf

from dense_retrieval.checks import check
from dense_retrieval.config import Config
from dense_retrieval.files import fingerprint
from dense_retrieval.records import InputError
from dense_retrieval.stage import Outside, Settings
from dense_retrieval.sweep import split_overrides


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


def outside(setting: str, path: str | None) -> Outside | None:
    """A file or folder that a setting names.

    Raises:
        InputError: there is none.
    """
    if path and not Path(path).exists():
        raise InputError(f"{setting}={path}: there is no such folder or file")
    return Outside(Path(path)) if path else None
