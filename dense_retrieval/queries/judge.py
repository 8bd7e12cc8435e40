"""A language model that says whether a passage answers the query that was written for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dense_retrieval.executor import HERE, Executor
from dense_retrieval.memo import Memo
from dense_retrieval.queries.clean import load_queries
from dense_retrieval.queries.generate import Backend, Completion, Request, generate
from dense_retrieval.queries.narrow import narrow
from dense_retrieval.queries.split import dealt_out
from dense_retrieval.queries.write import HOW_FAST, answers_path
from dense_retrieval.records import Corpus
from dense_retrieval.stage import Counted, Counts, Folder, stage

if TYPE_CHECKING:
    from datasets import Dataset

NOT_ANSWERED = "not answered by its passage"
UNCLEAR = "judged neither yes nor no"
NOT_READ = "longer than the judge's context"
MAX_TOKENS = 4  # of an answer
# Small models say yes to whatever they are not told to say no to.
_ASK = (
    "Is this passage what somebody is looking for who typed this query? Answer no if it is about something else, or "
    "does not say what the query asks or claims. Answer yes or no."
)
_YES_OR_NO = re.compile(r"\W*(yes|no)\W*", re.IGNORECASE)


def question(passage: str, query: str) -> Request:
    """What the judge is asked; all questions about a passage begin alike."""
    head = f"Passage: {passage}\n\n"
    return Request(f"{head}Query: {query}\n\n{_ASK}", len(head), 0)


def reason(answer: Completion) -> str:
    """Why a query with this answer is dropped; "" if it is "yes", in any case and punctuation, and nothing else.

    >>> [reason(Completion(text, "stop", 9, 1)) for text in ("Yes.", "no", "Yes, it does")]
    ['', 'not answered by its passage', 'judged neither yes nor no']
    """
    if answer.finish == "context":
        return NOT_READ
    said = _YES_OR_NO.fullmatch(answer.text)
    return UNCLEAR if said is None else "" if said[1].lower() == "yes" else NOT_ANSWERED


def judge(backend: Backend, memo: Memo, queries: Sequence[str], passages: Sequence[str]) -> list[str]:
    """Of each query the :func:`reason` for which it is dropped; what the memo has is not asked again."""
    asked = [question(passage, query) for query, passage in zip(queries, passages, strict=True)]
    return [reason(answer) for answer in generate(backend, memo, asked, of="judgements")]


def _asked(queries: Counted, passage_characters: int, **_: Any) -> dict[str, float]:
    """At four characters a token."""
    n = queries["queries"]
    return {"queries": n, "tokens": n * (passage_characters / 4 + MAX_TOKENS)}


@stage(load_queries, speed=HOW_FAST, forecast=_asked)
def judged_queries(
    folder: Path,
    corpus: Folder[Corpus],
    queries: Folder[Dataset],
    untrained: Mapping[str, Folder[np.ndarray]],
    model: Folder[Path] | None,
    /,
    *,
    types: list[str],
    passage_characters: int,
    backend: dict[str, Any],
    memos: Path,
    executor: Executor = HERE,
) -> Counts:
    """The queries of some types that, as a language model says, their passages answer.

    Args:
        queries: cleaned.
        untrained: passage rows that none comes from: held-out passages and duplicates.
        model, passage_characters, backend, memos: as those of :func:`dense_retrieval.queries.write.write`.
    """
    texts, table = corpus.load().passages["text"], queries.load()

    def why(rows: np.ndarray) -> list[str]:
        some = table.select(rows)
        shown = [texts[row][:passage_characters].strip() for row in some["source"][:]]
        with (
            Memo(answers_path(memos, backend, model)) as memo,
            dealt_out(backend, model, executor) as judging,
        ):
            return judge(judging, memo, some["text"][:], shown)

    return narrow(folder, queries, untrained, types, "judged", why)
