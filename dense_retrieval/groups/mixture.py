"""Several corpora's groups as one set of groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dense_retrieval.groups.labels import load_groups
from dense_retrieval.records import Corpus, Groups
from dense_retrieval.stage import Counted, Counts, Folder, stage

if TYPE_CHECKING:
    from datasets import Dataset


def _sums(parts: list[Counted], **_: Any) -> dict[str, float]:
    return {name: sum(part[name] for part in parts) for name in ("groups", "dev", "pairs")}


@stage(load_groups, version=2, forecast=_sums)
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
            part.relevant + np.array([query, passage]),
        )
        for part, query, passage in zip(loaded, first_query, first_passage, strict=False)
    ]
    names = [field.name for field in fields(Groups)]
    Groups(*(np.concatenate([getattr(part, n) for part in moved]) for n in names)).save(folder / "groups.npz")
    np.save(folder / "corpus.npy", np.repeat(np.arange(len(loaded)), [len(p.query) for p in loaded]))
    return {
        "groups": sum(len(part.query) for part in loaded),
        "dev": sum(int(part.dev.sum()) for part in loaded),
        "pairs": sum(part.passages.size for part in loaded),
    }
