"""Which passages queries are made from, and which of the queries are trained on."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from dense_retrieval.records import InputError


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
                f"there are no queries of type {name!r}; there are: {there}; choose one with querytype="
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
