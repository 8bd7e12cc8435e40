"""The stage that reads a corpus."""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from dense_retrieval.records import Corpus, InputError, TestSet, column
from dense_retrieval.stage import Counted, Counts, Folder, stage


def _sizes(path: Counted | None, loader: dict[str, Any]) -> dict[str, float]:
    """Of the corpora in this package, and of a folder in BEIR's layout."""
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


@stage(Corpus.load, name="corpus", version=3, forecast=_sizes)
def read(folder: Path, path: Folder[Path] | None, /, *, loader: dict[str, Any]) -> Counts:
    """A corpus in the package's own form.

    Args:
        path: file or folder that it is read from, where there is one.
        loader: ``_target_``, a function that gives a :class:`Corpus`, with its other arguments.
    """
    corpus = instantiate(loader, **({"path": str(path.path)} if path else {}))
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
        there = ", ".join([*sorted(loaded.queries), "synthetic_dev"])
        raise InputError(f"evaluation.split={split}: this corpus has {there}; choose one of them")
    TestSet(loaded.queries[split], loaded.qrels[split]).save(folder)
    return {"queries": len(loaded.queries[split])}
