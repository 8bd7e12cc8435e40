"""The stage that reads a corpus."""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from dense_retrieval.records import Corpus
from dense_retrieval.stage import Counts, Folder, stage


@stage(Corpus.load, name="corpus", version=2)
def read(folder: Path, path: Folder[Path] | None, /, **loader: Any) -> Counts:
    """A corpus in the package's own form.

    Args:
        path: file or folder that it is read from, where there is one.
        loader: ``_target_``, a function that gives a :class:`Corpus`, with its arguments.
    """
    corpus = instantiate(loader | ({"path": str(path.path)} if path else {}))
    corpus.save(folder)
    return {"passages": len(corpus.passages)} | {s: len(q) for s, q in corpus.queries.items()}
