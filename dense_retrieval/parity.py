"""Whether what leaves a run ranks as the run does: its test queries, asked again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dense_retrieval.candidates.dense import search
from dense_retrieval.candidates.filters import drop_self_matches
from dense_retrieval.corpus.read import test_split
from dense_retrieval.records import CandidateList, InputError, Qrels, TestSet
from dense_retrieval.search import Opened
from dense_retrieval.stage import Built, Folder
from dense_retrieval.views import embedded, tokenized

if TYPE_CHECKING:
    from datasets import Dataset

    from dense_retrieval.student.tokens import Tokens

_QUERIES = 500  # asked at most
_POOL = 10_000  # passages that are embedded again, if there are no more
DEPTH = 20  # passages ranked a query


@dataclass(frozen=True)
class Asked:
    """Q of the test queries, and the passages.

    Attributes:
        rows: ``(Q,)`` of the test queries.
        qrels: of the queries 0..Q-1.
        queries, passages: ``(Q, D)`` and, memory-mapped, ``(N, D)``: the embeddings.
        tokens: of "queries" and "passages".
        ids: of the queries, where none is to find the passage of its id.
    """

    rows: np.ndarray
    qrels: Qrels
    queries: np.ndarray
    passages: np.ndarray
    tokens: dict[str, Tokens]
    table: Dataset  # PASSAGES
    ids: list[str] | None

    def ranking(
        self, queries: np.ndarray, passages: np.ndarray, rows: np.ndarray | None = None
    ) -> CandidateList:
        """The best of some passages, those of the corpus's ``rows``, by exact search."""
        found = search(queries, passages, DEPTH + 1)
        if rows is not None:
            found = CandidateList(np.where(found.passages < 0, -1, rows[found.passages]), found.scores)
        return self.cut(found)

    def cut(self, found: CandidateList) -> CandidateList:
        """``(Q, DEPTH)``, without the queries themselves."""
        if self.ids:
            found = drop_self_matches(found, self.ids, self.table["id"])
        return CandidateList(found.passages[:, :DEPTH], found.scores[:, :DEPTH])

    @property
    def pool(self) -> np.ndarray:
        """Rows of the passages that matter: all, or those that are judged or found."""
        if len(self.passages) <= _POOL:
            return np.arange(len(self.passages))
        found = self.ranking(self.queries, self.passages).passages
        rows = np.union1d(found, self.qrels.passage)
        return rows[rows >= 0]


def ask(of: Opened, engine: str | None = None) -> Asked:
    """The test queries of a run, at most 500 of those that are judged, embedded as the run did.

    Args:
        engine: which computes the embeddings; None is the run's.

    Raises:
        InputError: the corpus has no such queries, or they were synthetic and are gone.
    """
    c, store = of.config, of.store
    tested = _test_queries(of)
    of_queries = embedded(c, tested, "test queries", of.model, engine)
    of_passages = embedded(c, of.corpus, "passages", of.model, engine)
    tokens = {
        "queries": tokenized(c, tested, "test queries"),
        "passages": tokenized(c, of.corpus, "passages"),
    }
    store.build(of.corpus, of_queries, of_passages, *tokens.values())
    loaded = tested.load()
    judged = np.unique(loaded.qrels.query)
    rows = judged[np.unique(np.linspace(0, len(judged) - 1, min(_QUERIES, len(judged))).astype(np.int64))]
    kept = np.isin(loaded.qrels.query, rows)
    qrels = Qrels(
        np.searchsorted(rows, loaded.qrels.query[kept]),
        loaded.qrels.passage[kept],
        loaded.qrels.relevance[kept],
    )
    return Asked(
        rows,
        qrels,
        store.load(of_queries)[rows].astype(np.float32),
        store.load(of_passages),
        {name: store.load(step) for name, step in tokens.items()},
        store.load(of.corpus).passages,
        loaded.queries.select(rows)["id"][:] if c.data.drop_self_matches else None,
    )


def own_words(words: list[str], *names: str) -> tuple[dict[str, str], list[str]]:
    """The values of a command's own names, and the other words, which are overrides.

    >>> own_words(["format=onnx", "data=fiqa"], "format", "push")
    ({'format': 'onnx'}, ['data=fiqa'])
    """
    split = [(word.partition("="), word) for word in words]
    own = {name: value for (name, _, value), _ in split if name in names}
    return own, [word for (name, _, _), word in split if name not in names]


def _test_queries(of: Opened) -> Folder[TestSet]:
    split = of.config.evaluation.split
    if not split.startswith("synthetic"):
        step = test_split(of.corpus, split=split)
        of.store.build(step)
        return of.store.open(step)
    metrics = of.folder / "metrics.json"
    artifacts = json.loads(metrics.read_text())["artifacts"] if metrics.is_file() else {}
    folder = of.store.root / str(artifacts.get("test queries", "")).rpartition("/")[2]
    if not (folder / "queries.arrow").is_file():
        raise InputError(
            f"{of.folder} was tested on synthetic queries, which {of.store.root} has no more: run it again, or give a "
            "split of the corpus, evaluation.split=NAME"
        )
    return Built(folder, folder.name, TestSet.load)
