"""Several corpora's groups as one set of groups."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from datasets import Dataset

from dense_retrieval.groups.build import load_groups
from dense_retrieval.records import Corpus, Groups
from dense_retrieval.stage import Counts, Folder, stage


@stage(load_groups, speed=("queries", "corpora"))
def mixture(
    folder: Path,
    parts: Mapping[str, Folder[Groups]],
    queries: Mapping[str, Folder[Dataset]],
    corpora: Mapping[str, Folder[Corpus]],
    /,
) -> Counts:
    """The groups of all corpora, rows counted through, and which corpus each is of (``corpus.npy``)."""
    loaded = [part.load() for part in parts.values()]
    first_query = np.cumsum([0] + [len(of.load()) for of in queries.values()])
    first_passage = np.cumsum([0] + [len(of.load().passages) for of in corpora.values()])
    moved = [
        Groups(
            part.query + query,
            np.where(part.passages >= 0, part.passages + passage, -1),
            part.teacher,
            part.source + passage,
            part.dev,
        )
        for part, query, passage in zip(loaded, first_query, first_passage, strict=False)
    ]
    names = ["query", "passages", "teacher", "source", "dev"]
    Groups(*(np.concatenate([getattr(part, n) for part in moved]) for n in names)).save(folder / "groups.npz")
    np.save(folder / "corpus.npy", np.repeat(np.arange(len(loaded)), [len(p.query) for p in loaded]))
    return {name: len(p.query) for name, p in zip(parts, loaded, strict=True)}
