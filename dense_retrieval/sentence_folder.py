"""What a sentence-transformers folder says beside its transformer: pooling, further layers, prompts, similarity."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dense_retrieval.hub import read_json, sentence_modules
from dense_retrieval.records import InputError

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

POOLINGS = ("cls", "mean", "lasttoken")
_OLD_NAMES = {"cls_token": "cls", "mean_tokens": "mean"}
# What encode_query and encode_document look for, in this order.
_PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}


def prompts(folder: Path, named: str) -> dict[str, str]:
    """What stands before each "query" and each "document"; empty where the folder says nothing."""
    said = _said(folder, named).get("prompts") or {}
    return {of: next((said[name] for name in names if said.get(name)), "") for of, names in _PROMPTS.items()}


def check(folder: Path, named: str, pooling: str | None, query_prefix: str, passage_prefix: str) -> None:
    """Warn where a folder says something else than what is asked for.

    Prompts that begin alike, as instructions for different tasks do, do not contradict each other.

    Raises:
        InputError: a pooling that is not known here, or several; a similarity that is no inner product.
    """
    declared = declared_pooling(folder, named)
    path = named.partition("=")[2]
    if declared and declared != pooling:
        log.warning("student.pooling=%s, but %s/1_Pooling says %s", pooling, path, declared)
    asked = {"query": ("query_prefix", query_prefix), "document": ("passage_prefix", passage_prefix)}
    for of, said in prompts(folder, named).items():
        setting, prefix = asked[of]
        if said and said.partition(":")[0] != prefix.partition(":")[0]:
            log.warning("student.%s=%r, but the %s prompt of %s is %r", setting, prefix, of, path, said)
    similarity = _said(folder, named).get("similarity_fn_name") or "cosine"
    if similarity not in ("cosine", "dot"):
        raise InputError(
            f"{named}: its embeddings are compared by {similarity}; only cosine and dot are known here: "
            "choose another student="
        )
    normalised = "Normalize" in [name for name, _ in sentence_modules(folder, named)]
    if similarity == "dot" and not normalised:
        log.warning("%s compares by dot products of any length; here all embeddings have length 1", path)


def _said(folder: Path, named: str) -> dict[str, Any]:
    file = folder / "config_sentence_transformers.json"
    return read_json(file, named) if file.is_file() else {}


def declared_pooling(folder: Path, named: str) -> str | None:
    """What the folder says; None if it says nothing.

    Raises:
        InputError: another pooling than by cls, mean or the last token, or several.
    """
    files = [part / "config.json" for name, part in sentence_modules(folder, named) if name == "Pooling"]
    configs = [read_json(file, named) for file in files]
    modes = [mode for config in configs for mode in _pooling_modes(config)]
    without_prompt = any(config.get("include_prompt") is False for config in configs)
    if len(modes) > 1 or not {*modes} <= {*POOLINGS} or without_prompt:
        said = " and ".join(modes) + " without the prompt" * without_prompt
        raise InputError(
            f"{named}: {files[0]} pools by {said}; only cls, mean over all tokens, or lasttoken is known here: "
            "choose another student="
        )
    return modes[0] if modes else None


def _pooling_modes(config: dict[str, Any]) -> list[str]:
    """Of sentence-transformers' Pooling, as it writes them now (``pooling_mode``) or wrote them before 5.4."""
    modes = config.get("pooling_mode") or [
        _OLD_NAMES.get(name.removeprefix("pooling_mode_"), name.removeprefix("pooling_mode_"))
        for name, value in config.items()
        if name.startswith("pooling_mode_") and value
    ]
    return [modes] if isinstance(modes, str) else modes or ["mean"]


def dense_layers(folder: Path, named: str) -> list[nn.Sequential]:
    """The linear layers after the pooling, each with its activation, in float32.

    Raises:
        InputError: one that is applied to tokens, has a residual connection, or an activation that is not torch's;
            or one after the normalisation.
    """
    modules = sentence_modules(folder, named)
    names = [name for name, _ in modules]
    if "Normalize" in names and "Dense" in names[names.index("Normalize") :]:
        raise InputError(
            f"{named}: {folder}/modules.json has a Dense after Normalize; choose another student="
        )
    return [_dense(part, named) for name, part in modules if name == "Dense"]


def _dense(folder: Path, named: str) -> nn.Sequential:
    from safetensors.torch import load_file
    from torch import nn

    config = read_json(folder / "config.json", named)
    library, _, activation = config.get("activation_function", "torch.nn.modules.activation.Tanh").rpartition(
        "."
    )
    kind = getattr(nn, activation, None) if library.startswith("torch.nn.modules.") else None
    on_tokens = config.get("module_input_name", "sentence_embedding") != "sentence_embedding"
    if (
        config.get("use_residual")
        or on_tokens
        or not (isinstance(kind, type) and issubclass(kind, nn.Module))
    ):
        raise InputError(
            f"{named}: {folder}/config.json asks for a layer that is not known here: it may be linear, after the "
            "pooling, with an activation of torch; choose another student="
        )
    linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    file = folder / "model.safetensors"
    try:
        weights = {name.removeprefix("linear."): of.float() for name, of in load_file(file).items()}
        linear.load_state_dict(weights)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{named}: {file} has not the weights of this layer; choose another student="
        ) from error
    return nn.Sequential(linear, kind())
