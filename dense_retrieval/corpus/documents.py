"""Plain documents as a corpus: a folder of files, or a named collection, cut into passages at the borders of sentences
and headings.

Every file whose name ends in a key of :data:`READERS` is read, in all folders below; others are left out, and counted.
"""

from __future__ import annotations

import csv
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dense_retrieval.corpus.lines import json_objects
from dense_retrieval.corpus.named import of_hub, of_ir_datasets
from dense_retrieval.corpus.text import passage_text
from dense_retrieval.records import PASSAGES, Corpus, InputError, read_table, write_rows

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

_LEAST = 16  # tokens of a passage, however long its title is
_NO_TEXT = ("script", "style", "nav", "header", "footer", "template", "noscript")  # of a web page


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are a document's; without a title or an id there is none."""

    text: str = "text"
    title: str = "title"
    id: str = "id"


@dataclass(frozen=True)
class Document:
    """What is cut into passages, whose ids are ``id#1``, ``id#2``, ...

    Attributes:
        id: the file's path in the folder, of a table's row ``path:row``, or the row's own.
    """

    id: str
    title: str
    text: str


def read_documents(
    path: str,
    tokenizer: str,
    passage_tokens: int,
    overlap_tokens: int = 0,
    text: str = "title_and_text",
    passage_characters: int | None = None,
    columns: dict[str, str] | None = None,
    source: str = "files",
    subset: str | None = None,
    split: str = "train",
    revision: str | None = None,
) -> Corpus:
    """The documents of a folder, of one file, or of a named collection, without queries.

    Args:
        tokenizer: a ``tokenizer.json``, by which passages are measured.
        passage_tokens: of a passage at most, its title and special tokens included.
        overlap_tokens: of a passage that the one before it ends with, at most.
        text: see :func:`passage_text`.
        columns: see :class:`Columns`.
        source: what ``path`` is: ``files``, or a collection's name on the ``hub`` or in ``ir_datasets``.
        subset, split, revision: of a dataset of the hub, see :func:`dense_retrieval.corpus.collections.of_hub`.

    Raises:
        InputError: no document there; a table without the column of texts.
    """
    from tokenizers import Tokenizer

    if overlap_tokens >= passage_tokens // 2:
        raise InputError(
            f"data.overlap_tokens={overlap_tokens} must be less than half of data.passage_tokens={passage_tokens}"
        )
    measure = Tokenizer.from_file(tokenizer)
    measure.no_truncation()
    measure.no_padding()
    found = Counter[str]()

    def there() -> Iterator[Document]:
        named = Columns(**(columns or {}))
        if source == "files":
            return documents(Path(path), named, found)
        if source == "hub":
            return rows(of_hub(path, subset, split, revision), f"data.path={path}", path, named)
        if source == "ir_datasets":
            return rows(of_ir_datasets(path), f"data.path={path}", path, named)
        raise InputError(f"data.source={source} is unknown; use files, hub or ir_datasets")

    def passages() -> Iterator[dict[str, str]]:
        for document in there():
            room = passage_tokens
            if text == "title_and_text":
                room -= len(measure.encode(document.title, add_special_tokens=False).ids)
            for number, part in enumerate(cut(document, measure, max(room, _LEAST), overlap_tokens), 1):
                shown = passage_text(document.title, part, text, passage_characters)
                found["passages"] += 1
                yield {"id": f"{document.id}#{number}", "title": document.title, "text": shown}

    with tempfile.TemporaryDirectory() as unnamed:  # what is mapped stays readable
        file = Path(unnamed) / "passages.arrow"
        write_rows(passages(), PASSAGES, file)
        table = read_table(file)
    if not len(table):
        raise InputError(f"data.path={path}: no document with a text there; it takes {', '.join(READERS)}")
    log.info("%s: %s", path, ", ".join(f"{n} {what}" for what, n in found.items()))
    return Corpus(table, {}, {}, np.array([], dtype=np.int64))


