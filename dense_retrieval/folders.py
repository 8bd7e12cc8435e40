"""``student=FOLDER``: a run, or a model's folder, as a choice beside those of ``conf/student/``."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from dense_retrieval.config import CONF
from dense_retrieval.hub import read_json
from dense_retrieval.records import InputError
from dense_retrieval.schemas.encoders import Student
from dense_retrieval.sentence_folder import declared_pooling, prompts

# Of a run's student; what starts code, changes speed only, or says how it was trained is this command's to choose.
_NOT_TAKEN = (
    *("_target_", "path", "revision", "trust_remote_code", "attention", "engine", "float16_from"),
    *("tune", "matryoshka", "lora", "gradient_checkpointing"),
)


def offer(words: Sequence[str]) -> None:
    """Make a choice of each folder that a command line's ``student=`` names.

    Raises:
        InputError: there is no such folder; it is a run that did not finish, or holds no model.
    """
    for word in words:
        if not word.lstrip("+").startswith("student="):
            continue
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException:
            continue  # Hydra will say so
        swept = override.is_sweep_override()
        for name in map(str, override.sweep_string_iterator() if swept else [override.value()]):
            folder = Path(name)
            if "/" in name and not folder.is_dir():
                raise InputError(f"student={name}: there is no such folder")
            if folder.is_dir() and not Path(CONF, "student", f"{name}.yaml").is_file():
                parts = [part for part in f"student/{name}".split("/") if part]  # as Hydra looks it up
                store, node = ConfigStore.instance().store, student(folder)
                store(parts[-1], node, "/".join(parts[:-1]), package="student")
                if name.endswith("/"):  # as shells complete it; Hydra then looks for it there too
                    store("", node, "/".join(parts), package="student")


def student(folder: Path) -> Student:
    """The student of a run, with the run's settings, or of a model's folder, with what is said there.

    Raises:
        InputError: no finished run, no model, or one of queries alone.
    """
    run = folder if (folder / "model").is_dir() else folder.resolve().parent
    model = run / "model" if run == folder else folder
    if (folder / ".hydra").is_dir() and not (folder / "model").is_dir():
        raise InputError(f"student={folder} has no model: the run did not finish; start it again")
    if not (model / "config.json").is_file() and not (model / "modules.json").is_file():
        raise InputError(f"student={folder} is no run and holds no model")
    if model.name == "model" and (run / "config.yaml").is_file() and (run / "metrics.json").exists():
        values = yaml.safe_load((run / "config.yaml").read_text()).get("student", {})
        if values.get("tune") == "queries":
            raise InputError(
                f"student={folder} embeds queries alone (student.tune=queries), and passages need the untuned student; "
                "what both find together is in the run's results.md, and in dense-retrieval search"
            )
        taken = {field.name for field in fields(Student)} - {*_NOT_TAKEN}
        return Student(path=str(model), **{k: v for k, v in values.items() if k in taken})
    return Student(path=str(model), **_said(model, f"student={folder}"))


def _said(model: Path, named: str) -> dict[str, Any]:
    """What sentence-transformers' files say of a model."""
    found: dict[str, Any] = {}
    if pooling := declared_pooling(model, named):
        found["pooling"] = pooling
    said = prompts(model, named)
    found |= {"query_prefix": said["query"], "passage_prefix": said["document"]}
    if (model / "sentence_bert_config.json").is_file():
        lengths = read_json(model / "sentence_bert_config.json", named)
        if length := lengths.get("document_length") or lengths.get("max_seq_length"):
            found["passage_length"] = length
    return found
