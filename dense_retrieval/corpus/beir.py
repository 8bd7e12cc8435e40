"""Corpora in BEIR's layout: a folder, a zip, BEIR's published zips, the Hugging Face hub.

::

    corpus.jsonl        {"_id": ..., "title": ..., "text": ...}
    queries.jsonl       {"_id": ..., "text": ...}
    qrels/test.tsv      query-id <tab> corpus-id <tab> score, with a header; also train.tsv, dev.tsv

Instead of ``corpus.jsonl`` there may be ``corpus.jsonl.gz``, ``corpus.jsonl.zst``, ``corpus.parquet``, or several of
such files: ``corpus-*.jsonl`` beside each other or any names in a folder ``corpus``; so of the queries. All are read
row by row. The hub's Parquet datasets have their judgements in ``qrels/test-00000-of-00001.parquet``. Without
``queries.jsonl`` and ``qrels`` it is documents alone: no split to test on.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub import snapshot_download
from rich.progress import wrap_file

from dense_retrieval.corpus import archive, judgements
from dense_retrieval.corpus.ids import Ids
from dense_retrieval.corpus.lines import ENDINGS, json_objects, table_files
from dense_retrieval.corpus.text import passage_text
from dense_retrieval.records import PASSAGES, QUERIES, Corpus, InputError, read_table, write_rows

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

_ZIPS = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets"


def read_folder(
    path: str,
    text: str = "title_and_text",
    passage_characters: int | None = None,
    query_characters: int | None = None,
    test_split: str = "test",
    missing_passages: int = 0,
) -> Corpus:
    """A folder or ``.zip`` in BEIR's layout, or one file of documents alone.

    Args:
        text: see :func:`passage_text`.
        passage_characters, query_characters: longer texts are cut; None keeps them whole.
        test_split: the qrels file that is the test split, and then no other one.
        missing_passages: judged passages that the corpus is known to lack. They stay in the qrels, as
            rows -1, -2, ..., and no system can find them: so the published figures were measured.

    Raises:
        InputError: something is missing, broken or inconsistent; with its file and line.
    """
    folder = Path(path)
    if folder.suffix == ".zip" and folder.is_file():
        with tempfile.TemporaryDirectory() as unpacked:
            inside = archive.unpack(folder, Path(unpacked))
            limits = passage_characters, query_characters
            try:
                return read_folder(str(inside), text, *limits, test_split, missing_passages)
            except InputError as error:
                raise InputError(str(error).replace(unpacked, path)) from error
    if folder.is_file() and folder.name.endswith(ENDINGS):
        passages, _ = _table([folder], "corpus", text, passage_characters)
        return Corpus(passages, {}, {}, np.array([], dtype=np.int64))
    if not folder.is_dir():
        raise InputError(f"data.path={path}: there is no such folder or zip")
    passages, passage_rows = _table(_files(folder, "corpus"), "corpus", text, passage_characters)
    queries, qrels = {}, {}
    splits = {split: split for split in ("train", "dev") if split != test_split} | {"test": test_split}
    if not table_files(folder, "queries") and not (folder / "qrels").exists():
        splits = {}
    else:
        asked = _table(_files(folder, "queries"), "queries", "text_only", query_characters)
    for split, name in splits.items():
        files = [folder / "qrels" / f"{name}{suffix}" for suffix in (".tsv", *ENDINGS)]
        # as the hub names Parquet files; "data" is where those of a configuration called "default" lie
        files += [folder / sub / f"{name}-00000-of-00001.parquet" for sub in ("qrels", "data")]
        file = next((f for f in files if f.is_file()), None)
        if file:
            queries[split], qrels[split] = judgements.read(file, *asked, passage_rows, missing_passages)
        elif split == "test":
            there = ", ".join(sorted({p.stem for p in files[0].parent.glob("*.*")})) or "none"
            raise InputError(f"{files[0]} is missing; the splits there: {there} (data.test_split=...)")
    return Corpus(passages, queries, qrels, np.array([], dtype=np.int64))


def read_hub(name: str, revision: str | None = None, **settings) -> Corpus:
    """A BEIR corpus from the hub's ``mteb/<name>``, which keeps BEIR's files.

    Args:
        revision: branch, tag or commit; None is the newest. The commit used is logged.
        settings: of :func:`read_folder`.

    Raises:
        InputError: the hub does not have it or cannot be reached.
    """
    folder = _downloaded(name, revision)
    log.info("%s: revision %s", name, folder.name)
    return read_folder(str(folder), **settings)


def at_hand(name: str, revision: str | None) -> None:
    """Raise the InputError of :func:`read_hub` where a dataset was not downloaded before."""
    _downloaded(name, revision, local_files_only=True)


def _downloaded(name: str, revision: str | None, **how: Any) -> Path:
    patterns = ["*.jsonl", "*.jsonl.gz", "*.jsonl.zst", "qrels/*"]

    def folder(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=patterns, **how)
        )

    try:
        found = folder(patterns)
        return found if table_files(found, "corpus") else folder([*patterns, "*.parquet"])
    except Exception as error:  # the hub's errors share no base class
        reason = (str(error).strip() or "no reason given").splitlines()[0].partition(". ")[0]
        raise InputError(
            f"corpus {name!r} could not be had from the Hugging Face hub ({type(error).__name__}: {reason}); "
            "use BEIR's own zip with data.zip=true, or a folder in BEIR's layout with data=beir data.path=FOLDER"
        ) from error


def read_zip(name: str, md5: str, **settings) -> Corpus:
    """One of BEIR's published zips, downloaded, checked and read.

    Args:
        name: of the zip, such as ``fiqa`` or ``webis-touche2020``.
        md5: the published checksum.
        settings: of :func:`read_folder`.

    Raises:
        InputError: it cannot be downloaded, or its checksum is another one.
    """
    url = f"{_ZIPS}/{name}.zip"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.zip"
        try:
            with urllib.request.urlopen(url, timeout=60) as response, file.open("wb") as target:
                size = int(response.headers.get("Content-Length") or 0)
                with wrap_file(response, size, description=f"{name}.zip") as source:
                    shutil.copyfileobj(source, target)
        except (OSError, http.client.HTTPException) as error:
            raise InputError(
                f"{url} could not be downloaded ({error}); use the hub with data.zip=false, or download it "
                "elsewhere and give data=beir data.path=FILE.zip"
            ) from error
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "md5").hexdigest()
        if found != md5:
            raise InputError(
                f"{url}: its MD5 is {found}, BEIR publishes {md5}; the download is broken, try again"
            )
        return read_folder(str(file), **settings)


def read_named(
    name: str, revision: str | None, zip_name: str, zip_md5: str, zip: bool = False, **settings
) -> Corpus:
    """A corpus of the BEIR benchmark, from the hub or (``zip``) from BEIR's zip."""
    return read_zip(zip_name, zip_md5, **settings) if zip else read_hub(name, revision, **settings)


