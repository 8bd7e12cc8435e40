"""How hard it is to find a query's passage: for BM25, for the untuned student, and by the words that both share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dense_retrieval.queries.clean import load_queries
from dense_retrieval.queries.narrow import narrow
from dense_retrieval.records import CandidateList, Corpus, Qrels, TestSet
from dense_retrieval.stage import Counted, Counts, Folder, stage

if TYPE_CHECKING:
    from datasets import Dataset

    from dense_retrieval.candidates.bm25 import BM25

EASY = "not among the hardest"
DEPTH = 1000  # ranks beyond are DEPTH + 1
SAMPLE = 1000  # queries that tell how hard a set of them is
_AT_ONCE = 2000  # queries whose lists are in memory


@dataclass(frozen=True)
class Difficulty:
    """Of Q queries.

    Attributes:
        bm25, student: ``(Q,)`` int64, the best rank of a relevant passage, from 1.
        overlap: ``(Q,)`` share of the query's words, stop words aside, that stand in a relevant passage.
        rows: ``(Q,)`` int64, which of the queries that were asked for; none is all of them.
    """

    bm25: np.ndarray
    student: np.ndarray
    overlap: np.ndarray
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @classmethod
    def load(cls, folder: Path) -> Difficulty:
        with np.load(folder / "difficulty.npz") as arrays:
            return cls(**arrays)

    def save(self, folder: Path) -> None:
        np.savez(folder / "difficulty.npz", **vars(self))

    @property
    def hardness(self) -> np.ndarray:
        """``(Q,)`` mean share of the queries that are no harder, by each of the three."""
        measures = (self.bm25, self.student, -self.overlap)
        return np.mean([np.searchsorted(np.sort(of), of, side="right") / len(of) for of in measures], axis=0)

    def __getitem__(self, rows: np.ndarray) -> Difficulty:
        return Difficulty(
            self.bm25[rows], self.student[rows], self.overlap[rows]
        )  # of those that were measured

    def profile(self) -> dict[str, float]:
        """As ``metrics.json`` has it."""
        return {
            "queries": len(self.bm25),
            "first by BM25": float((self.bm25 == 1).mean()),
            "first by the student": float((self.student == 1).mean()),
            "words in common": float(self.overlap.mean()),
        }


def best_rank(found: CandidateList, relevant: Sequence[np.ndarray]) -> np.ndarray:
    """``(Q,)`` rank, from 1, of the first relevant passage; one more than there are where none is found."""
    ranks = np.full(len(found.passages), found.passages.shape[1] + 1)
    for row, (passages, of) in enumerate(zip(found.passages, relevant, strict=True)):
        there = np.flatnonzero(np.isin(passages, of))
        if len(there):
            ranks[row] = there[0] + 1
    return ranks


def overlap(queries: Sequence[str], passages: Sequence[Sequence[str]]) -> np.ndarray:
    """``(Q,)`` greatest share of a query's different words that a passage of its own has; 1 for a query without words.

    >>> overlap(["the kale leaf", "stars"], [["kale is a leaf", "kale"], ["a star"]]).tolist()
    [1.0, 0.0]
    """
    import bm25s

    def words(texts: Sequence[str]) -> Iterator[set[str]]:
        return map(set, bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False))

    of_passages = words([text for of in passages for text in of])
    shares = []
    for query, texts in zip(words(queries), passages, strict=True):
        found = [len(query & next(of_passages)) / max(1, len(query)) for _ in texts]
        shares.append(max(found, default=0.0) if query else 1.0)
    return np.array(shares)


def _relevant(qrels: Qrels, n: int) -> list[np.ndarray]:
    good = (qrels.relevance > 0) & (qrels.passage >= 0)
    return [qrels.passage[good & (qrels.query == row)] for row in range(n)]


def _measured(tested: Counted, sample: int | None, **_: Any) -> dict[str, float]:
    return {"queries": tested["queries"] if sample is None else np.minimum(sample, tested["queries"])}


@stage(Difficulty.load, speed=("device",), forecast=_measured)
def difficulty(
    folder: Path,
    tested: Folder[TestSet] | Folder[Dataset],
    corpus: Folder[Corpus],
    index: Folder[BM25],
    query_embeddings: Folder[np.ndarray],
    passage_embeddings: Folder[np.ndarray],
    /,
    *,
    sample: int | None,
    device: str,
) -> Counts:
    """How hard some queries are.

    Args:
        tested: queries with judgements, or synthetic ones with their sources.
        sample: how many of them, drawn at random, are measured; None is all.
    """
    from dense_retrieval.candidates.dense import search

    loaded = tested.load()
    test = loaded if isinstance(loaded, TestSet) else TestSet.of_sources(loaded)
    texts, relevant = corpus.load().passages["text"], _relevant(test.qrels, len(test.queries))
    rows = np.arange(len(test.queries))
    if sample is not None and sample < len(rows):
        rows = np.sort(np.random.default_rng(0).choice(rows, sample, replace=False))
    words, of_queries, of_passages = index.load(), query_embeddings.load(), passage_embeddings.load()
    k, parts = min(DEPTH, len(texts)), [np.zeros((3, 0))]
    for some in np.array_split(rows, range(_AT_ONCE, len(rows), _AT_ONCE)):
        asked, wanted = test.queries.select(some)["text"][:], [relevant[row] for row in some]
        by_student = search(of_queries[some], of_passages, k, device=device)
        ranks = best_rank(words.search(asked, k), wanted), best_rank(by_student, wanted)
        shared = overlap(asked, [[texts[int(row)] for row in of] for of in wanted])
        parts.append(np.stack([*ranks, shared]))
    bm25, student, shares = np.concatenate(parts, 1)
    Difficulty(bm25.astype(np.int64), student.astype(np.int64), shares, rows).save(folder)
    return {"queries": len(rows)}


def hardest(querytypes: Sequence[str], measured: Difficulty, share: float) -> np.ndarray:
    """Rows, in order, of each type's hardest queries; of equally hard ones the first."""
    types, kept = np.array(querytypes), []
    for name in np.unique(types):
        rows = np.flatnonzero(types == name)
        order = np.argsort(-measured[rows].hardness, kind="stable")
        kept.append(rows[order[: max(1, round(share * len(rows)))]])
    return np.sort(np.concatenate(kept)) if kept else np.zeros(0, dtype=np.int64)


def _share(queries: Counted, share: float, **_: Any) -> dict[str, float]:
    return {"queries": queries["queries"] * share}


@stage(load_queries, version=2, forecast=_share)
def hard_queries(
    folder: Path,
    queries: Folder[Dataset],
    difficulty: Folder[Difficulty],
    untrained: Mapping[str, Folder[np.ndarray]],
    /,
    *,
    types: list[str],
    share: float,
) -> Counts:
    """The hardest of the cleaned queries, type by type.

    Args:
        untrained: passage rows that none comes from: held-out passages and duplicates.
    """

    def why(rows: np.ndarray) -> list[str]:
        of = queries.load().select(rows)["querytype"][:]
        kept = set(hardest(of, difficulty.load()[rows], share).tolist())
        return ["" if n in kept else EASY for n in range(len(rows))]

    return narrow(folder, queries, untrained, types, "hard", why)
