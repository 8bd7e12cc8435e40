"""What ``--help`` of a command says: its groups with their choices, its settings with defaults, meanings and ranges."""

import re
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dense_retrieval.config import CONF, GROUPS

_HIDDEN = ("scale", "known")  # the settings that take the former's values are shown; the latter is for plans
_VALUE_WIDTH = 48
_ALSO = {
    "-m": "a setting or a group may have several values, loss=listwise,infonce: each combination is a job",
    "hydra/launcher=NAME": "where the jobs of -m are run: basic, joblib, slurm, ray",
    "hydra.run.dir=FOLDER": "where the results are written; default: a new folder in runs/",
    "--cfg job": "show the whole configuration as YAML, and do nothing",
    "--hydra-help": "options of Hydra's own",
}


def text(
    config_name: str, schema: type, doc: str, overrides: Sequence[str], shown: Collection[str] | None = None
) -> str:
    """The help of a command.

    Args:
        config_name: its file in ``conf/``.
        schema: of the configuration.
        doc: the module's docstring: ``python -m MODULE ARGUMENTS: what it does``, and more below.
        overrides: what else is on the command line: shown are the settings that it leads to.
        shown: groups and settings that the command reads; None is all.
    """
    width = min(shutil.get_terminal_size().columns, 118)
    with initialize_config_dir(CONF, version_base=None):
        config: Any = compose(config_name, overrides=list(overrides), return_hydra_config=True)
    chosen = config.hydra.runtime.choices
    module, said = _started(doc)
    read = [name for name in map(str, config) if name != "hydra" and (shown is None or name in shown)]
    groups = [name for name in read if Path(CONF, name).is_dir()]
    usage = f"{module} [GROUP=CHOICE]... [SETTING=VALUE]..." if groups else f"{module} [SETTING=VALUE]..."
    lines = [said, "", f"Usage: {usage}", ""]
    if groups:
        lines += [
            "GROUPS (what is chosen is in brackets; a choice sets the settings below that go with it)",
            "",
        ]
        meanings = {field.name: field.metadata.get("meaning", "") for field in fields(schema)}
        for name in groups:
            choices = _choices(name, chosen.get(name))
            lines += _entry(f"{name}=", f"{meanings[name]}: {choices}", width, 14)
        lines.append("")
    lines += ["SETTINGS (with the values that they have by these choices)", ""]
    last = ""
    for name, value, field in _settings(config):
        if name.partition(".")[0] not in read:
            continue
        head = name.rpartition(".")[0]
        lines += [""] if head != last and lines[-1] else []
        last = head
        lines += _entry(f"{name}={value}", meaning(field), width, 40)
    lines += ["", "ALSO", ""]
    for name, what in _ALSO.items():
        if groups or not name.startswith(("-m", "hydra/")):
            lines += _entry(name, what, width, 24)
    return "\n".join(lines)


def _started(doc: str) -> tuple[str, str]:
    """How the command was started, and what it does."""
    found = re.match(r"(python -m \S+?)(?: [^\n]*?)?: (.*)", doc.strip(), re.DOTALL)
    started, said = (found[1], found[2]) if found else ("", doc.strip())
    words = [Path(word).name for word in sys.orig_argv]
    for number, word in enumerate(words[:3]):
        if word in ("dense-retrieval", "dense_retrieval"):  # the latter after -m
            started = " ".join(["dense-retrieval", *words[number + 1 : number + 2]])
    return started, said[:1].upper() + said[1:]


def _choices(group: str, chosen: Any) -> str:
    names = {
        str(file.relative_to(Path(CONF, group)).with_suffix("")) for file in Path(CONF, group).glob("*.yaml")
    }
    names |= {str(chosen)} if chosen else set()
    return " ".join(f"[{name}]" if name == chosen else name for name in sorted(names))


def _settings(node: DictConfig, prefix: str = "") -> Iterator[tuple[str, str, Field]]:
    """Dotted name, value and field of each setting below a node; those of the root itself first."""
    schema: Any = OmegaConf.get_type(node)
    if not is_dataclass(schema):
        return
    nested = []
    for field in fields(schema):
        name = field.name
        if name.startswith("_") or name in _HIDDEN or name == "experiment":
            continue
        below = not OmegaConf.is_missing(node, name) and not OmegaConf.is_interpolation(node, name)
        if below and isinstance(node[name], DictConfig) and is_dataclass(OmegaConf.get_type(node[name])):
            nested.append(name)
        elif prefix or name not in GROUPS:  # a group of which nothing is chosen has no settings
            yield prefix + name, _value(node, name), field
    for name in nested:
        yield from _settings(node[name], f"{prefix}{name}.")


def _value(node: DictConfig, name: str) -> str:
    """As it would be typed; where it is long, the beginning of a list and the end of a path."""
    if OmegaConf.is_missing(node, name):
        return ""
    try:
        value = node[name]
    except OmegaConfBaseException:
        value = node._get_node(name)._value()  # type: ignore[union-attr]
    if OmegaConf.is_dict(value):
        return "{...}"
    if OmegaConf.is_list(value):
        shown = f"[{','.join(map(str, value))}]"
        return shown if len(shown) <= _VALUE_WIDTH else f"{shown[: _VALUE_WIDTH - 4]}...]"
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return shown if len(shown) <= _VALUE_WIDTH else f"...{shown[-_VALUE_WIDTH + 3 :]}"


def meaning(field: Field) -> str:
    """What a setting means, and its range."""
    limits = field.metadata.get("range")
    return field.metadata.get("meaning", "") + (f" ({limits})" if limits else "")


def _entry(name: str, meaning: str, width: int, column: int) -> list[str]:
    """A name and behind it, or below it where it is long, its meaning."""
    lines = textwrap.wrap(meaning, max(width - column, 40), break_on_hyphens=False) or [""]
    head = f"  {name}"
    if len(head) < column:
        head, lines = f"{head:<{column}}{lines[0]}", lines[1:]
    return [head.rstrip(), *(" " * column + line for line in lines)]