def _files(folder: Path, name: str) -> list[Path]:
    files = table_files(folder, name)
    if not files:
        raise InputError(
            f"{folder}: {name}.jsonl is missing; BEIR's layout is corpus.jsonl, queries.jsonl, qrels/"
        )
    return files


def _table(files: Sequence[Path], name: str, text: str, characters: int | None) -> tuple[Dataset, Ids]:
    """``corpus`` or ``queries`` as a table on disk, written row by row, and the row of each id."""
    passages = name == "corpus"

    def rows() -> Iterator[dict[str, Any]]:
        for file, number, record in _records(files):
            title = record.get("title") or ""
            for key, value in ("_id", record.get("_id")), ("text", record.get("text")), ("title", title):
                if not isinstance(value, str):
                    raise InputError(f"{file}:{number}: the key {key!r} is missing or no string")
            shown = passage_text(title, record["text"], text, characters)
            if passages:
                yield {"id": record["_id"], "title": title, "text": shown}
            else:
                yield {"id": record["_id"], "text": shown, "querytype": "human", "source": -1}

    with tempfile.TemporaryDirectory() as unnamed:  # what is mapped stays readable
        path = Path(unnamed) / "table.arrow"
        try:
            write_rows(rows(), PASSAGES if passages else QUERIES, path)
        except UnicodeError as error:
            raise InputError(f"{files[-1]}: a text is no valid Unicode ({error}); repair it") from error
        table = read_table(path)
    if not len(table):
        raise InputError(f"{files[0]}: is empty")
    ids = Ids(table)
    if repeated := ids.repeated():
        later, first = (next(islice(_records(files), row, None)) for row in repeated)
        where = f"line {first[1]}" if first[0] == later[0] else f"{first[0]}:{first[1]}"
        raise InputError(f"{later[0]}:{later[1]}: the id {later[2]['_id']!r} stands already in {where}")
    return table, ids


def _records(files: Sequence[Path]) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """File, line number and content of each row."""
    for file in files:
        for number, record in json_objects(file):
            yield file, number, record
