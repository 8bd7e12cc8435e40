"""What a language model wrote, turned into a query, or dropped."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dense_retrieval.records import QUERIES, Corpus, read_table, table, write_table
from dense_retrieval.stage import Counts, Folder, stage

if TYPE_CHECKING:
    from datasets import Dataset

# "Here is a question:", "Query:", "Key phrases:", "Question 1:", "1. ", "a) ", "- "
_CHATTER = re.compile(
    r"^\s*(?:(?:sure|okay)\W+)?(?:here(?:'s| is| are)\b[^:]*:|(?:\w+ ){0,2}(?:query|question|claim|"
    r"key ?(?:word|phrase|term)s?|search terms?|title|description|answer|output)(?: \d+)?\s*:|"
    r"(?:[-–*•]|#+)\s+|\d+[.)]\s+|[a-z]\)\s+)\s*",
    re.IGNORECASE,
)
_SEARCH = re.compile(r"^search(?: results)? for\b:?\s*", re.IGNORECASE)  # a title may begin like this
# "The passage clearly states that ..."
_REPORT = re.compile(r"^(?:(?:the|this) )?(?:passage|text|article)\b[^,.]{0,60}?\bthat\s+", re.IGNORECASE)
_PASSAGE = re.compile(r"\b(?:the|this|given|provided) (?:passage|text|article)\b", re.IGNORECASE)
# People ask about language models, and about what they cannot do: only the phrases of a refusal count.
_REFUSAL = re.compile(
    r"\b(?:I'm sorry|I am sorry|as an AI|(?:as|I am|I'm) an? (?:large )?language model|"
    r"I (?:cannot|can't) (?:help|assist|provide|generate|create|write|answer|fulfil)|"
    r"sorry,? but I\b|I(?:'m| am) unable to|I (?:don't|do not) have enough (?:information|context))",
    re.IGNORECASE,
)
_ASKS = re.compile(
    r"(?:who|whom|whose|what|which|when|where|why|how|is|are|was|were|do|does|did|can|could|will|would|"
    r"should|has|have|had|in what|in which|at what|to what)\b",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"```|</?\w+>|^\s*[{\[]|[}\]]\s*$|https?://")
# Controls, and what turns the direction of writing; the joiners (U+200C, U+200D) are part of words and emoji.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f\ufeff]")
_QUOTES = "\"'`“”‘’*"

_IT_IS = re.compile(r"^it(?:'s| is) (?:(?:an?|the) )?", re.IGNORECASE)  # as the description's prompt asks

MAX_WORDS = 19  # the paper: under 20
MIN_WORDS = {"claim": 4, "question": 3, "description": 3}  # others: 1
MAX_PHRASES = 5  # of a keyword query
_WITHOUT_SPACES = ("CJK", "THAI", "LAO", "KHMER", "MYANMAR")  # about two letters a word
_COPIED_WORDS = 12  # a run of this many words of the passage is a copy

DROPPED = QUERIES | {"reason": "string"}


def clean(text: str, querytype: str, passage: str, title: str = "") -> tuple[str | None, str]:
    """One line without quotes, bullets, chatter and characters that are not seen.

    Args:
        title: of the passage; "" if it has none.

    Returns:
        The query and "", or None and why it was dropped: ``empty``, ``refusal``, ``not
        self-contained`` (it speaks of "the passage"), ``too long``, ``too short``, ``wrong form`` (code
        or markup, a claim that asks, a question that does not), ``another script`` than the passage's (a
        wrong language in the same script is not noticed here, but by the retriever's filter),
        ``copied``, ``names its subject`` (a description that holds the title).

    >>> clean('Here is a question: "What is kale?"', "question", "Kale is a cabbage.")
    ('What is kale?', '')
    """
    lines = [_UNSEEN.sub("", line).replace("\t", " ").strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    query = _unquoted(lines[0]) if lines else ""
    if len(lines) > 1 and query.endswith(":"):  # chatter on a line of its own
        query = _unquoted(lines[1])
    before = None
    while query != before:  # "1. Query: ..."
        before, query = query, _unquoted(_CHATTER.sub("", query))
    if querytype != "title":
        query = _unquoted(_SEARCH.sub("", query))
    shorter = _REPORT.sub("", query)
    if shorter != query:
        query = shorter[:1].upper() + shorter[1:]
    if querytype == "keyword":
        query = _keywords(query)
    if querytype == "description":
        query = _IT_IS.sub("", query).rstrip(".")
        query = query[:1].upper() + query[1:]
    words, script = query.split(), _script(query)
    n_words = len(query) // 2 if script in _WITHOUT_SPACES else len(words)
    for reason, holds in (
        ("empty", not words),
        ("refusal", _REFUSAL.search(query)),
        ("not self-contained", _PASSAGE.search(query)),
        ("too long", querytype != "keyword" and n_words > MAX_WORDS),
        ("wrong form", _wrong_form(query, querytype)),
        ("another script", script not in (None, _script(passage))),
        ("too short", n_words < MIN_WORDS.get(querytype, 1)),
        ("copied", _copies(words, passage)),
        ("names its subject", querytype == "description" and _names(query, title)),
    ):
        if holds:
            return None, reason
    return query, ""


def clean_table(
    raw: Dataset, passages: Dataset, bases: Mapping[str, str] | None = None
) -> tuple[Dataset, Dataset]:
    """The queries that are fit to use, cleaned, and those that are not, as they were, with ``reason``.

    One whose prompt did not fit the language model is dropped as ``longer than the model's context``.

    Args:
        bases: query type -> the type by whose rules it is cleaned, where that is another one.
    """
    rules = bases or {}
    kept: dict[str, list] = {name: [] for name in QUERIES}
    dropped: dict[str, list] = {name: [] for name in DROPPED}
    sources = np.unique(raw["source"])
    chosen = passages.select(sources)
    about = {row: (p["text"], p["title"]) for row, p in zip(sources.tolist(), chosen, strict=True)}
    for query in raw:
        of = rules.get(query["querytype"], query["querytype"])
        text, reason = clean(query["text"], of, *about[query["source"]])
        if query["finish"] == "context":
            text, reason = None, "longer than the model's context"
        values = query | ({"reason": reason} if text is None else {"text": text})
        columns = dropped if text is None else kept
        for name, column in columns.items():
            column.append(values[name])
    return table(kept, QUERIES), table(dropped, DROPPED)


def counts(raw: Dataset, dropped: Dataset, heldout: np.ndarray) -> dict[str, dict[str, Any]]:
    """Query type -> ``generated`` and ``cleaned``, how many there are, and ``dropped``, by reason.

    Args:
        heldout: ``(H,)`` passage rows whose queries do not count: they are not for training.
    """
    raw, dropped = (t.select(np.flatnonzero(~np.isin(t["source"], heldout))) for t in (raw, dropped))
    generated, lost = Counter(raw["querytype"]), Counter(dropped["querytype"])
    reasons = Counter(zip(dropped["querytype"], dropped["reason"], strict=True))
    return {
        name: {
            "generated": n,
            "cleaned": n - lost[name],
            "dropped": {reason: times for (of, reason), times in sorted(reasons.items()) if of == name},
        }
        for name, n in sorted(generated.items())
    }


def _wrong_form(query: str, querytype: str) -> bool:
    asks = query.endswith(("?", "？"))
    return (
        bool(_MARKUP.search(query))
        or (querytype in ("claim", "description") and asks)
        or (querytype == "question" and not asks and not _ASKS.match(query))
    )


def _names(query: str, title: str) -> bool:
    """The title occurs, what stands in brackets behind it aside: "fields" names "Field (physics)"."""
    name = re.sub(r"\s*\(.*\)$", "", title).strip()
    return bool(name) and bool(re.search(rf"\b{re.escape(name)}", query, re.IGNORECASE))


def _script(text: str) -> str | None:
    """The script that most letters are of: LATIN, CJK, CYRILLIC, …; None if there is no letter."""
    names = (unicodedata.name(c, "?").split()[0] for c in text if c.isalpha())
    scripts = Counter("CJK" if name.startswith(("HIRAGANA", "KATAKANA")) else name for name in names)
    return scripts.most_common(1)[0][0] if scripts else None


def _unquoted(text: str) -> str:
    return text.strip().strip(_QUOTES).strip()


def _keywords(query: str) -> str:
    """The first five different phrases, comma separated."""
    phrases = dict.fromkeys(phrase.strip().rstrip(".") for phrase in query.split(","))
    return ", ".join([phrase for phrase in phrases if phrase][:MAX_PHRASES])


def _copies(words: list[str], passage: str) -> bool:
    """A dozen words in a row stand in the passage like this."""
    folded = " " + " ".join(re.findall(r"\w+", passage.lower())) + " "
    plain = re.findall(r"\w+", " ".join(words).lower())
    runs = (plain[i : i + _COPIED_WORDS] for i in range(len(plain) - _COPIED_WORDS + 1))
    return any(f" {' '.join(run)} " in folded for run in runs)


def load_queries(folder: Path) -> Dataset:
    """The queries of a stage."""
    return read_table(folder / "queries.arrow")


@stage(load_queries, name="cleaned_queries", version=3, forecast=lambda raw, **_: {"queries": raw["queries"]})
def clean_queries(
    folder: Path,
    corpus: Folder[Corpus],
    heldout: Folder[np.ndarray],
    raw: Folder[Dataset],
    /,
    *,
    bases: dict[str, str] | None = None,
) -> Counts:
    """The synthetic queries that are fit to use, and in ``dropped.arrow`` the others, with the reason.

    Args:
        bases: see :func:`clean_table`.
    """
    written = raw.load()
    kept, dropped = clean_table(written, corpus.load().passages, bases)
    write_table(kept, folder / "queries.arrow")
    write_table(dropped, folder / "dropped.arrow")
    return {"queries": len(written), "by type": counts(written, dropped, heldout.load())}
