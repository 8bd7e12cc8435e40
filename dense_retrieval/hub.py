"""Model folders: a local path as it is, a Hugging Face hub name downloaded."""

from pathlib import Path

from huggingface_hub import snapshot_download

from dense_retrieval.records import InputError

# Weights come as safetensors only: a pickle can run code when it is opened.
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.py", "*.md", "*.jinja"]


def model_folder(name: str, revision: str | None = None) -> Path:
    """The local folder of a model.

    Args:
        name: a local folder, or a hub name such as ``sentence-transformers/all-MiniLM-L6-v2``.
        revision: branch, tag or commit on the hub; None is the default branch.

    Raises:
        InputError: there is no such folder and the hub does not have it or cannot be reached; or
            the folder holds no safetensors weights.
    """
    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
        except Exception as error:  # the hub's errors share no base class
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"model {name!r} is no local folder and could not be had from the Hugging Face hub "
                f"({type(error).__name__}: {reason}); give a folder, or what needs no hub: "
                "student=all_minilm, teacher=wikivital_minilm, generator=files or querytype=human"
            ) from error
    if not list(folder.rglob("*.safetensors")):
        raise InputError(
            f"model folder {folder} holds no *.safetensors weights; save it with save_pretrained()"
        )
    return folder
