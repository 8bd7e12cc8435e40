"""Model folders: a local path as it is, a Hugging Face hub name downloaded, and what transformers reads there."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dense_retrieval.records import InputError
from dense_retrieval.stage import Counted

if TYPE_CHECKING:
    import torch

logging.getLogger("httpx").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft asks for it

# Weights come as safetensors only: a pickle can run code when it is opened.
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.py", "*.md", "*.jinja"]
# Each holds a vocabulary: where there is none, transformers makes an empty tokenizer for some models.
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_HIDDEN_SIZE = ("hidden_size", "d_model", "dim")  # as BERT, T5 and DistilBERT call it

ENCODER = ("Pooling", "Dense", "Normalize")  # of sentence-transformers, after the transformer of a student


_NEED_NO_HUB = "student=all_minilm, teacher=wikivital_minilm, generator=files or querytype=human"


def model_folder(name: str, revision: str | None = None, instead: str = _NEED_NO_HUB) -> Path:
    """The local folder of a model.

    Args:
        name: a local folder, or a hub name such as ``sentence-transformers/all-MiniLM-L6-v2``.
        revision: branch, tag or commit on the hub; None is the default branch.
        instead: settings that need no hub, for the error message.

    Raises:
        InputError: there is no such folder and the hub does not have it or cannot be reached; or
            the folder holds no safetensors weights.
    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
        except Exception as error:  # the hub's errors share no base class
            reason = _first_line(error).partition(". ")[0]
            raise InputError(
                f"model {name!r} is no local folder and could not be had from the Hugging Face hub "
                f"({type(error).__name__}: {reason}); give a folder, or what needs no hub: {instead}"
            ) from error
    if not list(folder.rglob("*.safetensors")):
        raise InputError(
            f"model folder {folder} holds no *.safetensors weights; save it with save_pretrained()"
        )
    return folder


def weights_size(of: Counted) -> float:
    """Bytes of a model's weights: of its folder, or as many as a stage will write; NaN if that is not known."""
    if of.path is None:
        return of["bytes"]
    return sum(file.stat().st_size for file in of.path.rglob("*.safetensors")) or math.nan


def dimension(of: Counted) -> float:
    """Of a model's embeddings, likewise."""
    configs = [] if of.path is None else sorted(of.path.rglob("config.json"))
    found = [json.loads(file.read_text()) for file in configs]
    behind = [config["out_features"] for config in found if "out_features" in config]  # of linear layers
    if behind:
        return float(behind[-1])
    sizes = (config.get(name) for config in found for name in _HIDDEN_SIZE)
    return next((float(size) for size in sizes if size), of["dimension"])


def read_json(file: Path, named: str) -> Any:
    """What a model folder's file says; InputError where it is not there or no JSON."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{named}: {file} cannot be read: {_first_line(error)}; save it again") from error


def sentence_modules(folder: Path, named: str) -> list[tuple[str, Path]]:
    """Class and folder of each module of a sentence-transformers folder, in the order they are applied.

    A folder of plain transformers is one ``Transformer``. A class that is not the library's has its
    module's name before it.
    """
    listing = folder / "modules.json"
    if not listing.is_file():
        return [("Transformer", folder)]
    found = []
    for module in read_json(listing, named):
        library, _, name = module["type"].rpartition(".")
        own = library.partition(".")[0] == "sentence_transformers"
        found.append((name if own else module["type"], folder / module["path"]))
    return found


def transformer_folder(folder: Path, named: str, *after: str) -> Path:
    """Where the transformer lies in a sentence-transformers folder; else the folder itself.

    Args:
        named: the setting that chose the folder, for error messages: ``student.path=NAME``.
        after: classes of modules that may follow the transformer.

    Raises:
        InputError: another module, whose part of the computation would be left out.
    """
    (first, transformer), *others = sentence_modules(folder, named)
    unknown = [name for name, _ in others if name not in after]
    if first != "Transformer" or unknown:
        raise InputError(
            f"{named}: {folder}/modules.json has the module {unknown[0] if first == 'Transformer' else first}, "
            f"which is not known here: it may hold a Transformer, then {', '.join(after)}; "
            f"choose another {_group(named)}="
        )
    return transformer


def load_config(folder: Path, named: str, trust_remote_code: bool = False) -> Any:
    """transformers' configuration of a model; InputError where it cannot be loaded."""
    with _one_line(named, "AutoConfig"):
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)


def load_model(
    auto_class: Any,
    folder: Path,
    named: str,
    *,
    new: tuple[str, ...] = (),
    trust_remote_code: bool = False,
    dtype: torch.dtype | str = "float32",
    **settings: Any,
) -> Any:
    """A model of transformers, each of its weights from the folder's safetensors.

    Args:
        auto_class: of transformers, such as ``AutoModel``.
        named: the setting that chose the folder, for error messages: ``student.path=NAME``.
        new: what the names of weights begin with that may be missing; transformers initialises them.
        trust_remote_code: run modelling code that comes with the weights.
        settings: further arguments of ``from_pretrained``.

    Raises:
        InputError: it cannot be loaded, or its weights do not match its config.json.
    """
    with _one_line(named, auto_class.__name__):
        model, loaded = auto_class.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
            **settings,
        )
    wrong = dict.fromkeys(loaded["missing_keys"], "lacks the weights {}")
    for name, there, wanted in loaded["mismatched_keys"]:
        wrong[name] = f"has the weights {{}} in the shape {tuple(there)}, not {tuple(wanted)},"
    wrong = {name: fault for name, fault in wrong.items() if not name.startswith(new)}
    if wrong:
        first = min(wrong)
        raise InputError(
            f"{named} {wrong[first].format(first)} of a {type(model).__name__}, which its config.json asks "
            f"for; choose another {_group(named)}=, or download or save it again"
        )
    return model


def load_tokenizer(folder: Path, named: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder.

    Args:
        named: the setting that chose the folder, for error messages: ``student.path=NAME``.

    Raises:
        InputError: there is none, or it cannot be loaded.
    """
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise InputError(
            f"{named}: {folder} has no tokenizer (tokenizer.json or vocab.txt); "
            "save the tokenizer beside the weights with save_pretrained()"
        )
    with _one_line(named, "AutoTokenizer"):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


@contextmanager
def _one_line(named: str, loader: str) -> Iterator[None]:
    """transformers' complaints as InputErrors."""
    from safetensors import SafetensorError
    from transformers.utils import logging as narration

    narration.set_verbosity_error()
    narration.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        group = _group(named)
        untrusted = "trust_remote_code" in str(error)
        remedy = (
            f"if you trust the code that comes with it, set {group}.trust_remote_code=true"
            if untrusted
            else f"choose another {group}="
        )
        raise InputError(f"{named} cannot be loaded by {loader}: {_first_line(error)}; {remedy}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _group(named: str) -> str:
    """``student`` of ``student.path=NAME``."""
    return named.partition("=")[0].partition(".")[0]
