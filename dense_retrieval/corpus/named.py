"""Documents that have a name elsewhere: datasets of the Hugging Face hub, collections of ir_datasets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dense_retrieval.records import InputError


def of_hub(
    name: str, subset: str | None = None, split: str = "train", revision: str | None = None
) -> Iterator[Mapping[str, Any]]:
    """The rows of a dataset, memory-mapped.

    Args:
        name: on the hub, such as ``BeIR/scifact``, or a folder in the hub's layout.
        subset: its configuration, such as ``corpus``; None is its only or default one.
        split: such as ``train``, or ``train[:1000]``.
        revision: branch, tag or commit; None is the newest.

    Raises:
        InputError: it is not there, cannot be reached, or has no such subset or split.
    """
    from datasets import load_dataset

    try:
        yield from load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:  # the hub's errors share no base class
        raise InputError(
            f"data.path={name}: could not be had from the Hugging Face hub ({type(error).__name__}: "
            f"{' '.join(str(error).split())}); see data.subset=, data.split= and data.revision=, or give a folder with "
            "data.source=files"
        ) from error


def of_ir_datasets(name: str) -> Iterator[Mapping[str, Any]]:
    """The documents of a collection of https://ir-datasets.com, their fields by name, with ``id`` and, for those that
    have none of that name, ``text``: all that ir_datasets takes for it, which may begin with the title.

    Raises:
        InputError: ir_datasets is not installed, has no such collection, or cannot get it.
    """
    try:
        import ir_datasets
    except ImportError as error:
        raise InputError(
            "data.source=ir_datasets needs the package ir-datasets: pip install 'dense_retrieval[ir_datasets]'"
        ) from error
    try:
        for document in ir_datasets.load(name).docs_iter():
            yield {"text": document.default_text(), **document._asdict(), "id": document.doc_id}
    except Exception as error:  # each collection has its own
        raise InputError(
            f"data.path={name}: ir_datasets has no documents of that name, or cannot get them ({type(error).__name__}: "
            f"{' '.join(str(error).split())}); https://ir-datasets.com lists its collections"
        ) from error
