"""The stage that reads a corpus."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from dense_retrieval.records import Corpus, InputError, TestSet, column
from dense_retrieval.stage import Counted, Counts, Folder, stage

_LETTERS = 6  # of a word, with the space behind it


def _sizes(
    path: Counted | None,
    tokenizer: object,
    loader: dict[str, Any],
    known: Mapping[str, float | None] | None = None,
) -> dict[str, float]:
    """Of the corpora in this package, of a folder in BEIR's layout, and of BEIR's own corpora, as far as it says."""
    if path is None and known:
        there = {name: n for name, n in known.items() if n is not None}
        characters = there.get("passages", math.nan) * there.pop("words", math.nan) * _LETTERS
        return {name.replace("_", " "): n for name, n in there.items()} | {"characters": characters}
    if path is None:
        inside = loader["_target_"].startswith("dense_retrieval.corpus.embedded.")
        return _counts(instantiate(loader)) if inside else {}
    folder = path.path
    if folder is None or not (folder / "corpus.jsonl").is_file():
        return {}
    found: dict[str, float] = {"passages": _lines(folder / "corpus.jsonl")}
    for file in (folder / "qrels").glob("*.tsv"):
        split = "test" if file.stem == loader.get("test_split", "test") else file.stem
        with file.open(encoding="utf-8") as lines:
            next(lines, None)
            found[f"{split} queries"] = len({line.partition("\t")[0] for line in lines})
    return found | {"characters": (folder / "corpus.jsonl").stat().st_size}


def _lines(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _counts(corpus: Corpus) -> dict[str, float]:
    characters = sum(len(text) for texts in column(corpus.passages, "text") for text in texts)
    counts: dict[str, float] = {"passages": len(corpus.passages), "characters": characters}
    return counts | {f"{split} queries": len(queries) for split, queries in corpus.queries.items()}


@stage(Corpus.load, name="corpus", version=3, speed=("known",), forecast=_sizes)
def read(
    folder: Path,
    path: Folder[Path] | None,
    tokenizer: Folder[Path] | None = None,
    /,
    *,
    loader: dict[str, Any],
    known: Mapping[str, float | None] | None = None,
) -> Counts:
    """A corpus in the package's own form.

    Args:
        path: file or folder that it is read from, where there is one.
        tokenizer: by which documents are cut into passages.
        loader: ``_target_``, a function that gives a :class:`Corpus`, with its other arguments.
        known: numbers of "passages", "words" a passage, "train_queries" and "test_queries", for plans.
    """
    files = {name: str(of.path) for name, of in (("path", path), ("tokenizer", tokenizer)) if of}
    corpus = instantiate(loader, **files)
    corpus.save(folder)
    return _counts(corpus)


@stage(TestSet.load, forecast=lambda corpus, split: {"queries": corpus[f"{split} queries"]})
def test_split(folder: Path, corpus: Folder[Corpus], /, *, split: str) -> Counts:
    """The human queries of a split.

    Raises:
        InputError: the corpus has no such split.
    """
    loaded = corpus.load()
    if split not in loaded.queries:
        there = ", ".join([*sorted(loaded.queries), "synthetic_dev", "synthetic"])
        raise InputError(f"evaluation.split={split}: this corpus has {there}; choose one of them")
    TestSet(loaded.queries[split], loaded.qrels[split]).save(folder)
    return {"queries": len(loaded.queries[split])}
