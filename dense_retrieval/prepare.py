"""From a corpus to its training queries: which stage reads what. Nothing is computed here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dense_retrieval.config import Config
from dense_retrieval.corpus.dedup import find_duplicates
from dense_retrieval.corpus.holdout import hold_out
from dense_retrieval.evaluation.learning_curve import Point
from dense_retrieval.hardware import hardware
from dense_retrieval.nodes import outside, plain
from dense_retrieval.queries.asked import bought_queries
from dense_retrieval.queries.draw import draw_queries, heldout_queries
from dense_retrieval.queries.files import from_file
from dense_retrieval.queries.prompts import prompts_of, type_name
from dense_retrieval.queries.write import write
from dense_retrieval.records import Asked, CandidateList, Corpus, Groups, TestSet
from dense_retrieval.stage import Step
from dense_retrieval.synthetic import WHAT_IS_ASKED, cleaned, filtered, is_language_model, language_model
from dense_retrieval.views import corpus_of

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Searched:
    """One corpus, and the configuration by which it is searched."""

    c: Config
    corpus: Step[Corpus]


@dataclass(frozen=True)
class Part(Searched):
    """One corpus, its training queries, and the synthetic queries of its held-out passages."""

    heldout: Step[np.ndarray]
    duplicates: Step[np.ndarray]
    raw: Step[Dataset] | None  # None where all training queries are human
    filtered: list[Step[Dataset]]  # of these: cleaned, and what each further filter leaves
    queries: Step[Dataset]
    by_type: Step[TestSet] | None
    spent: Spent | None = None  # where the queries are had for a budget

    @property
    def untrained(self) -> dict[str, Step[np.ndarray]]:
        """Passages that are neither a query's source nor a candidate."""
        return {"heldout": self.heldout, "duplicates": self.duplicates}


@dataclass(frozen=True)
class Labels:
    """The training queries' candidates, their scores, and the groups to train on."""

    candidates: Step[CandidateList]
    scores: Step[CandidateList]
    groups: Step[Groups]


@dataclass(frozen=True)
class Spent:
    """What was found out while a budget of queries was spent.

    Attributes:
        labels: of the queries that were had, their dev side that of the first part.
        dev: the queries of the dev side's passages, also those that no group is made of.
        curve: the untuned student on them, and that of each part.
    """

    labels: Labels
    dev: Step[TestSet]
    curve: list[Step[Point]]


def prepare(c: Config, asked: Step[Asked] | None = None) -> Part:
    """From a corpus to its training queries.

    Args:
        asked: the passages that queries are had of, where a budget is spent.
    """
    corpus = corpus_of(c)
    duplicates = find_duplicates(corpus, titled=c.data.text == "title_and_text")
    heldout = hold_out(corpus, duplicates, n=c.data.get("heldout", 100))
    untrained = {"heldout": heldout, "duplicates": duplicates}
    types = [type_name(t) for t in c.querytype.types]
    raw = written(c, corpus, heldout, duplicates, "train", asked) if types != ["human"] else None
    left = filtered(c, corpus, untrained, raw) if raw else []
    queries = draw_queries(
        corpus, untrained, left[-1] if left else None, types=types, total=c.querytype.total, seed=c.seed
    )
    by_type = None
    if tested := [type_name(t) for t in heldout_types(c)]:
        of_heldout = written(c, corpus, heldout, duplicates, "heldout")
        fit = cleaned(corpus, heldout, of_heldout, heldout_types(c))
        by_type = heldout_queries(heldout, fit, types=tested)
    return Part(c, corpus, heldout, duplicates, raw, left, queries, by_type)


def heldout_types(c: Config) -> list[str]:
    """Types of the queries that are written for the held-out passages."""
    given = list(c.evaluation.heldout_types)
    return given or (list(c.querytype.types) if c.evaluation.split == "synthetic" else [])


def written(
    c: Config,
    corpus: Step[Corpus],
    heldout: Step[np.ndarray],
    duplicates: Step[np.ndarray],
    of: str,
    asked: Step[Asked] | None = None,
) -> Step[Dataset]:
    """Synthetic queries, not cleaned: of passages to "train" on, or of the "heldout" ones.

    Args:
        asked: see :func:`prepare`.
    """
    if not is_language_model(c.generator):
        there = from_file(corpus, outside("generator.path", c.generator.path))
        return bought_queries(there, asked, types=synthetic_types(c)) if asked else there
    backend, weights = language_model(c.generator)
    types = c.querytype.types if of == "train" else heldout_types(c)
    return write(
        corpus,
        heldout,
        duplicates,
        weights,
        asked,
        of=of,
        prompts=[prompt.asked for prompt in prompts_of(types)],
        backend=backend,
        memos=Path(c.cache_dir),
        executor=hardware(c).executor,
        **plain(c.generator, only=WHAT_IS_ASKED) | ({"passages": None} if asked else {}),
    )


def synthetic_types(c: Config) -> list[str]:
    """Names of the types of training queries that nobody has to write himself."""
    return [type_name(t) for t in c.querytype.types if t != "human"]
