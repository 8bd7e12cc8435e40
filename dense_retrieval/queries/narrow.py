"""A further step from written queries to those that are trained on: which it keeps, and why it drops the others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dense_retrieval.queries.clean import DROPPED
from dense_retrieval.records import table, write_table
from dense_retrieval.stage import Counts, Folder

if TYPE_CHECKING:
    from datasets import Dataset

OF_DUPLICATE = "of a duplicate passage"


def narrow(
    folder: Path,
    queries: Folder[Dataset],
    untrained: Mapping[str, Folder[np.ndarray]],
    types: Sequence[str],
    step: str,
    why: Callable[[np.ndarray], list[str]],
) -> Counts:
    """Write the queries of some types that a step keeps, and in ``dropped.arrow`` the others, with the reason.

    Those of held-out passages, which are not for training, are left out without being counted.

    Args:
        queries: what the step before kept; it counted "by type".
        untrained: passage rows that none comes from: "heldout" and "duplicates".
        step: its name, under which it is counted how many are left.
        why: of some rows of the queries the reason for which each is dropped, "" where it stays.
    """
    before = queries.load()
    source, names = (np.array(before[name][:]) for name in ("source", "querytype"))
    rows = np.flatnonzero(np.isin(names, list(types)) & ~np.isin(source, untrained["heldout"].load()))
    duplicate = np.isin(source[rows], untrained["duplicates"].load())
    asked = rows[~duplicate]
    reasons = dict.fromkeys(rows.tolist(), OF_DUPLICATE)
    reasons |= dict(zip(asked.tolist(), why(asked), strict=True))
    gone = np.array([bool(reasons[row]) for row in rows.tolist()], dtype=bool)
    kept, lost = rows[~gone], rows[gone]
    write_table(before.select(kept), folder / "queries.arrow")
    columns = before.select(lost).to_dict() | {"reason": [reasons[row] for row in lost.tolist()]}
    write_table(table(columns, DROPPED), folder / "dropped.arrow")
    left = Counter(names[kept].tolist())
    dropped = Counter((str(names[row]), reasons[row]) for row in lost.tolist())
    earlier: Mapping[str, Any] = json.loads((queries.path / "stage.json").read_text())["counts"]["by type"]
    return {
        "queries": len(kept),
        "by type": {
            name: of
            | {
                step: left[name],
                "dropped": of["dropped"]
                | {why: n for (kind, why), n in sorted(dropped.items()) if kind == name},
            }
            for name, of in earlier.items()
            if name in types
        },
    }
