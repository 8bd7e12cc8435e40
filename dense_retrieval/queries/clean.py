"""What a language model wrote, turned into a query, or dropped."""

import re

# "Here is a question:", "Query:", "Search for ...", "1. ", "- "
_CHATTER = re.compile(
    r"^\s*(?:(?:sure|okay)\W+)?(?:here(?:'s| is| are)\b[^:]*:|(?:search )?(?:query|question|claim|keywords?|title|"
    r"description|answer)\s*:|search(?: results)? for\b:?|[-*•]\s+|\d+[.)]\s+)\s*",
    re.IGNORECASE,
)
# "The passage clearly states that ..."
_REPORT = re.compile(r"^(?:the|this) (?:passage|text|article)\b[^,.]{0,60}?\bthat\s+", re.IGNORECASE)
_PASSAGE = re.compile(r"\b(?:the|this|given|provided) (?:passage|text|article)\b", re.IGNORECASE)
# People ask about language models, and about what they cannot do: only the phrases of a refusal count.
_REFUSAL = re.compile(
    r"\b(?:I'm sorry|I am sorry|as an AI|(?:as|I am|I'm) an? (?:large )?language model|"
    r"I (?:cannot|can't) (?:help|assist|provide|generate|create|write|answer|fulfil))",
    re.IGNORECASE,
)
_QUOTES = "\"'`“”‘’*"

MAX_WORDS = 19  # the paper: under 20
MAX_PHRASES = 5  # of a keyword query
_COPIED_WORDS = 12  # a run of this many words of the passage is a copy


def clean(text: str, querytype: str, passage: str) -> tuple[str | None, str]:
    """One line without quotes, bullets and chatter.

    Returns:
        The query and "", or None and why it was dropped: ``empty``, ``refusal``, ``not
        self-contained`` (it speaks of "the passage"), ``too long``, ``copied``.

    >>> clean('Here is a question: "What is kale?"', "question", "Kale is a cabbage.")
    ('What is kale?', '')
    """
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    query = _unquoted(lines[0]) if lines else ""
    if len(lines) > 1 and query.endswith(":"):  # chatter on a line of its own
        query = _unquoted(lines[1])
    query = _unquoted(_CHATTER.sub("", query))
    shorter = _REPORT.sub("", query)
    if shorter != query:
        query = shorter[:1].upper() + shorter[1:]
    if querytype == "keyword":
        query = _keywords(query)
    words = query.split()
    for reason, holds in (
        ("empty", not words),
        ("refusal", _REFUSAL.search(query)),
        ("not self-contained", _PASSAGE.search(query)),
        ("too long", querytype != "keyword" and len(words) > MAX_WORDS),
        ("copied", _copies(words, passage)),
    ):
        if holds:
            return None, reason
    return query, ""


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
