"""Passages that say no more than another one says: step 1 of arXiv 2505.19274."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.progress import Progress, TaskID

from dense_retrieval.corpus.text import without_title
from dense_retrieval.progress import unwatched
from dense_retrieval.records import Corpus
from dense_retrieval.stage import Counts, Folder, stage

if TYPE_CHECKING:
    from datasets import Dataset

CHARACTERS = 2048  # of a passage that are compared
MIN_CHARACTERS = 10  # a comparable text shorter than this says nothing
NEIGHBOURS = 5  # in sorted order that a passage is looked for in
_KEY = 32  # bytes of a text that it is first sorted by
_AT_ONCE = 20_000  # passages whose texts are in memory


class _Removed(dict):
    """Code point -> itself, or None for digits, punctuation, symbols and combining marks."""

    def __missing__(self, code: int) -> int | None:
        category = unicodedata.category(chr(code))
        self[code] = None if category[0] in "NPS" or category == "Mn" else code
        return self[code]


_REMOVED = _Removed()


def comparable(text: str) -> str:
    """The text as it is compared: cut at 2,048 characters, compatibility forms folded (NFKC), without
    accents, digits and punctuation, in lower case, white space folded.

    >>> comparable("Ångström's  2nd ﬁnding:")
    'angstroms nd finding'
    """
    text = text[:CHARACTERS].lower()
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text)
    return " ".join(text.translate(_REMOVED).split())


def duplicates(passages: Dataset, *, titled: bool = False, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """``(M,)`` int64, rows in order: passages to drop.

    A comparable text under 10 characters is dropped. The others are sorted, and a passage whose text is
    contained in that of one of its next ``neighbours`` is dropped; the same with the reversed texts. Of
    equal texts the first row stays. So whatever is dropped is contained in a passage that stays, and a
    passage with which another one begins or ends is found, for such come next to each other; a passage
    in the midst of another one is found only by chance.

    Memory: about 100 bytes a passage, and the texts of 20,000 passages.

    Args:
        passages: with the column ``text``; read from disk three times, twice in sorted order.
        titled: the texts begin with the column ``title``, which is not compared.
    """
    n = len(passages)
    keys = {False: np.empty(n, dtype=f"S{_KEY}"), True: np.empty(n, dtype=f"S{_KEY}")}
    stays = np.ones(n, dtype=bool)
    with Progress(transient=True, disable=unwatched()) as progress:
        bar = progress.add_task("duplicate passages", total=3 * n)
        read = partial(_texts, passages, titled, progress, bar)
        for rows, texts in read(np.arange(n)):
            stays[rows] = [len(text) >= MIN_CHARACTERS for text in texts]
            for backwards, key in keys.items():
                key[rows] = [_key(_turned(text, backwards)) for text in texts]
        compared = np.flatnonzero(stays)
        for backwards, key in keys.items():
            # Also those dropped already: what they contain may be no neighbour of what contains them.
            order = compared[np.argsort(key[compared], kind="stable")]
            for row in _contained(_sorted(read(order), key, backwards), neighbours):
                stays[row] = False
    return np.flatnonzero(~stays)


def _turned(text: str, backwards: bool) -> str:
    return text[::-1] if backwards else text


def _key(text: str) -> bytes:
    # UTF-8 sorts as the text does; where it is cut in the midst of a character, so it does still.
    return text.encode("utf-8", "replace")[:_KEY]


def _texts(
    passages: Dataset, titled: bool, progress: Progress, bar: TaskID, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, list[str]]]:
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        read = passages.select(part)[:]
        texts = map(without_title, read["text"], read["title"]) if titled else read["text"]
        yield part, [comparable(text) for text in texts]
        progress.advance(bar, len(part))


def _sorted(
    read: Iterator[tuple[np.ndarray, list[str]]], key: np.ndarray, backwards: bool
) -> Iterator[tuple[str, int]]:
    """Texts and rows by the whole text; of equal texts the first row comes last."""
    ordered = (
        (key[row], _turned(text, backwards), int(row))
        for rows, texts in read
        for row, text in zip(rows, texts, strict=True)
    )
    for _, alike in groupby(ordered, key=lambda item: item[0]):  # the same beginning
        yield from sorted(((text, row) for _, text, row in alike), key=lambda item: (item[0], -item[1]))


def _contained(ordered: Iterator[tuple[str, int]], neighbours: int) -> Iterator[int]:
    """Rows whose text one of the next ``neighbours`` contains."""
    window: list[tuple[str, int]] = []
    for item in ordered:
        window.append(item)
        if len(window) > neighbours:
            text, row = window.pop(0)
            if any(text in other for other, _ in window):
                yield row
    while window:
        text, row = window.pop(0)
        if any(text in other for other, _ in window):
            yield row


def load_rows(folder: Path) -> np.ndarray:
    """``(M,)`` int64, passage rows."""
    return np.load(folder / "rows.npy")


@stage(
    load_rows,
    name="duplicates",
    version=2,
    forecast=lambda corpus, **_: {"passages": corpus["passages"]},
)
def find_duplicates(folder: Path, corpus: Folder[Corpus], /, *, titled: bool) -> Counts:
    """The passages that say no more than another one: none is trained on."""
    passages = corpus.load().passages
    rows = duplicates(passages, titled=titled)
    np.save(folder / "rows.npy", rows)
    return {"passages": len(passages), "duplicates": len(rows)}
