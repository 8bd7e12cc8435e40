"""Passages that say no more than another one says: step 1 of arXiv 2505.19274."""

import unicodedata
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
from datasets import Dataset
from rich.progress import Progress, TaskID

from dense_retrieval.records import Corpus
from dense_retrieval.stage import Counts, Folder, stage

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


def duplicates(passages: Dataset, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """``(M,)`` int64, rows in order: passages to drop.

    A comparable text under 10 characters is dropped. The others are sorted, and a passage whose text is
    contained in that of one of its next ``neighbours`` is dropped; then the rest is sorted by the
    reversed texts, and again. Of equal texts the first row stays. So whatever is dropped is contained in
    a passage that stays, and passages that begin or end alike are found; a passage in the midst of
    another one is found only by chance.

    Memory: about 100 bytes a passage, and the texts of 20,000 passages.

    Args:
        passages: with the column ``text``; read from disk three times, twice in sorted order.
    """
    n = len(passages)
    keys = {False: np.empty(n, dtype=f"S{_KEY}"), True: np.empty(n, dtype=f"S{_KEY}")}
    stays = np.ones(n, dtype=bool)
    with Progress(transient=True) as progress:
        bar = progress.add_task("duplicate passages", total=3 * n)
        for rows, texts in _texts(passages, np.arange(n), progress, bar):
            stays[rows] = [len(text) >= MIN_CHARACTERS for text in texts]
            for backwards, key in keys.items():
                key[rows] = [_key(_turned(text, backwards)) for text in texts]
        for backwards, key in keys.items():
            left = np.flatnonzero(stays)
            order = left[np.argsort(key[left], kind="stable")]
            for row in _contained(_sorted(passages, order, key, backwards, progress, bar), neighbours):
                stays[row] = False
    return np.flatnonzero(~stays)


def _turned(text: str, backwards: bool) -> str:
    return text[::-1] if backwards else text


def _key(text: str) -> bytes:
    # UTF-8 sorts as the text does; where it is cut in the midst of a character, so it does still.
    return text.encode("utf-8", "replace")[:_KEY]


def _texts(
    passages: Dataset, rows: np.ndarray, progress: Progress, bar: TaskID
) -> Iterator[tuple[np.ndarray, list[str]]]:
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        yield part, [comparable(text) for text in passages.select(part)[:]["text"]]
        progress.advance(bar, len(part))


def _sorted(
    passages: Dataset, order: np.ndarray, key: np.ndarray, backwards: bool, progress: Progress, bar: TaskID
) -> Iterator[tuple[str, int]]:
    """Texts and rows by the whole text; of equal texts the first row comes last."""
    read = (
        (key[row], _turned(text, backwards), int(row))
        for rows, texts in _texts(passages, order, progress, bar)
        for row, text in zip(rows, texts, strict=True)
    )
    for _, alike in groupby(read, key=lambda item: item[0]):  # the same beginning
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


@stage(load_rows, name="duplicates")
def find_duplicates(folder: Path, corpus: Folder[Corpus], /) -> Counts:
    """The passages that say no more than another one: none is trained on."""
    rows = duplicates(corpus.load().passages)
    np.save(folder / "rows.npy", rows)
    return {"passages": len(rows)}
