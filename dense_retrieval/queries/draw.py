"""Which passages queries are made from, and which of the queries are trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dense_retrieval.queries import human
from dense_retrieval.queries.clean import load_queries
from dense_retrieval.records import Corpus, Groups, InputError, TestSet, write_table
from dense_retrieval.stage import Counted, Counts, Folder, stage

if TYPE_CHECKING:
    from datasets import Dataset


def draw(queries: Dataset, types: Sequence[str], total: int | None, seed: int) -> Dataset:
    """The queries of some types, in random order, an equal number of each type if ``total`` is given.

    Args:
        total: queries in all; a type that has fewer than its share gives all it has, and the others
            share the rest. None takes all queries of the types.

    Raises:
        InputError: no type, a type without queries, a total below 1.
    """
    types = list(dict.fromkeys(types))
    if not types or (total is not None and total < 1):
        raise InputError(
            "querytype.types needs a type at least, and querytype.total is 1 or more, or null for all"
        )
    names = np.array(queries["querytype"])
    rng = np.random.default_rng(seed)
    rows_of = {name: rng.permutation(np.flatnonzero(names == name)) for name in types}
    for name, rows in rows_of.items():
        if not len(rows):
            there = ", ".join(sorted(set(names.tolist()))) or "no query at all"
            raise InputError(
                f"there are no queries of type {name!r}; there are: {there}; choose one with querytype=, or let a "
                "language model write them, with generator="
            )
    left = len(names) if total is None else total
    chosen = []
    for n_left, name in zip(
        range(len(types), 0, -1), sorted(types, key=lambda t: len(rows_of[t])), strict=True
    ):
        # Smallest type first, so that what it lacks is shared among the larger ones.
        share = rows_of[name] if total is None else rows_of[name][: -(-left // n_left)]
        chosen.append(share)
        left -= len(share)
    return queries.select(rng.permutation(np.concatenate(chosen)))


def passages(texts: Sequence[str], excluded: np.ndarray, n: int | None, seed: int) -> np.ndarray:
    """Rows of up to ``n`` random passages to make queries from; a smaller ``n`` gives the first of them.

    Args:
        excluded: rows that no query may come from: held-out passages, duplicates. Blank ones are
            left out too.
        n: None takes all.

    Raises:
        InputError: none is left, or n is below 1.
    """
    if n is not None and n < 1:
        raise InputError(f"generator.passages={n} must be 1 or more, or null for all")
    blank = np.array([not text.strip() for text in texts], dtype=bool)
    usable = np.setdiff1d(np.flatnonzero(~blank), excluded)
    if not len(usable):
        raise InputError("every passage of the corpus is empty or held out: no query can be made")
    return np.random.default_rng(seed).permutation(usable)[:n]


def _most(
    corpus: Counted, synthetic: Counted | None, types: list[str], total: int | None, **_: Any
) -> dict[str, float]:
    there = (corpus["train queries"] if "human" in types else 0) + (synthetic["queries"] if synthetic else 0)
    return {"queries": there if total is None else np.minimum(total, there)}


@stage(load_queries, name="queries", version=2, forecast=_most)
def draw_queries(
    folder: Path,
    corpus: Folder[Corpus],
    untrained: Mapping[str, Folder[np.ndarray]],
    synthetic: Folder[Dataset] | None,
    /,
    *,
    types: list[str],
    total: int | None,
    seed: int,
) -> Counts:
    """The training queries, drawn by type.

    Args:
        untrained: passage rows that none comes from: held-out passages and duplicates.
        synthetic: cleaned.
    """
    from datasets import concatenate_datasets

    parts = [human.from_train_split(corpus.load())] if "human" in types else []
    if synthetic:
        _none_is_lost(json.loads((synthetic.path / "stage.json").read_text())["counts"]["by type"], types)
        parts.append(synthetic.load())
    found = concatenate_datasets(parts)
    excluded = np.concatenate([rows.load() for rows in untrained.values()])
    usable = found.select(np.flatnonzero(~np.isin(found["source"], excluded)))
    table = draw(usable, types, total, seed)
    write_table(table, folder / "queries.arrow")
    return {"queries": len(table), "usable": len(usable)}


@stage(TestSet.load, version=2, forecast=lambda synthetic, **_: {"queries": synthetic["queries"]})
def heldout_queries(
    folder: Path, heldout: Folder[np.ndarray], synthetic: Folder[Dataset], /, *, types: list[str]
) -> Counts:
    """Synthetic queries from the held-out passages, which test by query type."""
    found = synthetic.load()
    rows = np.isin(found["source"], heldout.load()) & np.isin(found["querytype"], types)
    if not rows.any():
        raise InputError(
            f"evaluation.heldout_types={types}: there is no such query of a held-out passage; let a "
            "language model write them, with generator=, or leave evaluation.heldout_types empty"
        )
    TestSet.of_sources(found.select(np.flatnonzero(rows))).save(folder)
    return {"queries": int(rows.sum())}


@stage(TestSet.load, forecast=lambda groups, **_: {"queries": groups["dev"]})
def dev_queries(
    folder: Path, queries: Folder[Dataset], groups: Folder[Groups], /, *, filtered: bool = True
) -> Counts:
    """The training queries that only choose the checkpoint.

    Args:
        filtered: else with those of the same passages that no group was made of: the hardest are among them.

    Raises:
        InputError: there are none.
    """
    found = groups.load()
    if not found.dev.any():
        raise InputError(
            "evaluation.split=synthetic_dev tests on the dev queries: groups.dev_fraction must be above 0"
        )
    asked = queries.load()
    of_passages = np.flatnonzero(np.isin(asked["source"], found.source[found.dev]))
    table = asked.select(np.unique(found.query[found.dev]) if filtered else of_passages)
    TestSet.of_sources(table).save(folder)
    return {"queries": len(table)}


def _none_is_lost(counted: Mapping[str, Mapping[str, Any]], types: Sequence[str]) -> None:
    """Say why a type has no query left, if all were dropped."""
    for name in types:
        of = counted.get(name, {"generated": 0, "dropped": {}})
        if of["generated"] and of["generated"] == sum(of["dropped"].values()):
            why = ", ".join(f"{n} {reason}" for reason, n in of["dropped"].items())
            raise InputError(
                f"all {of['generated']} queries of type {name!r} were dropped ({why}); look at them with "
                "python -m dense_retrieval.generate and the same overrides"
            )
