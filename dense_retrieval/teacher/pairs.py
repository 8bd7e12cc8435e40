"""What a teacher is trained on: queries, each with its right passage."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import concatenate_datasets

from dense_retrieval.corpus import holdout
from dense_retrieval.corpus.beir import read_folder
from dense_retrieval.corpus.dedup import duplicates
from dense_retrieval.corpus.embedded import teacher_pairs
from dense_retrieval.queries import clean, files, human
from dense_retrieval.records import Corpus, InputError


@dataclass(frozen=True)
class Pairs:
    """Q pairs over N passages."""

    queries: Sequence[str]
    positive: np.ndarray  # (Q,) passage rows
    relevant: Sequence[np.ndarray]  # (Q,) rows of all its right passages, which are no negatives
    passages: Sequence[str]
    topic: np.ndarray  # (N,) topic number of each passage; all 0 where none are known
    untitled: Sequence[str]  # (N,) the passages without their titles
    kind: np.ndarray  # (Q,) "human", "title" or a type of synthetic query


def read(corpus: str | None, kinds: Sequence[str], file: str | None) -> Pairs:
    """The pairs of a corpus.

    Args:
        corpus: folder or zip in BEIR's layout; None is the Wikipedia articles outside wikiscience, with
            people's short descriptions of them.
        kinds: "human" (the training queries), "title" (a passage's title, for its text), or types of
            synthetic queries in ``file``.
        file: queries as ``python -m dense_retrieval.generate`` writes them.

    Raises:
        InputError: no such corpus or file, a kind that it does not have.
    """
    if corpus is None:
        found, topic = teacher_pairs()
        heldout = found.heldout
    elif not Path(corpus).exists():
        raise InputError(f"corpus={corpus}: there is no such folder or zip")
    else:
        found = read_folder(corpus)
        heldout = holdout.draw(len(found.passages), duplicates(found.passages, titled=True))
        topic = np.zeros(len(found.passages), dtype=np.int64)
    passages, titles = list(found.passages["text"]), list(found.passages["title"])
    tables = [human.from_train_split(found)] if "human" in kinds else []
    synthetic = [kind for kind in kinds if kind not in ("human", "title")]
    if synthetic:
        if file is None:
            raise InputError(f"pairs={list(kinds)}: {synthetic[0]} needs file=FILE with synthetic queries")
        written, _ = clean.clean_table(files.read(file, found.passages), found.passages)
        if missing := set(synthetic) - set(written["querytype"]):
            raise InputError(
                f"{file} has no queries of type {min(missing)!r}, which pairs={list(kinds)} asks for"
            )
        tables.append(written.select(np.flatnonzero(np.isin(written["querytype"], synthetic))))
    queries, kind, positive, relevant = [], [], np.array([], dtype=np.int64), []
    if tables:
        table = concatenate_datasets(tables)
        usable = np.flatnonzero(~np.isin(table["source"], heldout))
        table = table.select(usable)
        queries, kind = list(table["text"]), list(table["querytype"])
        positive = np.array(table["source"], dtype=np.int64)
        judged = _judged(found) if "human" in kinds else {}
        relevant = [
            judged[id] if of == "human" else np.array([row])
            for id, of, row in zip(table["id"], kind, positive, strict=True)
        ]
    named = [row for row, title in enumerate(titles) if title.strip()] if "title" in kinds else []
    titled = np.setdiff1d(named, heldout).astype(np.int64)
    if not len(queries) + len(titled):
        raise InputError(f"pairs={list(kinds)}: the corpus has no such pairs")
    return Pairs(
        queries + [titles[row] for row in titled],
        np.concatenate([positive, titled]),
        relevant + [np.array([row]) for row in titled],
        passages,
        topic,
        [text.removeprefix(title).strip() for text, title in zip(passages, titles, strict=True)],
        np.array(kind + ["title"] * len(titled)),
    )


def _judged(corpus: Corpus) -> dict[str, np.ndarray]:
    """Id of a training query -> rows of its relevant passages."""
    qrels, ids = corpus.qrels["train"], corpus.queries["train"]["id"]
    right = np.flatnonzero((qrels.relevance > 0) & (qrels.passage >= 0))
    right = right[np.argsort(qrels.query[right], kind="stable")]
    rows, first = np.unique(qrels.query[right], return_index=True)
    passages = np.split(qrels.passage[right], first[1:])
    return {ids[int(row)]: of for row, of in zip(rows, passages, strict=True)}
