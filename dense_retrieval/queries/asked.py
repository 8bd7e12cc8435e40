"""Which passages a budget of queries is spent on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dense_retrieval.queries.draw import passages as draw_passages
from dense_retrieval.queries.files import load_raw
from dense_retrieval.records import Asked, Corpus, InputError, write_table
from dense_retrieval.stage import Counted, Counts, Folder, stage

if TYPE_CHECKING:
    from datasets import Dataset


def choose(
    pool: np.ndarray,
    price: np.ndarray,
    queries: int,
    before: np.ndarray | None = None,
    disagreement: np.ndarray | None = None,
) -> np.ndarray:
    """Rows ``(A,)`` of the passages to have queries of, in the order of the pool.

    Those from before, and as many others, in order, as are paid for: those of greatest disagreement first, those of
    which none is known last, in the order of the pool.

    Args:
        pool: ``(M,)`` rows in random order.
        price: ``(N,)`` queries that each passage of the corpus has.
        queries: that all passages together may have at most.
        before: rows chosen before.
        disagreement: ``(N,)``, NaN where it is not known; None leaves the pool in its order.

    >>> choose(np.array([3, 1, 0, 2]), np.array([1, 1, 1, 1]), 3, np.array([3]), np.array([.1, np.nan, .5, 0]))
    array([3, 0, 2])
    """
    before = pool[:0] if before is None else before
    waiting = pool[~np.isin(pool, before)]
    if disagreement is not None:
        known = np.nan_to_num(disagreement[waiting], nan=-np.inf)
        waiting = waiting[np.argsort(-known, kind="stable")]
    paid = np.cumsum(price[waiting]) <= queries - price[before].sum()
    return pool[np.isin(pool, np.concatenate([before, waiting[paid]]))]


def _most(
    corpus: Counted,
    there: Counted | None,
    before: Counted | None,
    types: Sequence[str],
    queries: int,
    **_: Any,
) -> dict[str, float]:
    most = np.fmin(queries, there["queries"] if there else corpus["passages"] * len(types))
    new = most - (before["queries"] if before else 0)
    return {"queries": most, "new": new, "passages": most // len(types)}


@stage(lambda folder: Asked.load(folder / "asked.npz"), name="asked_passages", forecast=_most)
def asked_passages(
    folder: Path,
    corpus: Folder[Corpus],
    untrained: Mapping[str, Folder[np.ndarray]],
    there: Folder[Dataset] | None,
    before: Folder[Asked] | None,
    disagreement: Folder[np.ndarray] | None,
    /,
    *,
    types: list[str],
    queries: int,
    seed: int,
) -> Counts:
    """The passages that queries are had of, with those from before; the first ones are drawn at random.

    Args:
        untrained: passages that no query comes from.
        there: queries of a file; None where each passage can have one of each type written.
        before, disagreement: see :func:`choose`.
        queries: see :func:`choose`.
        seed: of the pool's order, as of ``generator.passages``.

    Raises:
        InputError: fewer than two passages can be paid for.
    """
    texts = corpus.load().passages["text"]
    excluded = np.concatenate([rows.load() for rows in untrained.values()])
    pool = draw_passages(texts, excluded, None, seed)
    price = np.full(len(texts), len(types))
    if there:
        written = there.load()
        wanted = np.isin(written["querytype"], types)
        price = np.bincount(np.array(written["source"])[wanted], minlength=len(texts))
        pool = pool[price[pool] > 0]
    known = disagreement.load() if disagreement else None
    rows = choose(pool, price, queries, before.load().rows if before else None, known)
    if len(rows) < 2:
        raise InputError(
            f"generator.budget: {queries} queries of types {', '.join(types)}, its first part, are not all that two "
            "passages have; give a larger generator.budget or fewer generator.parts"
        )
    found = Asked(rows, price[rows], np.array(len(pool) - len(rows)))
    found.save(folder / "asked.npz")
    n, earlier = int(found.queries.sum()), int(before.load().queries.sum()) if before else 0
    return {"queries": n, "new": n - earlier, "passages": len(rows)}


@stage(load_raw, name="bought_queries", forecast=lambda asked, **_: {"queries": asked["queries"]})
def bought_queries(
    folder: Path, there: Folder[Dataset], asked: Folder[Asked], /, *, types: list[str]
) -> Counts:
    """A file's queries of the passages that are asked."""
    written = there.load()
    bought = np.isin(written["source"], asked.load().rows) & np.isin(written["querytype"], types)
    write_table(written.select(np.flatnonzero(bought)), folder / "raw.arrow")
    return {"queries": int(bought.sum())}