def documents(path: Path, columns: Columns, found: Counter[str]) -> Iterator[Document]:
    """The documents of a folder, by the paths of their files; a file that cannot be read is said, and left out.

    Args:
        found: counts what there was.
    """
    if not path.exists():
        raise InputError(f"data.path={path}: there is no such folder or file")
    inside = path if path.is_dir() else path.parent
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        read = READERS.get(file.suffix.lower())
        hidden = any(part.startswith(".") for part in file.relative_to(inside).parts)
        if read is None or hidden:
            found["files of other kinds"] += 1
            continue
        found["files"] += 1
        try:
            for document in read(file, str(file.relative_to(inside)), columns):
                if document.text.strip():
                    yield document
        except InputError:
            raise
        except Exception as error:  # each parser raises what it likes
            found["unreadable files"] += 1
            log.warning("%s: left out, it cannot be read (%s)", file, str(error).partition("\n")[0])


def cut(document: Document, measure: Tokenizer, tokens: int, overlap: int) -> list[str]:
    """The text in passages, each as long as it can be without a border of a higher kind inside: heading, paragraph,
    sentence, word.

    Args:
        tokens: of a passage at most, special tokens included; a heading that would stand alone comes on top.
    """
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

    kind = TextSplitter if document.id.lower().endswith((".txt", ".pdf")) else MarkdownSplitter
    room = tokens - measure.num_special_tokens_to_add(is_pair=False)  # which the splitter does not count
    splitter = kind.from_huggingface_tokenizer(measure, room, overlap=min(overlap, room // 2))
    parts: list[str] = []
    heading = ""
    for part in splitter.chunks(document.text):
        if kind is MarkdownSplitter and part.startswith("#") and "\n" not in part:
            heading += part + "\n"
        else:
            parts.append(heading + part)
            heading = ""
    return parts if parts or not heading else [heading.strip()]


def _plain(file: Path, name: str, _: Columns) -> Iterator[Document]:
    yield Document(name, file.stem, file.read_text(encoding="utf-8-sig"))


def _markdown(file: Path, name: str, _: Columns) -> Iterator[Document]:
    text = file.read_text(encoding="utf-8-sig")
    first = next((line for line in text.splitlines() if line.startswith("# ")), f"# {file.stem}")
    yield Document(name, first.removeprefix("# ").strip(), text)


def _html(file: Path, name: str, _: Columns) -> Iterator[Document]:
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    page = BeautifulSoup(file.read_bytes(), "html.parser")
    title = page.title.get_text(" ", strip=True) if page.title else ""
    for element in page([*_NO_TEXT, "title"]):
        element.decompose()
    converter = MarkdownConverter(heading_style="ATX", strip=["a", "img"])
    yield Document(name, title or file.stem, converter.convert_soup(page).strip())


def _pdf(file: Path, name: str, _: Columns) -> Iterator[Document]:
    from pypdf import PdfReader

    pdf = PdfReader(file)
    title = (pdf.metadata.title if pdf.metadata else None) or file.stem
    yield Document(name, str(title), "\n\n".join(page.extract_text() for page in pdf.pages))


def _csv(file: Path, name: str, columns: Columns) -> Iterator[Document]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        yield from rows(csv.DictReader(stream), str(file), name, columns)


def _records(file: Path, name: str, columns: Columns) -> Iterator[Document]:
    yield from rows((record for _, record in json_objects(file)), str(file), name, columns)


def rows(of_table: Iterable[Any], file: str, name: str, columns: Columns) -> Iterator[Document]:
    """The documents of a table's rows.

    Args:
        file: that errors name.
        name: that the ids of rows without one begin with.
    """
    for number, row in enumerate(of_table, 1):
        if row.get(columns.text) is None:
            raise InputError(
                f"{file}: row {number} has no column {columns.text!r}; it has {', '.join(map(str, row))}: "
                "name the column of the texts by data.columns.text="
            )
        own = row.get(columns.id)
        identifier = f"{name}:{number}" if own is None else str(own)
        yield Document(identifier, str(row.get(columns.title) or ""), str(row[columns.text]))


READERS: dict[str, Callable[[Path, str, Columns], Iterator[Document]]] = {
    ".txt": _plain,
    ".md": _markdown,
    ".markdown": _markdown,
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
    ".csv": _csv,
    ".jsonl": _records,
    ".parquet": _records,
}
